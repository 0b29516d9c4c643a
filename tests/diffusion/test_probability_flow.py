"""ProbabilityFlow: exact for Gaussian data, and a normalized density for any network."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from ppgen.diffusion import Denoiser, ProbabilityFlow
from ppgen.models import Diffusion
from ppgen.nets import ResidualDense
from ppgen.utils.ode import SOLVERS

SIGMA_MIN = 0.02
NOISE_STD = SIGMA_MIN / (1 - SIGMA_MIN)  # of the noise in x

# the order of each fixed-step solver
ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


def gaussian(shape, *, sigma_max=1.0, **options):
    """The probability flow of data N(m, d^2), and the exact distribution of the data with their noise."""
    size = math.prod(shape)
    m = torch.linspace(-1, 1.5, size, dtype=torch.float64).reshape(shape)
    d = torch.linspace(0.4, 1.6, size, dtype=torch.float64).reshape(shape)

    def denoise(z, level):
        a, s, _ = level
        return m + a * d**2 / (s**2 + (a * d) ** 2) * (z - a * m)

    base = dist.Normal((1 - sigma_max) * m, (((1 - sigma_max) * d) ** 2 + sigma_max**2).sqrt()).to_event(len(shape))
    exact = dist.Normal(m, (d**2 + NOISE_STD**2).sqrt()).to_event(len(shape))
    return ProbabilityFlow(denoise, base, sigma_min=SIGMA_MIN, sigma_max=sigma_max, **options), exact


def random_flow(dim, *, context=None, batch=(), seed=0, **options):
    """The probability flow of a network with random weights, and the network."""
    torch.manual_seed(seed)
    width = 0 if context is None else context.shape[-1]
    network = ResidualDense((dim,), (dim,), hidden=(6, 6), context_dim=Denoiser.level_dim + width)
    denoiser = Denoiser(network, (dim,)).double()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    base = dist.Normal(torch.zeros(*batch, dim, dtype=torch.float64), 1.0).to_event(1)
    return ProbabilityFlow(lambda z, level: denoiser(z, level, context), base, sigma_min=SIGMA_MIN, **options), denoiser


@pytest.mark.parametrize("sigma_max", [1.0, 0.95])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2, 2)], ids=str)
def test_the_density_of_gaussian_data_is_exact(shape, sigma_max):
    distribution, exact = gaussian(shape, sigma_max=sigma_max, steps=40)
    torch.manual_seed(0)
    x = exact.sample((20,))
    assert (distribution.batch_shape, distribution.event_shape) == (torch.Size(), torch.Size(shape))
    torch.testing.assert_close(distribution.log_prob(x), exact.log_prob(x), rtol=0, atol=2e-6)
    torch.manual_seed(0)
    z = (distribution.base.sample((20,)) - distribution.base.mean) / distribution.base.stddev
    torch.manual_seed(0)
    torch.testing.assert_close(distribution.rsample((20,)), exact.mean + exact.stddev * z, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", ORDERS)
def test_fixed_step_solvers_converge_at_their_order(solver):
    x = gaussian((2,))[1].sample((20,))
    errors = []
    for steps in (40, 80):
        distribution, exact = gaussian((2,), solver=solver, steps=steps)
        errors.append(float((distribution.log_prob(x) - exact.log_prob(x)).detach().abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=0.3)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ORDERS])
def test_adaptive_solvers_meet_their_tolerance(solver):
    distribution, exact = gaussian((2,), solver=solver, tolerance=1e-4)
    x = exact.sample((5,))
    torch.testing.assert_close(distribution.log_prob(x), exact.log_prob(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_of_any_network_integrates_to_one(dim):
    distribution, _ = random_flow(dim, steps=15)
    with torch.no_grad():
        axis = torch.linspace(-8, 8, 400 if dim == 1 else 80, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
        density = distribution.log_prob(grid).exp()
        normal = dist.Normal(torch.zeros(dim, dtype=torch.float64), 1.0).to_event(1).log_prob(grid).exp()
    cell = float(axis[1] - axis[0]) ** dim
    assert density.sum() * cell == pytest.approx(1, abs=2e-3)
    assert (density - normal).abs().max() > 0.02  # the network has an effect


@pytest.mark.parametrize("probes", [None, 3])
def test_rsample_and_log_prob_agrees_with_separate_calls(probes):
    distribution, _ = random_flow(2, steps=20, probes=probes)
    torch.manual_seed(1)
    x, log_prob = distribution.rsample_and_log_prob((4,))
    torch.manual_seed(1)
    torch.testing.assert_close(distribution.rsample((4,)), x)
    if probes is None:
        torch.testing.assert_close(distribution.log_prob(x), log_prob, rtol=0, atol=1e-4)


def test_hutchinsons_estimate_is_unbiased():
    exact, _ = random_flow(3, steps=5)
    rough, _ = random_flow(3, steps=5, probes=2)
    with torch.no_grad():
        x = torch.randn(3, dtype=torch.float64)
        draws = rough.log_prob(x.expand(4000, 3))
        # four standard errors (p-value 6e-5)
        assert (draws.mean() - exact.log_prob(x)).abs() < 4 * draws.std() / len(draws) ** 0.5
    assert draws.std() > 1e-3


def test_the_exact_density_uses_no_random_numbers():
    distribution, _ = random_flow(2)
    x = torch.randn(5, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    first = distribution.log_prob(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(distribution.log_prob(x), first)
    with torch.no_grad():
        torch.testing.assert_close(distribution.log_prob(x), first)


def test_gradients_with_respect_to_the_value_and_the_network():
    distribution, denoiser = random_flow(2, steps=4)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distribution.log_prob, (x,))
    parameters = list(denoiser.parameters())
    direction = [torch.randn_like(parameter) for parameter in parameters]
    for value in (
        lambda: distribution.log_prob(x.detach()).sum(),
        lambda: (torch.manual_seed(5), distribution.rsample((3,)).square().sum())[1],
    ):
        gradients = torch.autograd.grad(value(), parameters, allow_unused=True, materialize_grads=True)
        expected = sum((gradient * way).sum() for gradient, way in zip(gradients, direction, strict=True))
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for parameter, way in zip(parameters, direction, strict=True):
                    parameter += step * way
                ends.append(value())
                for parameter, way in zip(parameters, direction, strict=True):
                    parameter -= step * way
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, expected, rtol=1e-5, atol=1e-6)
        assert expected.abs() > 1e-3


def test_the_batch_shape_is_that_of_the_context():
    context = torch.eye(3, dtype=torch.float64)
    distribution, denoiser = random_flow(2, context=context, batch=(3,), steps=5)
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    whole = distribution.log_prob(x)
    assert whole.shape == (4, 3)
    for i in range(3):
        one = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
        single = ProbabilityFlow(
            lambda z, level, i=i: denoiser(z, level, context[i]), one, sigma_min=SIGMA_MIN, steps=5
        )
        torch.testing.assert_close(single.log_prob(x[:, i]), whole[:, i])
    wide = distribution.expand((4, 3))
    assert wide.batch_shape == (4, 3)
    assert wide.rsample((5,)).shape == (5, 4, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), whole)
    torch.testing.assert_close(distribution.log_prob(x[0, 0]), distribution.log_prob(x[0, 0].expand(3, 2)))


def test_a_probability_flow_is_a_prior_in_a_program():
    distribution, _ = random_flow(2, steps=4)

    def model():
        with pyro.plate("data", 3):
            return pyro.sample("z", distribution)

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    assert model().shape == (3, 2)
    guide = pyro.infer.autoguide.AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step()
    before = guide.locs.z.detach().clone()
    svi.step()
    assert (guide.locs.z != before).all()
    site = poutine.trace(poutine.condition(model, {"z": before})).get_trace().nodes["z"]
    torch.testing.assert_close(site["fn"].log_prob(before), distribution.log_prob(before))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 0.0}, r"expected 0 < sigma_min < sigma_max <= 1, got sigma_min=0.0"),
        ({"sigma_max": 1.5}, r"expected 0 < sigma_min < sigma_max <= 1, got .* sigma_max=1.5"),
        ({"solver": "rk5"}, r"expected solver to be one of 'euler', .*, got 'rk5'"),
        ({"steps": 0}, r"expected steps of at least 1 and tolerance above 0, got 0"),
        ({"tolerance": 0.0}, r"expected steps of at least 1 and tolerance above 0, got 20 and 0.0"),
        ({"probes": 0}, r"expected probes of at least 1, or None for the exact trace, got 0"),
        ({"base": dist.Normal(torch.zeros(2), 1.0)}, r"expected a base with event dimensions"),
    ],
)
def test_bad_options_raise(options, message):
    arguments = {"base": dist.Normal(torch.zeros(2), 1.0).to_event(1), "sigma_min": 0.01} | options
    with pytest.raises(ValueError, match=message):
        ProbabilityFlow(lambda z, level: z, **arguments)


# The distribution of a model


def diffusion(event_shape=(2,), **options):
    torch.manual_seed(0)
    model = Diffusion(event_shape, **({"hidden": (8,), "steps": None} | options)).double()
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "karras", "straight", "learned"])
def test_the_distribution_of_a_model_depends_only_on_the_ends_of_the_schedule(schedule):
    ends = {"sigma_min": 0.1} if schedule == "straight" else {"sigma_min": 0.1, "sigma_max": 60.0}
    model, other = diffusion(schedule=schedule, options=ends), diffusion(options={"sigma_min": 0.1, "sigma_max": 60.0})
    other.denoiser.load_state_dict(model.denoiser.state_dict())
    x = torch.randn(5, 2, dtype=torch.float64)
    near = {"atol": 0.2 if schedule == "straight" else 1e-5, "rtol": 0}  # "straight" ends in pure noise
    torch.testing.assert_close(model.log_prob(x), other.log_prob(x), **near)


def test_samples_of_the_adaptive_sampler_follow_the_distribution():
    model = diffusion(options={"sigma_min": 0.001})
    torch.manual_seed(0)
    x = model.sample(50, sampler="adaptive", steps=2, tolerance=1e-6)
    torch.manual_seed(0)
    with torch.no_grad():
        z = model.distribution(steps=200).sample((50,))
    torch.testing.assert_close(x, z, rtol=0, atol=0.02)  # they differ by the last step, to the data


@pytest.mark.parametrize("options", [{}, {"num_classes": 2}, {"context_dim": 3}, {"schedule": "learned"}], ids=str)
def test_the_program_in_continuous_time_has_the_density(options):
    pyro.clear_param_store()
    model = diffusion(**options)
    x = torch.randn(4, 2, dtype=torch.float64)
    y = {"num_classes": [torch.tensor([0, 1, 1, 0])], "context_dim": [torch.randn(4, 3)]}.get(
        next(iter(options), ""), []
    )
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert svi.evaluate_loss(x, *y) == pytest.approx(-float(model.log_prob(x, *y).sum()))
    before = [parameter.clone() for parameter in model.denoiser.parameters()]
    svi.step(x, *y)
    assert any((old != new).any() for old, new in zip(before, model.denoiser.parameters(), strict=True))


def exact_levels(model, noise):
    """The probability of each level, by quadrature, for events of one number."""
    width = 2 / (model.levels - 1)
    step = width / 100
    z = torch.arange(-4, 4, step, dtype=torch.float64) + step / 2
    with torch.no_grad():
        density = model.distribution().log_prob(z[:, None]).exp() * step
        if noise == "uniform":
            probs = (((z + 1) / width + 0.5).floor()[:, None] == torch.arange(model.levels)).double()
        else:
            probs = model.observation(
                model.schedule(torch.zeros((), dtype=torch.float64)).signal * z[:, None]
            ).base_dist.probs[:, 0]
    return density @ probs


@pytest.mark.parametrize(("noise", "within"), [("uniform", slice(0, 5)), ("normal", slice(1, 4))])
def test_probabilities_of_levels(noise, within):
    """The first and last level are left out for normal noise: p is wider, so the weights have infinite variance."""
    model = diffusion((1,), levels=5, options={"sigma_min": 0.25})
    exact = exact_levels(model, noise)
    levels, n = torch.arange(5), 1000
    torch.manual_seed(2)
    one, four = (
        model.log_prob(levels.repeat(n)[:, None], noise=noise, particles=particles, steps=10).reshape(n, 5)
        for particles in (1, 4)
    )
    assert (one.mean(0) < four.mean(0)).all()
    assert (four.mean(0) < exact.log() + 0.01).all()
    # eight tests at 4.5 standard errors (p-value 1 / 15000)
    error = (one.exp().mean(0) - exact).abs() / (one.exp().std(0) / n**0.5)
    assert (error[within] < 4.5).all()


def test_the_program_with_levels_is_the_bound():
    pyro.clear_param_store()
    model = diffusion(levels=3)
    x = torch.tensor([[0, 2], [1, 1]])
    torch.manual_seed(3)
    loss = Trace_ELBO().loss(model.model, model.guide, x)
    torch.manual_seed(3)
    assert loss == pytest.approx(-float(model.log_prob(x).sum()))


def test_bad_options_of_a_model_raise():
    with pytest.raises(ValueError, match="expected particles of at least 1, got 0"):
        diffusion(levels=3).log_prob(torch.zeros(2, 2), particles=0)
    with pytest.raises(ValueError, match="expected noise to be one of 'uniform', 'normal', got 'flow'"):
        diffusion(levels=3).log_prob(torch.zeros(2, 2), noise="flow")
    with pytest.raises(ValueError, match="expected no labels y"):
        diffusion().distribution(torch.zeros(2, dtype=torch.long))
