"""The log density on the real line: values, gradients, and programs that are hard to batch."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from torch.distributions import biject_to

import ppgen
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.starts import initial_points


def test_log_prob_is_the_joint_density_with_the_jacobian():
    def model(y):
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w[0], s), obs=y)

    y = torch.randn(5, dtype=torch.float64)
    target = UnconstrainedLogDensity(model, (y,))
    u = initial_points(target, 4, torch.Generator().manual_seed(0))
    z = target.constrain(u)
    expected = dist.Gamma(2.0, 1.0).log_prob(z["s"]) + dist.Dirichlet(torch.ones(3).double()).log_prob(z["w"])
    expected += dist.Normal(z["w"][:, :1], z["s"][:, None]).log_prob(y).sum(-1)
    for support, part, value in (
        (dist.constraints.positive, u[:, 0], z["s"]),
        (dist.constraints.simplex, u[:, 1:], z["w"]),
    ):
        expected += biject_to(support).log_abs_det_jacobian(part, value)
    value, gradient = target.log_prob_and_grad(u)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(target.log_prob(u), expected)
    torch.testing.assert_close(target.unconstrain(z), u)
    differences = [
        (target.log_prob(u + 1e-6 * e) - target.log_prob(u - 1e-6 * e)) / 2e-6 for e in torch.eye(3).double()
    ]
    torch.testing.assert_close(gradient, torch.stack(differences, -1), rtol=1e-5, atol=1e-6)
    assert target.labels == ["s", "w[0]", "w[1]"]


def test_discrete_latents_are_summed_out():
    @config_enumerate
    def model(x):
        m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(m[k], 1.0), obs=x)

    x = torch.randn(6, dtype=torch.float64)
    target = UnconstrainedLogDensity(model, (x,))
    u = initial_points(target, 3, torch.Generator().manual_seed(0))
    components = dist.Normal(u[:, :, None], 1.0).log_prob(x) + torch.tensor([0.3, 0.7]).double().log()[:, None]
    expected = dist.Normal(torch.tensor([-1.0, 1.0]).double(), 1.0).log_prob(u).sum(-1) + components.logsumexp(1).sum(
        -1
    )
    torch.testing.assert_close(target.log_prob_and_grad(u)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_subsampling_plate_uses_all_of_its_rows():
    y = torch.randn(8, dtype=torch.float64)

    def model(y, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 8, subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])

    u = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        UnconstrainedLogDensity(model, (y, 3)).log_prob(u), UnconstrainedLogDensity(model, (y,)).log_prob(u)
    )


def test_a_program_may_write_into_tensors_that_it_makes():
    """The program itself, when it fills in missing values, or a distribution of torch or Pyro."""
    x, seen = torch.tensor([0.5, 0.0, -1.0, 0.0]), torch.tensor([True, False, True, False])

    def filled(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        whole = x.clone()
        whole[~seen] = z
        pyro.sample("y", dist.Normal(whole, 1.0).to_event(1), obs=y)

    def plain(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        whole = torch.stack([x[0], z[..., 0], x[2], z[..., 1]])
        pyro.sample("y", dist.Normal(whole, 1.0).to_event(1), obs=y)

    def ordered(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        cuts = torch.stack([z[0], z[0] + z[1].exp()])
        with pyro.plate("data", 4):
            pyro.sample("y", dist.OrderedLogistic(torch.zeros(4), cuts), obs=y)

    def categories(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        below = torch.stack([z[0], z[0] + z[1].exp()]).sigmoid()
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Categorical(torch.cat([below, torch.ones(1)]).diff(prepend=torch.zeros(1))), obs=y)

    def counts(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Multinomial(5, logits=torch.cat([z, torch.zeros(1)])), obs=y)

    def times(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        log_probs = torch.cat([z, torch.zeros(1)]).log_softmax(-1)
        pyro.factor("y", (y * log_probs).sum() + math.log(10.0))  # 5! / (2! 3!)

    u = torch.randn(3, 2, dtype=torch.float64)
    for writes, other, y in (
        (filled, plain, torch.randn(4)),
        (ordered, categories, torch.tensor([0, 1, 2, 1])),
        (counts, times, torch.tensor([2.0, 0.0, 3.0])),
    ):
        for found, expected in zip(
            *(UnconstrainedLogDensity(m, (y,)).log_prob_and_grad(u) for m in (writes, other)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_program_may_read_values_of_data_and_of_constants():
    """By Python, as lists, or by NumPy; and its prior may be made elsewhere, under validation."""
    x, y, prior = torch.randn(6, 2), torch.randn(6), dist.Normal(0.0, 1.0).expand([2]).to_event(1)

    def reading(y):
        b = pyro.sample("b", prior)
        scale = 2.0 if y.max() > 100 else 1.0
        rows = [i for i, value in enumerate((y + 1).tolist()) if value > -100]
        count = int((x[:, 0].abs() < 100).sum())
        shift = float((x - x.mean(0)).sum(0).numpy()[0]) + float(np.asarray(x * 0.0).sum())
        mean = torch.zeros(count)
        for i in rows:
            mean[i] = x[i] @ b
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(mean + shift, scale), obs=y)

    def plain(y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ b, 1.0).to_event(1), obs=y)

    u = torch.randn(3, 2, dtype=torch.float64)
    target = UnconstrainedLogDensity(reading, (y,))
    assert target.vectorized
    for found, expected in zip(
        target.log_prob_and_grad(u), UnconstrainedLogDensity(plain, (y,)).log_prob_and_grad(u), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_program_that_reads_its_latents_runs_once_for_each_point():
    def branches(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m if m > 0 else 3.0 * m, 1.0), obs=y)

    def at_once(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.where(m > 0, m, 3.0 * m), 1.0), obs=y)

    u, y = torch.randn(5, 1, dtype=torch.float64), torch.tensor(0.3)
    with pytest.warns(UserWarning, match="the program branches runs once for each draw"):
        target = UnconstrainedLogDensity(branches, (y,))
    assert not target.vectorized
    expected = UnconstrainedLogDensity(at_once, (y,))
    for found, other in zip(target.log_prob_and_grad(u), expected.log_prob_and_grad(u), strict=True):
        torch.testing.assert_close(found, other)
    torch.testing.assert_close(target.unconstrain(target.constrain(u)), u)
    target.check(u[0])


def test_supports_may_depend_on_the_latents_before():
    """log p(u) and its gradient against the densities and transforms in closed form; the points come back."""

    def model():
        a = pyro.sample("a", dist.Gamma(3.0, 1.0))
        with pyro.plate("three", 3):
            b = pyro.sample("b", dist.Uniform(0.0, a))
        pyro.sample("c", dist.Uniform(-a, b.max()))
        pyro.sample("d", dist.Pareto(a, 3.0))

    target = UnconstrainedLogDensity(model)
    u = torch.randn(4, 6, dtype=torch.float64)
    a = u[:, 0].exp()
    b = a[:, None] * u[:, 1:4].sigmoid()
    top = b.amax(-1)
    c = -a + (a + top) * u[:, 4].sigmoid()
    d = a + u[:, 5].exp()
    z = target.constrain(u)
    for name, expected in {"a": a, "b": b, "c": c, "d": d}.items():
        torch.testing.assert_close(z[name], expected)
    torch.testing.assert_close(target.unconstrain(z), u)
    logistic = dist.TransformedDistribution(dist.Uniform(0.0, 1.0), [dist.transforms.SigmoidTransform().inv])
    expected = dist.Gamma(3.0, 1.0).log_prob(a) + u[:, 0]  # a uniform latent is logistic on the real line
    expected += logistic.log_prob(u[:, 1:5]).sum(-1) + dist.Pareto(a, 3.0).log_prob(d) + u[:, 5]
    value, gradient = target.log_prob_and_grad(u)
    torch.testing.assert_close(value, expected)
    differences = [
        (target.log_prob(u + 1e-6 * e) - target.log_prob(u - 1e-6 * e)) / 2e-6 for e in torch.eye(6).double()
    ]
    torch.testing.assert_close(gradient, torch.stack(differences, -1), rtol=1e-5, atol=1e-6)


def test_data_outside_of_a_support_that_depends_on_latents_have_density_zero():
    """Where torch's own formula has a finite density, too."""

    def pareto():
        pyro.sample("y", dist.Pareto(pyro.sample("m", dist.LogNormal(0.0, 1.0)), 3.0), obs=torch.tensor(2.0))

    def shifted():
        m = pyro.sample("m", dist.LogNormal(0.0, 1.0))
        base = dist.Exponential(torch.ones(1)).to_event(1)
        moved = dist.TransformedDistribution(base, [dist.transforms.AffineTransform(m, 1.0, event_dim=1)])
        pyro.sample("y", moved, obs=torch.tensor([2.0]))

    u = torch.tensor([[1.5], [2.5]], dtype=torch.float64).log()
    for model, inside in ((pareto, dist.Pareto(1.5, 3.0).log_prob(torch.tensor(2.0))), (shifted, torch.tensor(-0.5))):
        value = UnconstrainedLogDensity(model).log_prob(u)
        prior = dist.Normal(0.0, 1.0).log_prob(u[:, 0])
        torch.testing.assert_close(value[0], prior[0] + inside.double(), rtol=1e-6, atol=1e-6)
        assert value[1] == -math.inf


