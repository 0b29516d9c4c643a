"""Data mapped to the base space of a flow: the divergence in both spaces, its estimate, and tests of the base."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from ppgen.evaluation import base_space_test
from ppgen.flows import FLOWS, Flow

RNG = np.random.default_rng(0)
BISECTED = ("naf", "sum_of_squares", "bernstein")  # flows that are expensive to sample


@pytest.fixture(autouse=True)
def _double():
    threads, before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def perturbed_flow(name: str, dim: int) -> Flow:
    flow = FLOWS[name](dim, **({} if name == "lu_linear" else {"hidden": (8,)}))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


# The divergence in both spaces


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FLOWS if name not in ("nice", "realnvp", "nsf", "continuous")])
def test_the_kl_by_quadrature_is_the_same_in_x_and_in_z(name):
    """Integrals of p log p/q over x and of p_z log p_z/base over z, with p_z by the change of variables."""
    flow, data = perturbed_flow(name, 1), dist.Normal(0.3, 0.6)
    distribution = flow()
    with torch.no_grad():
        x = torch.linspace(-5.0, 5.5, 40001)
        p, q = data.log_prob(x), distribution.log_prob(x[:, None])
        in_x = torch.trapezoid(p.exp() * (p - q), x)
        ends = distribution.inverse(x[[0, -1], None]).flatten().sort().values  # a map may be decreasing
        z = torch.linspace(*ends.tolist(), 4001 if name in BISECTED else 40001)
        mapped = distribution.transform(z[:, None])
        p_z = data.log_prob(mapped[:, 0]) - distribution.inverse_and_log_det(mapped)[1]
        in_z = torch.trapezoid(p_z.exp() * (p_z - flow.base.log_prob(z[:, None])), z)
    assert float(in_x) == pytest.approx(float(in_z), rel=5e-3, abs=1e-4)
    assert in_x > 0.05


def gaussian_kl(p: dist.MultivariateNormal, q: dist.MultivariateNormal) -> float:
    return float(torch.distributions.kl_divergence(p, q))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_kl_of_gaussians_under_a_linear_flow_is_the_same_in_x_and_in_z(dim):
    """Both are in closed form, and the estimate from 600 rows is within 4 standard errors (level 6e-5 each)."""
    flow = perturbed_flow("lu_linear", dim)
    with torch.no_grad():
        matrix = torch.autograd.functional.jacobian(flow().inverse, torch.zeros(dim))
        factor = torch.eye(dim) + 0.4 * torch.randn(dim, dim).tril()
        p = dist.MultivariateNormal(0.3 * torch.ones(dim), scale_tril=factor)
        q = dist.MultivariateNormal(torch.zeros(dim), torch.linalg.inv(matrix.mT @ matrix))
        in_z = dist.MultivariateNormal(matrix @ p.loc, matrix @ p.covariance_matrix @ matrix.mT)
        exact = gaussian_kl(p, q)
        assert exact == pytest.approx(gaussian_kl(in_z, dist.MultivariateNormal(torch.zeros(dim), torch.eye(dim))))
        z = flow().inverse(p.sample((600,)))
    result = base_space_test(z, flow.base, simulations=1)
    assert abs(result.kl - exact) < 4 * result.error
    assert result.error < 0.15


# The estimate


@pytest.mark.parametrize(("dim", "scale"), [(1, 1.0), (3, 0.7), (20, 1.0), (20, 1.3)])
def test_the_estimate_is_unbiased_for_gaussians_in_any_dimension(dim, scale):
    """The mean of 12 estimates from 200 rows each is within 4 standard errors, and the reported errors are right."""
    exact = dim * (scale**2 / 2 - 0.5 - math.log(scale))
    result = [base_space_test(scale * RNG.normal(size=(200, dim)), simulations=1, seed=seed) for seed in range(12)]
    values, errors = np.array([f.kl for f in result]), np.array([f.error for f in result])
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(12)
    assert 0.4 < values.std(ddof=1) / errors.mean() < 1.8  # 12 draws of a chi with 11 degrees: 0.47 .. 1.6 at 1e-2


def test_the_estimate_detects_two_modes_in_the_plane():
    """Each axis has modes at +-0.9 of width 0.44, with mean 0 and variance 1, so that only the shape differs."""
    t = np.linspace(-6, 6, 4001)
    p = sum(np.exp(-0.5 * ((t - m) / 0.44) ** 2) for m in (-0.9, 0.9)) / (2 * 0.44 * math.sqrt(2 * math.pi))
    q = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    exact = 2 * np.trapezoid(p * np.log(p / q, where=p > 0, out=np.zeros_like(p)), t)
    z = RNG.choice([-0.9, 0.9], (800, 2)) + 0.44 * RNG.normal(size=(800, 2))
    result = base_space_test(z)
    assert result.kl == pytest.approx(exact, abs=4 * result.error)
    assert result.coordinates.p_value == result.sliced.p_value == 1 / 200


def test_the_kl_of_rows_without_a_density_is_infinite():
    z = RNG.normal(size=(60, 2))
    assert base_space_test(np.repeat(z, 5, axis=0), simulations=1).kl == math.inf
    assert base_space_test(z[:, [0, 0]], simulations=1).kl == math.inf


# The tests


def test_the_tests_control_their_level():
    """The number of p <= 0.2 in 60 samples of the base is binomial, above 23 with probability 1e-3, for any base."""
    for base in (None, dist.Laplace(torch.zeros(3), 1.0).to_event(1)):
        sampler = dist.Normal(torch.zeros(3), 1.0).to_event(1) if base is None else base
        result = [base_space_test(sampler.sample((40,)), base, simulations=19, repeats=2, seed=i) for i in range(60)]
        for p in ([f.coordinates.p_value for f in result], [f.sliced.p_value for f in result]):
            assert 2 <= sum(value <= 0.2 for value in p) <= 23


def test_each_test_detects_its_alternative():
    z = RNG.normal(size=(300, 4))
    shifted = z + np.array([0, 0, 0.5, 0])
    result = base_space_test(shifted)
    assert result.gaps.argmax() == 2
    assert result.coordinates.p_value == 1 / 200
    dependent = z.copy()
    dependent[:, 1:] = np.sign(z[:, :1]) * np.abs(z[:, 1:])  # marginals stay N(0, 1)
    result = base_space_test(dependent)
    assert result.coordinates.p_value > 0.005
    assert result.sliced.p_value == 1 / 200
    assert result.kl > 5 * result.error


def test_images_are_flattened_and_the_random_state_is_kept():
    z, state = torch.randn(50, 1, 2, 2), torch.random.get_rng_state()
    one, two = (base_space_test(rows, seed=3, simulations=5) for rows in (z, z.flatten(1)))
    assert (one.kl, one.sliced.p_value) == (two.kl, two.sliced.p_value)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (np.zeros((4, 3)), {}, "at least 5 rows of 3 numbers"),
        (np.full((9, 2), np.nan), {}, "not finite"),
        (np.zeros((9, 2)), {"k": 9}, "k: expected 1 to 8"),
        (np.zeros((9, 2)), {"simulations": 0}, "simulations"),
        (np.zeros((9, 2)), {"repeats": 1}, "repeats"),
    ],
)
def test_arguments_are_checked(z, options, message):
    with pytest.raises(ValueError, match=message):
        base_space_test(z, **options)
    with pytest.raises(TypeError, match="NumPy array or a torch tensor"):
        base_space_test([[1.0]])
