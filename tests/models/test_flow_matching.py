"""Flow matching: the regression, closed-form minimizers with their draws and densities, and errors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppgen
from ppgen.diffusion import linear_interpolation
from ppgen.models import FlowMatching

D, B, M = 0.5, 1.5, 2.0  # standard deviations of Gaussian data and base, and the mean of the data


class Exact(nn.Module):
    """F of the path from N(0, B^2) to data N(M, D^2), with independent or optimal pairs.

    Independent: F = E[e - x | z] = (u B^2 - (1 - u) D^2) / (u^2 B^2 + (1 - u)^2 D^2) (z - (1 - u) M) - M; optimal, with
    e = (x - M) B / D and z_u = (1 - u) M + ((1 - u) D + u B) w: the factor is (B - D) / ((1 - u) D + u B).
    """

    def __init__(self, *, together: bool = False) -> None:
        super().__init__()
        self.together, self.shift = together, nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        u = context[:, 1:2]
        z = z * (u.square() + (1 - u).square()).sqrt()
        if self.together:
            slope = (B - D) / ((1 - u) * D + u * B)
        else:
            slope = (u * B**2 - (1 - u) * D**2) / (u.square() * B**2 + (1 - u).square() * D**2)
        return slope * (z - (1 - u) * M) - M + self.shift


def distribution(loc: float, scale: float, width: int = 1) -> dist.TorchDistribution:
    return dist.Normal(torch.full((width,), loc), scale).to_event(1)


def exact(*, together: bool = False, **options: object) -> FlowMatching:
    coupling = "exact" if together else "independent"
    return FlowMatching((1,), base=distribution(0.0, B), network=Exact(together=together), coupling=coupling, **options)


OPTIONS = {
    "independent": {"coupling": "independent"},
    "exact": {},
    "sinkhorn": {"coupling": "sinkhorn", "epsilon": 0.5},
    "rows": {"base": torch.randn(40, 2)},
    "distribution": {"base": distribution(1.0, 2.0, 2)},
    "bridge": {"bridge": 0.5},
    "labels": {"num_classes": 3},
    "contexts": {"context_dim": 2},
    "levels": {"levels": 4},
    "antithetic": {"times": "antithetic"},
}


def data(name: str, n: int = 24) -> tuple[Tensor, ...]:
    x = torch.randint(4, (n, 2)) if name == "levels" else torch.randn(n, 2)
    return {"labels": (x, torch.randint(3, (n,))), "contexts": (x, torch.randn(n, 2))}.get(name, (x,))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_elbo_is_the_regression_and_draws_have_the_shape_of_data(name):
    model, args = FlowMatching((2,), hidden=(8, 8), **OPTIONS[name]), data(name)
    model.check(*args)
    y = args[1] if len(args) > 1 else None
    model.eval()
    outputs = []
    model.denoiser.network.register_forward_hook(lambda module, inputs, out: outputs.append(out.detach()))
    pyro.set_rng_seed(3)
    loss = ppgen.ELBO().loss(model.model, model.guide, *args)
    pyro.set_rng_seed(3)
    assert ppgen.Reconstruction().loss(model.model, model.guide, *args) == pytest.approx(loss)
    pyro.set_rng_seed(3)
    u, z, velocity = model.path(args[0], y)
    assert u.shape == (24,)
    assert z.shape == velocity.shape == (24, 2)
    expected = ((outputs[0] - velocity).square().sum(1) / 2).mean() + math.log(2 * math.pi)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    drawn = model.sample(24, y, steps=3)
    assert drawn.shape == (24, 2)
    assert drawn.dtype == args[0].dtype


def test_paths_are_straight_lines_between_given_pairs():
    model = FlowMatching((2,), hidden=(8, 8))
    x, e = torch.randn(20, 2), torch.randn(20, 2)
    u, z, velocity = model.path(x, None, e)
    torch.testing.assert_close(velocity, e - x)
    torch.testing.assert_close(z, x + u[:, None] * velocity)
    assert torch.equal((u * 20).floor().sort().values, torch.arange(20.0))  # one in each of n equal parts


def test_the_default_coupling_is_optimal():
    """In one dimension the optimal plan preserves the order."""
    x = torch.randn(50, 1)
    _, _, velocity = FlowMatching((1,), hidden=(8, 8)).path(x)
    e = velocity + x
    assert torch.equal(x[:, 0].argsort(), e[:, 0].argsort())


def test_a_bridge_has_the_velocity_of_its_path_and_the_variance_of_a_brownian_bridge():
    """The variance of 40000 numbers, within 5 standard errors: level 6e-7."""
    model, sigma, n = FlowMatching((1,), hidden=(8, 8), bridge=0.7), 0.7, 40_000
    x, e = torch.randn(n, 1), torch.randn(n, 1)
    u, z, velocity = (part.double() for part in model.path(x, None, e))
    u, x, e = u[:, None].clone(), x.double(), e.double()
    noise = (z - (1 - u) * x - u * e) / (sigma * (u * (1 - u)).sqrt())
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    u.requires_grad_()
    path = (1 - u) * x + u * e + sigma * (u * (1 - u)).sqrt() * noise.detach()
    derivative = torch.autograd.grad(path.sum(), u)[0]
    torch.testing.assert_close(velocity, derivative, rtol=1e-3, atol=1e-2)


def test_the_pairs_of_a_bridge_have_the_covariance_of_the_schrodinger_bridge():
    """Between N(0, b^2) and N(m, d^2): ((4 b^2 d^2 + s^4)^(1/2) - s^2) / 2 (Bunne et al. 2023, theorem 3).

    The error of an estimate from 1000 pairs is about .04; with half or twice the epsilon it would be .12.
    """
    sigma = 1.0
    model = FlowMatching((1,), hidden=(8, 8), base=distribution(0.0, B), bridge=sigma)
    found = []
    for _ in range(2):
        x = distribution(M, D).sample((500,))
        found.append(float(torch.cov(torch.cat([model._couple(x, None), x], 1).T)[0, 1]))
    expected = (math.sqrt(4 * B**2 * D**2 + sigma**4) - sigma**2) / 2
    assert sum(found) / 2 == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("together", [False, True])
def test_the_closed_form_is_the_minimizer(together):
    """Its error is orthogonal to functions of z and u (t statistics below 5, level 6e-7 each); a shifted one is not.

    The optimal pairs of a batch are those of the distributions up to the noise of the batch; hence the larger bound.
    """
    model = exact(together=together)
    u, z, velocity = model.path(distribution(M, D).sample((2000 if together else 50_000,)))
    error = velocity - model.denoiser.raw(z, linear_interpolation(u), None).detach()
    u = u[:, None]
    directions = [torch.ones_like(u), u, z, u * z, z.square(), (3 * u).cos()]
    if together:
        assert error.square().mean() < 0.02 < velocity.var() / 10
        return
    for direction in directions:
        product = error * direction
        assert abs(float(product.mean() / product.std())) * math.sqrt(len(product)) < 5
    assert abs(float((error + 0.1).mean() / error.std())) * math.sqrt(len(error)) > 10


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("sampler", ["heun", "dpm++2m", "adaptive", "ddim", "edm"])
def test_draws_with_the_closed_form_have_the_distribution_of_data(sampler, together):
    """Mean and standard deviation of 4000 draws, within 5 standard errors (level 6e-7 each) plus 1 % for the solver."""
    model = exact(together=together)
    options = {"churn": 0.0} if sampler == "edm" else {}
    x = model.sample(4000, sampler=sampler, steps=80, **options)
    assert abs(float(x.mean()) - M) < 5 * D / math.sqrt(4000) + 0.01
    assert abs(float(x.std()) / D - 1) < 5 / math.sqrt(8000) + 0.02


def test_one_step_is_enough_for_straight_paths():
    x = exact(together=True).sample(4000, sampler="euler", steps=1)
    assert abs(float(x.std()) / D - 1) < 5 / math.sqrt(8000)
    assert float(exact().sample(4000, sampler="euler", steps=1).std()) < D / 10  # the mean of all data


@pytest.mark.parametrize("together", [False, True])
def test_densities_with_the_closed_form_are_those_of_data(together):
    """Up to noise of standard deviation .0001 B at the data end."""
    x = torch.linspace(0.5, 3.5, 7)[:, None]
    found = exact(together=together).log_prob(x, solver="dopri5", tolerance=1e-5)
    torch.testing.assert_close(found, distribution(M, D).log_prob(x), rtol=0, atol=5e-3)


def test_a_mixture_as_base_is_sampled_and_scored():
    modes = dist.Normal(torch.tensor([[-2.0], [2.0]]), 0.5).to_event(1)
    base = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), modes)
    distribution = FlowMatching((1,), base=base, hidden=(8, 8)).distribution()
    assert not distribution.has_rsample
    assert distribution.log_prob(distribution.sample((5,))).isfinite().all()


def test_levels_have_the_probabilities_of_their_cells():
    """Levels 0 .. 16 on [-1, 1], cells of width 1/8, over which p changes by a fifth: 60 points of each."""
    model = FlowMatching((1,), base=distribution(0.0, B), network=Exact(), coupling="independent", levels=17)
    normal = torch.distributions.Normal(M, D)
    edges = 2 * (torch.arange(18.0) - 0.5) / 16 - 1
    expected = (normal.cdf(edges[1:]) - normal.cdf(edges[:-1])).log()[13:]
    found = model.log_prob(torch.arange(13, 17)[:, None], particles=60, steps=10)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)


def test_draws_given_a_label_have_the_mean_of_its_data():
    """Means of 500 draws, with standard error .03; the bound leaves room for a short training."""
    y = torch.arange(600) % 2
    x = 4.0 * y[:, None] - 2 + 0.5 * torch.randn(600, 2)
    model = FlowMatching((2,), hidden=(32, 32), num_classes=2)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=5e-3)  # noqa: E731
    fit = ppgen.fit(
        model.model, model.guide, (x, y), optim=adam, steps=250, batch_size=100, compile=False, progress=False
    )
    assert math.isfinite(fit.chains[0].final)
    for label in (0, 1):
        labels = torch.full((500,), label)
        drawn = model.sample(500, labels, steps=8)
        assert (drawn.mean(0) - (4.0 * label - 2)).abs().max() < 0.5
        assert drawn.std() < 1.2
        assert model.sample(5, labels[:5], guidance=2.0, steps=2).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "bridge"])
def test_compiled_training_equals_eager_training(name):
    args, histories = data(name, 64), []
    for compile in (True, False):
        pyro.set_rng_seed(0)
        model = FlowMatching((2,), hidden=(8,), **OPTIONS[name])
        fit = ppgen.fit(
            model.model, model.guide, args, steps=20, batch_size=32, compile=compile, progress=False, seed=1
        )
        histories.append(torch.as_tensor(fit.chains[0].history["loss"]))
        assert fit.chains[0].compiled.startswith("compiled at step 3") is compile
    torch.testing.assert_close(*histories, rtol=1e-5, atol=1e-5)
    assert len(set(histories[0].tolist())) == 20


@pytest.mark.parametrize("name", ["exact", "rows", "distribution", "bridge"])
@pytest.mark.parametrize(("sampler", "options"), [("ancestral", {}), ("ddim", {"eta": 0.5}), ("edm", {})])
def test_samplers_that_need_gaussian_noise_are_refused(name, sampler, options):
    model = FlowMatching((2,), hidden=(8, 8), **OPTIONS[name])
    with pytest.raises(ValueError, match=rf"sampler='{sampler}' adds Gaussian noise.*eta=0, or 'edm' with churn=0"):
        model.sample(2, sampler=sampler, steps=2, **options)


def test_ancestral_sampling_works_with_independent_gaussian_noise():
    model = FlowMatching((2,), hidden=(8, 8), coupling="independent")
    assert model.sample(3, sampler="ancestral", steps=4).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"coupling": "best"}, ValueError, r"'sinkhorn'"),
        ({"times": "now"}, ValueError, r"'stratified'"),
        ({"epsilon": 0.1}, ValueError, r"epsilon > 0 for coupling='sinkhorn'"),
        ({"bridge": -1.0}, ValueError, r"bridge of at least 0, got -1"),
        ({"label_weight": -1.0}, ValueError, r"label_weight"),
        ({"base": dist.Normal(0.0, 1.0)}, ValueError, r"one event of shape \(2,\), got batch shape \(\)"),
        ({"base": dist.Normal(torch.zeros(2), 1.0)}, ValueError, r"got batch shape \(2,\).*to_event"),
        ({"base": torch.zeros(5, 3)}, ValueError, r"rows of shape \(m, 2\) as the base, got \(5, 3\)"),
        ({"base": torch.full((5, 2), math.nan)}, ValueError, r"finite rows"),
        ({"base": "normal"}, TypeError, r"Pyro distribution, a tensor of rows or None as the base, got 'normal'"),
        ({"num_classes": 2, "context_dim": 1}, ValueError, r"num_classes or context_dim"),
        ({"options": {"depth": 3}}, ValueError, r"no such option"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        FlowMatching((2,), **options)


def test_bad_data_and_arguments_are_refused():
    model = FlowMatching((2,), hidden=(8, 8), base=torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"finite rows e of shape \(4, 2\), like x, got \(3, 2\)"):
        model.check(torch.zeros(4, 2), None, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"a base of rows has no density"):
        model.log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"a model that is trained with labels or contexts, and also without"):
        model.sample(2, guidance=2.0)
    with pytest.raises(ValueError, match=r"'uniform'"):
        FlowMatching((2,), hidden=(8, 8), levels=3).log_prob(torch.zeros(1, 2).long(), noise="normal")