# bad input


def test_a_density_that_is_finite_nowhere_names_the_site():
    def model():
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, -s * s), obs=torch.tensor(1.0))

    with pytest.raises(FloatingPointError, match=r"log p of 'y' is not finite .* s = "):
        ppgen.fit(model, "auto", None, progress=False)


def test_data_outside_a_distributions_support_are_refused():
    def model(y):
        rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Bernoulli(rate), obs=y)

    with pytest.raises(ValueError, match=r"site 'y': Bernoulli takes 0 or 1, and 1 of 3 .* the first is 2.0, in row 1"):
        ppgen.fit(model, "auto", (torch.tensor([1.0, 2.0, 0.0]),), progress=False)


def test_observations_of_a_type_without_a_density_are_refused():
    for y in (torch.tensor([1, 0, 1]), torch.tensor([True, False, True])):

        def model(y=y):
            rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
            with pyro.plate("data", 3):
                pyro.sample("y", dist.Bernoulli(rate), obs=y)

        with pytest.raises(ValueError, match=rf"distribution Bernoulli of 'y' has no density at values of {y.dtype}"):
            ppgen.fit(model, "auto", None, progress=False)


def test_a_program_whose_density_is_not_a_function_of_its_latents_is_refused():
    """It draws random numbers of its own, or counts its runs."""
    y, runs = torch.tensor(1.0), []

    def by_torch():
        pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)) + torch.randn(()), 1.0), obs=y)

    def by_numpy():
        pyro.sample(
            "y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)) + np.random.default_rng().normal(), 1.0), obs=y
        )

    def by_dropout():
        m = torch.dropout(pyro.sample("m", dist.Normal(1.0, 1.0).expand([8]).to_event(1)) + 1.0, 0.5, True)
        pyro.sample("y", dist.Normal(m.sum(), 1.0), obs=y)

    def counting():
        runs.append(0)
        pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)) + len(runs), 1.0), obs=y)

    for model in (by_torch, by_numpy, by_dropout, counting):
        with pytest.raises(ValueError, match=rf"log p of the program {model.__name__} is .* not a density of them"):
            ppgen.fit(model, "auto", None, progress=False)


