"""Maximum mean discrepancy and energy distance against sums over pairs, closed forms and SciPy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.helpers import close, mean_and_error, metric_and_gradients, normal, uniform
from metrics.registry import rational
from torch import Tensor

from ppgen.metrics import MMD, EnergyDistance
from ppgen.metrics.kernel import median_squared_distance
from ppgen.metrics.metric import squared_distances
from ppgen.metrics.pairs import pair_blocks


def sum_over_pairs(k, x: Tensor, y: Tensor, p: Tensor, q: Tensor, unbiased: bool) -> float:
    """The quadratic form as loops over pairs."""

    def within(z: Tensor, r: Tensor) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j or not unbiased]
        return sum(r[i] * r[j] * k(z[i], z[j]) for i, j in pairs) / sum(r[i] * r[j] for i, j in pairs)

    cross = sum(p[i] * q[j] * k(x[i], y[j]) for i in range(len(x)) for j in range(len(y)))
    return within(x, p) + within(y, q) - 2 * cross / (p.sum() * q.sum())


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(
    ("options", "similarity"),
    [
        ({"kernel": "rbf"}, lambda d, s: math.exp(-(d**2) / (2 * s**2))),
        ({"kernel": "imq"}, lambda d, s: 2 * s**2 / (2 * s**2 + d**2)),
        ({"kernel": rational}, lambda d, s: 1 / math.sqrt(1 + d**2 / s**2)),
    ],
)
def test_mmd_is_the_sum_over_pairs(options, similarity, unbiased, generator):
    x, y, p, q = normal(generator, 5, 3), normal(generator, 5, 3) + 1, *uniform(generator, 2, 5)
    metric = MMD(**options, bandwidth=0.7, scales=(0.5, 1.0, 3.0), unbiased=unbiased)

    def k(a: Tensor, b: Tensor) -> float:
        return sum(similarity(math.dist(a, b), scale * 0.7) for scale in (0.5, 1.0, 3.0)) / 3

    close(metric(x, y, p, q), sum_over_pairs(k, x, y, p, q, unbiased))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_energy_distance_is_the_sum_over_pairs(exponent, unbiased, generator):
    x, y, p, q = normal(generator, 5, 3), normal(generator, 5, 3) + 1, *uniform(generator, 2, 5)
    expected = sum_over_pairs(lambda a, b: -(math.dist(a, b) ** exponent), x, y, p, q, unbiased)
    close(EnergyDistance(exponent=exponent, unbiased=unbiased)(x, y, p, q), expected)


def test_energy_distance_is_the_square_of_that_of_scipy(generator):
    x, y, p, q = normal(generator, 30), normal(generator, 30) * 2 + 1, *uniform(generator, 2, 30)
    close(EnergyDistance(unbiased=False)(x, y, p, q), scipy.stats.energy_distance(x, y, p, q) ** 2)


def test_mmd_of_gaussians(generator):
    """``E exp(-|u|^2 / 2 s^2) = (s^2 / (s^2 + v))^(d/2) exp(-|m|^2 / 2 (s^2 + v))``, ``u ~ N(m, v I)``."""
    shift, (sx, sy), s, d = torch.tensor([1.0, -0.5, 0.25]), (1.0, 0.6), 1.3, 3

    def expectation(v: float, squared: float) -> float:
        return (s**2 / (s**2 + v)) ** (d / 2) * math.exp(-squared / (2 * (s**2 + v)))

    cross = expectation(sx**2 + sy**2, shift.square().sum().item())
    expected = expectation(2 * sx**2, 0) + expectation(2 * sy**2, 0) - 2 * cross
    metric = MMD(bandwidth=s, scales=(1.0,))
    x, y = sx * normal(generator, 300, 40, d), sy * normal(generator, 300, 30, d) + shift
    mean, error = mean_and_error(metric, x, y)
    assert abs(mean - expected) < 4 * error  # level 6e-5
    assert error < 0.02 * expected


def test_energy_distance_of_gaussians(generator):
    """``E|u|`` for ``u ~ N(m, v)`` is the mean of the folded normal."""
    shift, sx, sy = 0.8, 1.0, 0.5

    def expectation(m: float, v: float) -> float:
        return math.sqrt(2 * v / math.pi) * math.exp(-(m**2) / (2 * v)) + m * math.erf(m / math.sqrt(2 * v))

    expected = 2 * expectation(shift, sx**2 + sy**2) - expectation(0, 2 * sx**2) - expectation(0, 2 * sy**2)
    x, y = sx * normal(generator, 300, 40), sy * normal(generator, 300, 30) + shift
    mean, error = mean_and_error(EnergyDistance(), x, y)
    assert abs(mean - expected) < 4 * error  # level 6e-5
    assert error < 0.03 * expected


def test_energy_distance_scales_with_the_data(generator):
    x, y = normal(generator, 6, 2), normal(generator, 5, 2)
    close(EnergyDistance(exponent=1.5)(4 * x, 4 * y), 8 * EnergyDistance(exponent=1.5)(x, y))


def test_the_imq_kernel_is_that_of_wasserstein_autoencoders(generator):
    """``C / (C + |x - y|^2)`` with ``C = 2 d sigma_z^2`` (Tolstikhin et al. 2018, section 4)."""
    x, y, d, sigma_z = normal(generator, 6, 8), normal(generator, 5, 8), 8, 1.5
    c = 2 * d * sigma_z**2
    expected = MMD(kernel=lambda d2: c / (c + d2), bandwidth=1.0, scales=(1.0,))(x, y)
    close(MMD(kernel="imq", bandwidth=sigma_z * math.sqrt(d), scales=(1.0,))(x, y), expected)


def test_second_derivative_if_rows_coincide():
    """``D = 2 - 2 exp(-|x - y|^2 / 2 s^2)`` of one row each has the Hessian ``2 I / s^2`` at ``x = y``."""
    metric, y = MMD(bandwidth=0.5, scales=(1.0,), unbiased=False), torch.ones(1, 3).double()
    hessian = torch.autograd.functional.hessian(lambda x: metric(x, y), y)
    close(hessian.reshape(3, 3), 8 * torch.eye(3))


# The median bandwidth


def median(z: Tensor, r: Tensor) -> Tensor:
    """The median over one sample, which is given as two."""
    return median_squared_distance(pair_blocks(z[:1], z[1:], r[:1], r[1:]))


def sorted_median(z: Tensor, r: Tensor) -> float:
    pairs = sorted(
        (math.dist(z[i], z[j]) ** 2, (r[i] * r[j]).item())
        for i in range(len(z))
        for j in range(len(z))
        if r[i] * r[j] > 0 and not torch.equal(z[i], z[j])
    )
    cumulative = np.cumsum([mass for _, mass in pairs])
    return pairs[np.searchsorted(cumulative, cumulative[-1] / 2 * (1 - 1e-9))][0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_median_is_the_lower_weighted_median(n, scale, generator):
    z, weights = scale * normal(generator, n, 2), uniform(generator, n)
    weights[-1] = weights[-1] if n < 4 else 0
    for r in (torch.ones(n).double(), weights):
        close(median(z, r) / sorted_median(z, r), 1.0, 1e-9)


def test_median_of_a_large_sample_is_within_a_bin(generator):
    z = normal(generator, 400, 2)
    d2 = squared_distances(z, z)
    positive = d2[d2 > 0]
    width = (positive.max() / positive.min()).log() / 4096
    ratio = median(z, torch.ones(400).double()) / positive.median()
    assert 1 <= ratio <= width.exp()


def test_median_ignores_coincident_rows():
    z = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0]).double()[:, None]
    assert median(z, torch.ones(5).double()) == 9
    assert median(torch.zeros_like(z), torch.ones(5).double()) == 1


def test_gradients_treat_the_median_bandwidth_as_a_constant(generator):
    x, y, w = normal(generator, 6, 2), normal(generator, 5, 2) + 1, uniform(generator, 6)
    pooled = torch.cat((x, y))
    median = sorted_median(pooled, torch.cat((w / w.sum(), torch.full((5,), 0.2))))
    fitted = metric_and_gradients(MMD(), x, y, w)
    fixed = metric_and_gradients(MMD(bandwidth=math.sqrt(median)), x, y, w)
    for actual, expected in zip(fitted, fixed, strict=True):
        close(actual, expected, 1e-9)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (MMD, {"kernel": "laplace"}, r"kernel: expected one of \['rbf', 'imq'\] .*got 'laplace'"),
        (MMD, {"scales": ()}, r"scales: .*got \(\)"),
        (MMD, {"scales": (1.0, 0.0)}, "scales: expected positive numbers, got 0.0"),
        (MMD, {"bandwidth": "mean"}, "bandwidth: expected 'median' or a positive number, got 'mean'"),
        (MMD, {"bandwidth": -1.0}, "bandwidth: .*got -1.0"),
        (MMD, {"bandwidth": math.inf}, "bandwidth: .*got inf"),
        (EnergyDistance, {"exponent": 0.0}, "exponent: .*got 0.0"),
        (EnergyDistance, {"exponent": 2.0}, "exponent: .*got 2.0"),
    ],
)
def test_options_are_checked(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric(**options)
