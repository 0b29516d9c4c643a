"""The log density on the real line: values, gradients, and programs that are hard to batch."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch.distributions import biject_to

import ppgen
from ppgen.posterior.log_density import UnconstrainedLogDensity


def test_log_prob_is_the_joint_density_with_the_jacobian():
    def model(y):
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w[0], s), obs=y)

    y = torch.randn(5, dtype=torch.float64)
    target = UnconstrainedLogDensity(model, (y,))
    u = target.initial_points(4, torch.Generator().manual_seed(0))
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
    u = target.initial_points(3, torch.Generator().manual_seed(0))
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

    with pytest.raises(ValueError, match="support"):
        ppgen.fit(model, "auto", (torch.tensor([1.0, 2.0, 0.0]),), progress=False)


def test_data_of_a_type_without_a_density_are_refused():
    def model(y):
        rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Bernoulli(rate), obs=y)

    for y in (torch.tensor([1, 0, 1]), torch.tensor([True, False, True])):
        with pytest.raises(ValueError, match=rf"distribution Bernoulli of 'y' has no density at values of {y.dtype}"):
            ppgen.fit(model, "auto", y, progress=False)


def test_a_program_that_reads_values_is_refused():
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m if m > 0 else -m, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"cannot be evaluated at many points at once .* reads a latent's value"):
        ppgen.fit(model, "auto", None, progress=False)