def test_a_program_that_loses_gradients_is_refused():
    def detached():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, s.item()), obs=torch.tensor(1.0))

    with (
        pytest.warns(UserWarning, match="the program detached runs once for each draw"),
        pytest.raises(ValueError, match=r"gradient of log p in the latent s .* turns the latent into a number"),
    ):
        ppgen.fit(detached, "auto", None, progress=False)


def test_a_support_that_depends_on_a_discrete_latent_is_refused():
    @config_enumerate
    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        b = pyro.sample("b", dist.Uniform(0.0, k + 1.0))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="support of the latent 'b' depends on a discrete latent"):
        UnconstrainedLogDensity(model)


def test_a_latent_from_a_delta_is_refused():
    """It has no density around its value, so that a search would end wherever it began."""

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Delta(2 * a))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"'b' from a Delta.*pyro\.deterministic"):
        UnconstrainedLogDensity(model)


def test_batch_dimensions_that_no_plate_declares_are_refused_before_the_fit():
    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]))
        pyro.sample("y", dist.Normal(b.sum(), 1.0), obs=torch.zeros(()))

    with pytest.raises(ValueError, match=r"site 'b': plates declare 0 .* \(2,\): add \.to_event\(1\)"):
        UnconstrainedLogDensity(model)
    with pyro.validation_enabled(False):
        UnconstrainedLogDensity(model)


def test_a_parameter_of_a_reparametrization_is_refused_with_its_remedy():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(()), scale))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"'z_centered'.*`centered` is a number"):
        UnconstrainedLogDensity(pyro.poutine.reparam(model, {"z": LocScaleReparam()}))


def test_hidden_markov_models_are_evaluated_at_many_points():
    """Their logarithm has a gradient of its own, which vmap takes in another form; differences agree with it."""

    def model(y):
        p = pyro.sample("p", dist.Beta(8.0, 2.0))
        transitions = torch.stack([p, 1 - p, 1 - p, p]).reshape(2, 2).log()
        means = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), transitions, dist.Normal(means, 1.0)), obs=y)

    target = UnconstrainedLogDensity(model, (torch.randn(6),))
    assert target.vectorized
    u, steps = torch.randn(3, 3, dtype=torch.float64), 1e-5 * torch.eye(3, dtype=torch.float64)
    _, gradient = target.log_prob_and_grad(u)
    differences = torch.stack([(target.log_prob(u + h) - target.log_prob(u - h)) / 2e-5 for h in steps], -1)
    torch.testing.assert_close(gradient, differences, rtol=1e-5, atol=1e-5)
