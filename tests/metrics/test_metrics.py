"""Laws that hold for every metric of samples, closed forms, and the errors for bad input."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import ppgen.metrics
from ppgen.metrics import (
    CORAL,
    MMD,
    CramerVonMises,
    CriticMetric,
    EnergyDistance,
    Frechet,
    KolmogorovSmirnov,
    MaxSlicedWasserstein,
    Metric,
    Sinkhorn,
    SlicedWasserstein,
    Wasserstein,
    kernel,
    pairs,
    rows,
)
from ppgen.metrics.metric import squared_distances


def rational(u: Tensor) -> Tensor:
    return (1 + u).rsqrt()


@dataclass(frozen=True)
class Case:
    """A metric of samples, and which laws it keeps."""

    metric: Metric
    unbiased: bool = False
    """Its mean does not depend on the batch; otherwise it is zero for equal samples."""
    zero: bool = True
    """Where biased, it is zero for equal samples."""
    adaptive: bool = False
    """It fits something to the samples, a scale or a direction, that the gradient takes as a constant."""
    searched: bool = False
    """That something is found by a search, which rounding decides where values differ by no more than rounding."""
    twice: bool = True
    """Second derivatives are those of the value."""
    flat: bool = False
    """Piecewise constant in the rows, whose gradient it refuses."""
    traced: bool = True
    """Nothing is read back into Python."""
    location: bool = True
    """It sees a shift."""
    bounded: bool = False
    """It has a largest value, and an outlier that overflows when squared is one like any other."""


CASES = [
    Case(SlicedWasserstein()),
    Case(SlicedWasserstein(p=1, projections=20)),
    Case(SlicedWasserstein(p=3, projections=20, root=True)),
    Case(MaxSlicedWasserstein(steps=10), adaptive=True, searched=True),
    Case(MaxSlicedWasserstein(p=1, starts=4, steps=5, root=True), adaptive=True, searched=True),
    Case(Sinkhorn(steps=5), adaptive=True, twice=False),
    Case(Sinkhorn(p=1, epsilon=0.2, steps=5, debias=False), adaptive=True, twice=False, zero=False),
    Case(Sinkhorn(epsilon=20.0, unit=1.0, steps=12), twice=False),
    Case(Wasserstein(), twice=False, traced=False),
    Case(Wasserstein(p=1, root=True), twice=False, traced=False),
    Case(Frechet(), twice=False),
    Case(CORAL(), location=False),
    Case(KolmogorovSmirnov(), flat=True, bounded=True),
    Case(KolmogorovSmirnov(projections=20, over="max", temperature=0.1), bounded=True),
    Case(CramerVonMises(over="max"), flat=True, bounded=True),
    Case(CramerVonMises(temperature=0.3), bounded=True),
    Case(MMD(), unbiased=True, adaptive=True),
    Case(MMD(kernel="imq", unbiased=False), unbiased=False, adaptive=True),
    Case(MMD(kernel="imq", bandwidth=1.5), unbiased=True),
    Case(MMD(bandwidth=1.5, unbiased=False), unbiased=False),
    Case(MMD(kernel=rational, bandwidth=1.0, scales=(1.0,)), unbiased=True),
    Case(EnergyDistance(), unbiased=True),
    Case(EnergyDistance(exponent=0.5, unbiased=False), unbiased=False),
]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("metric", [pytest.param(c.metric, id=repr(c.metric)) for c in cases])


every = over(CASES)
unbiased = over([case for case in CASES if case.unbiased])
biased = over([case for case in CASES if not case.unbiased])
zero = over([case for case in CASES if case.zero and not case.unbiased])
located = over([case for case in CASES if case.location])
smooth = over([case for case in CASES if not case.flat])
traceable = over([case for case in CASES if case.traced])
fixed = pytest.mark.parametrize("case", [pytest.param(c, id=repr(c.metric)) for c in CASES if not c.adaptive | c.flat])
fixed_unbiased = over([case for case in CASES if case.unbiased and not case.adaptive])


FLAT = {case.metric for case in CASES if case.flat}
BOUNDED = {case.metric for case in CASES if case.bounded}
SEARCHED = {case.metric for case in CASES if case.searched}


@pytest.fixture(autouse=True)
def _same_directions(monkeypatch):
    """Random directions are the same in every call, so that values can be compared."""
    call = Metric.__call__

    def seeded(*arguments: Any) -> Tensor:
        torch.manual_seed(3)
        return call(*arguments)

    monkeypatch.setattr(Metric, "__call__", seeded)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def mean_and_error(metric: Metric, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean of the metric over a leading dimension of repeats, and its standard error."""
    values = torch.vmap(metric)(x, y)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def value_and_gradients(metric: Metric, x: Tensor, y: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    if metric in FLAT:
        return metric(x, y, *weights), torch.zeros_like(x), torch.zeros_like(y)
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = metric(x, y, *weights)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def slack(metric: Metric, tolerance: float) -> float:
    """At a maximum, values to within a tolerance are arguments and gradients to within its root."""
    return math.sqrt(tolerance) if metric in SEARCHED else tolerance


# Laws over the registry


def test_registry_holds_every_exported_metric():
    exported = {getattr(ppgen.metrics, name) for name in ppgen.metrics.__all__}
    metrics = {thing for thing in exported if inspect.isclass(thing) and issubclass(thing, Metric)} - {Metric}
    of_samples = {metric for metric in metrics if not issubclass(metric, CriticMetric)}
    assert {type(case.metric) for case in CASES} == of_samples


@unbiased
def test_unbiased_has_mean_zero_for_equal_laws(metric, generator):
    mean, error = mean_and_error(metric, *normal(generator, 2, 1000, 8, 2))
    assert abs(mean) < 4 * error  # level 6e-5


@zero
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-14)])
def test_biased_is_zero_for_equal_samples(metric, dtype, tolerance, generator):
    x = normal(generator, 9, 3, dtype=dtype)
    assert metric(x, x.flip(0)).abs() < tolerance
    assert metric(x, 2 * x + 1) > 0.01


@located
def test_larger_for_a_larger_shift(metric, generator):
    x, y = normal(generator, 50, 2), normal(generator, 50, 2)
    near, middle, far = (metric(x, y + shift).item() for shift in (0.0, 1.0, 2.0))
    assert near + 0.05 < middle < far - 0.05


@fixed_unbiased
def test_batch_size_leaves_the_mean(metric, generator):
    def draw(repeats: int, n: int, m: int) -> tuple[Tensor, Tensor]:
        return normal(generator, repeats, n, 2), normal(generator, repeats, m, 2) + 1

    small, small_error = mean_and_error(metric, *draw(4000, 3, 2))
    large, large_error = mean_and_error(metric, *draw(500, 12, 16))
    assert abs(small - large) < 4 * math.hypot(small_error, large_error)  # level 6e-5


@every
def test_symmetric(metric, generator):
    x, y, wx, wy = normal(generator, 6, 2), normal(generator, 4, 2) + 1, *uniform(generator, 2, 6)
    close(metric(x, y, wx, wy[:4]), metric(y, x, wy[:4], wx))


@every
def test_order_of_rows_does_not_matter(metric, generator):
    x, y, w = normal(generator, 7, 2), normal(generator, 5, 2) + 1, uniform(generator, 7)
    order = torch.randperm(7, generator=generator)
    close(metric(x[order], y.flip(0), w[order]), metric(x, y, w))


@every
def test_uniform_weights_are_none(metric, generator):
    x, y = normal(generator, 6, 2), normal(generator, 4, 2)
    close(metric(x, y, torch.full((6,), 3.0), torch.ones(4, dtype=torch.bool)), metric(x, y))


@every
def test_scale_of_weights_does_not_matter(metric, generator):
    x, y, wx, wy = normal(generator, 5, 2), normal(generator, 5, 2) + 1, *uniform(generator, 2, 5)
    close(metric(x, y, 10 * wx, wy / 3), metric(x, y, wx, wy))
    assert abs(metric(x, y, wx, wy) - metric(x, y)) > 1e-4


@biased
def test_integer_weights_are_repeated_rows(metric, generator):
    x, y = normal(generator, 5, 2), normal(generator, 3, 2) + 1
    wx, wy = torch.tensor([3, 0, 1, 2, 1]), torch.tensor([1, 4, 1])
    close(metric(x, y, wx, wy), metric(x.repeat_interleave(wx, 0), y.repeat_interleave(wy, 0)))


@every
def test_rows_of_weight_zero_drop_out(metric, generator):
    x, y, wx, wy = normal(generator, 6, 2), normal(generator, 5, 2) + 1, *uniform(generator, 2, 6)
    wy = wy[:5]
    wx[[1, 4]] = 0
    wy[0] = 0
    value, grad_x, grad_y = value_and_gradients(metric, x, y, wx, wy)
    kept = value_and_gradients(metric, x[wx > 0], y[wy > 0], wx[wx > 0], wy[wy > 0])
    for actual, expected in zip((value, grad_x[wx > 0], grad_y[wy > 0]), kept, strict=True):
        close(actual, expected, slack(metric, 1e-12))
    assert not grad_x[wx == 0].any()
    assert not grad_y[wy == 0].any()

    x[1], x[4], y[0] = math.nan, 1e30, math.inf
    for actual, expected in zip(value_and_gradients(metric, x, y, wx, wy), (value, grad_x, grad_y), strict=True):
        assert torch.equal(actual, expected)  # to the last bit, whatever the rows hold


@every
def test_a_sample_without_weight_compares_to_nothing(metric, generator):
    x, y = normal(generator, 4, 2), normal(generator, 4, 2)
    for weights in ((torch.zeros(4), None), (None, torch.zeros(4)), (torch.zeros(4), torch.zeros(4))):
        assert not any(part.any() for part in value_and_gradients(metric, x, y, *weights))


@every
def test_one_weighted_row_is_a_point_mass(metric, generator):
    x, y = normal(generator, 4, 2), normal(generator, 5, 2)
    one = torch.tensor([0.0, 0.0, 2.0, 0.0])
    value, grad_x, _ = value_and_gradients(metric, x, y, one)
    assert grad_x.isfinite().all()
    close(value, metric(x[2].repeat(3, 1), y))


@every
def test_a_tuple_is_the_concatenation(metric, generator):
    x, y = normal(generator, 6, 5), normal(generator, 4, 5) + 1
    joined = metric((x[:, 0], x[:, 1:].reshape(6, 2, 2)), (y[:, 0], y[:, 1:].reshape(4, 2, 2)))
    assert torch.equal(joined, metric(x, y))


@every
def test_an_image_is_its_flattened_rows(metric, generator):
    x, y = normal(generator, 6, 2, 3, 3), normal(generator, 4, 2, 3, 3)
    assert torch.equal(metric(x, y), metric(x.flatten(1), y.flatten(1)))


@fixed
def test_gradients_are_those_of_finite_differences(case, generator):
    x, y, w = normal(generator, 3, 2), normal(generator, 4, 2) + 1, uniform(generator, 3)
    inputs = (x.requires_grad_(), y.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(case.metric, inputs)
    assert not case.twice or torch.autograd.gradgradcheck(case.metric, inputs)


@smooth
@pytest.mark.parametrize("apart", [0.0, 1e-6])
def test_gradients_are_finite_where_rows_coincide(metric, apart, generator):
    base = normal(generator, 4, 2, dtype=torch.float32)
    x, y = torch.cat((base, base + apart)).requires_grad_(), base.clone().requires_grad_()
    value = metric(x, y)
    first = torch.autograd.grad(value, (x, y), create_graph=True)
    second = torch.autograd.grad(torch.cat(first).square().sum(), (x, y))
    assert all(part.isfinite().all() for part in (value, *first, *second))


@every
def test_gradients_are_finite_where_all_rows_are_equal(metric):
    x, y = torch.ones(3, 2), torch.ones(4, 2)
    for part in value_and_gradients(metric, x, y):
        close(part, torch.zeros_like(part), 1e-6)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25])
def test_samples_that_are_not_finite_give_no_finite_value(metric, bad, generator):
    x, y = normal(generator, 4, 2, dtype=torch.float32), normal(generator, 5, 2, dtype=torch.float32)
    x[1, 0] = bad  # the square of the last overflows
    assert not metric(x, y).isfinite() or (bad == 1e25 and metric in BOUNDED)


@every
def test_origin_does_not_matter_in_float32(metric, generator):
    # Coordinates on a grid that float32 still resolves at 1e3: moving them there loses nothing.
    x, y = ((normal(generator, n, 2, dtype=torch.float32) * 256).round() / 256 for n in (30, 20))
    w = torch.arange(30.0) % 3
    here, there = (value_and_gradients(metric, x + far, y + far, w) for far in (0.0, 1e3))
    exact = value_and_gradients(metric, x.double(), y.double(), w)
    if metric in SEARCHED:  # the maximum may be at a direction where two rows change places, and the gradient jumps
        here, there, exact = here[:1], there[:1], exact[:1]
    for actual, shifted, expected in zip(here, there, exact, strict=True):
        close(actual, expected, slack(metric, 1e-5))
        close(shifted, expected, slack(metric, 1e-5))


@traceable
def test_traced_is_eager(metric, generator):
    def step(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return value_and_gradients(metric, x, y, w)

    def draw(scale: float) -> tuple[Tensor, ...]:
        return scale * normal(generator, 6, 2), normal(generator, 4, 2) + 1, uniform(generator, 6)

    traced = make_fx(step)(*draw(1.0))
    other = draw(3.0)
    other[2][0] = 0  # a weight that was positive when the step was traced
    eager = step(*other)
    torch.manual_seed(3)
    for actual, expected in zip(traced(*other), eager, strict=True):
        close(actual, expected)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_a_scalar_of_the_samples_dtype(metric, dtype, generator):
    x, y = normal(generator, 3, dtype=dtype), normal(generator, 4, dtype=dtype)
    value = metric(x, y, uniform(generator, 3))
    assert value.shape == ()
    assert value.dtype == dtype


@every
def test_repr_is_the_constructor_call(metric):
    again = eval(repr(metric), {**vars(ppgen.metrics), "rational": rational})
    assert repr(again) == repr(metric)
    assert vars(again) == vars(metric)


def test_repr_and_name_leave_defaults_out():
    assert repr(MMD()) == "MMD()"
    assert repr(MMD(kernel="imq", scales=[1])) == "MMD(kernel='imq', scales=(1,))"
    assert repr(EnergyDistance(name="codes", exponent=0.5)) == "EnergyDistance(name='codes', exponent=0.5)"
    assert (MMD().name, EnergyDistance(name="codes").name) == ("MMD", "codes")


# Closed forms and brute force


def by_hand(k, x: Tensor, y: Tensor, p: Tensor, q: Tensor, unbiased: bool) -> float:
    """The quadratic form as loops over pairs."""

    def own(z: Tensor, r: Tensor) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j or not unbiased]
        return sum(r[i] * r[j] * k(z[i], z[j]) for i, j in pairs) / sum(r[i] * r[j] for i, j in pairs)

    cross = sum(p[i] * q[j] * k(x[i], y[j]) for i in range(len(x)) for j in range(len(y)))
    return own(x, p) + own(y, q) - 2 * cross / (p.sum() * q.sum())


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

    close(metric(x, y, p, q), by_hand(k, x, y, p, q, unbiased))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_energy_is_the_sum_over_pairs(exponent, unbiased, generator):
    x, y, p, q = normal(generator, 5, 3), normal(generator, 5, 3) + 1, *uniform(generator, 2, 5)
    expected = by_hand(lambda a, b: -(math.dist(a, b) ** exponent), x, y, p, q, unbiased)
    close(EnergyDistance(exponent=exponent, unbiased=unbiased)(x, y, p, q), expected)


def test_energy_is_the_square_of_scipys(generator):
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


def test_energy_of_gaussians(generator):
    """``E|u|`` for ``u ~ N(m, v)`` is the mean of the folded normal."""
    shift, sx, sy = 0.8, 1.0, 0.5

    def expectation(m: float, v: float) -> float:
        return math.sqrt(2 * v / math.pi) * math.exp(-(m**2) / (2 * v)) + m * math.erf(m / math.sqrt(2 * v))

    expected = 2 * expectation(shift, sx**2 + sy**2) - expectation(0, 2 * sx**2) - expectation(0, 2 * sy**2)
    x, y = sx * normal(generator, 300, 40), sy * normal(generator, 300, 30) + shift
    mean, error = mean_and_error(EnergyDistance(), x, y)
    assert abs(mean - expected) < 4 * error  # level 6e-5
    assert error < 0.03 * expected


def test_energy_scales_with_the_data(generator):
    x, y = normal(generator, 6, 2), normal(generator, 5, 2)
    close(EnergyDistance(exponent=1.5)(4 * x, 4 * y), 8 * EnergyDistance(exponent=1.5)(x, y))


def test_imq_is_that_of_wasserstein_autoencoders(generator):
    """``C / (C + |x - y|^2)`` with ``C = 2 d sigma_z^2`` (Tolstikhin et al. 2018, section 4)."""
    x, y, d, sigma_z = normal(generator, 6, 8), normal(generator, 5, 8), 8, 1.5
    c = 2 * d * sigma_z**2
    expected = MMD(kernel=lambda d2: c / (c + d2), bandwidth=1.0, scales=(1.0,))(x, y)
    close(MMD(kernel="imq", bandwidth=sigma_z * math.sqrt(d), scales=(1.0,))(x, y), expected)


# Blocks of pairs, for samples whose pairs do not fit into memory

PAIRS = [case.metric for case in CASES if isinstance(case.metric, kernel.PairMetric)]


@pytest.mark.parametrize("metric", PAIRS, ids=repr)
def test_blocks_change_nothing(metric, monkeypatch, generator):
    x, y, wx, wy = normal(generator, 6, 2), normal(generator, 5, 2) + 1, *uniform(generator, 2, 6)
    wx[4] = 0

    def derivatives(*inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(part.detach().requires_grad_() for part in inputs)
        value = metric(*inputs)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        return value, *first, *torch.autograd.grad(torch.cat(first[:2]).square().sum(), inputs[:2])

    inputs = (x, y, wx, wy[:5])
    at_once = derivatives(*inputs)
    monkeypatch.setattr(pairs, "BLOCK", 18)
    assert len(pairs.pair_blocks(*inputs)) == 2 + 2 + 2
    for expected, actual in zip(at_once, derivatives(*inputs), strict=True):
        close(actual, expected)
    alone = x.clone().requires_grad_()
    close(*torch.autograd.grad(metric(alone, *inputs[1:]), alone), at_once[1])


def test_blocks_refuse_a_kernel_with_parameters(monkeypatch):
    slope = torch.ones((), requires_grad=True)
    learned = MMD(kernel=lambda u: torch.exp(-slope * u), bandwidth=1.0)
    x, y = torch.zeros(6, 2), torch.ones(5, 2)
    assert torch.autograd.grad(learned(x, y), slope)[0] != 0
    monkeypatch.setattr(pairs, "BLOCK", 18)
    with pytest.raises(ValueError, match=r"MMD: .*got 6 rows of x and 5 of y"):
        learned(x, y)


@pytest.mark.parametrize("metric", [MMD(scales=(1.0,)), EnergyDistance()], ids=repr)
def test_blocks_can_be_traced(metric, monkeypatch, generator):
    x, y = normal(generator, 6, 2), normal(generator, 5, 2) + 1
    monkeypatch.setattr(pairs, "BLOCK", 29)
    traced = make_fx(lambda x, y: value_and_gradients(metric, x, y))(x, y)
    for actual, expected in zip(traced(2 * x, y), value_and_gradients(metric, 2 * x, y), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("metric", PAIRS, ids=repr)
def test_blocks_keep_rows_for_the_backward_pass_and_no_pairs(metric, monkeypatch, generator):
    def kept(n: int) -> int:
        sizes = []
        x, y = normal(generator, n, 2).requires_grad_(), normal(generator, n, 2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            metric(x, y)
        return sum(sizes)

    monkeypatch.setattr(pairs, "BLOCK", 40**2 - 1)
    assert kept(39) > 39**2
    assert kept(160) < 50 * 160


# The median bandwidth


def median(z: Tensor, r: Tensor) -> Tensor:
    """Of a sample that is cut in two."""
    return kernel.median_squared_distance(pairs.pair_blocks(z[:1], z[1:], r[:1], r[1:]))


def median_by_hand(z: Tensor, r: Tensor) -> float:
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
        close(median(z, r) / median_by_hand(z, r), 1.0, 1e-9)


def test_median_of_a_large_sample_is_within_a_bin(generator):
    z = normal(generator, 400, 2)
    d2 = squared_distances(z, z)
    positive = d2[d2 > 0]
    width = (positive.max() / positive.min()).log() / 4096
    ratio = median(z, torch.ones(400).double()) / positive.median()
    assert 1 <= ratio <= width.exp()


def test_median_passes_over_coincident_rows():
    z = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0]).double()[:, None]
    assert median(z, torch.ones(5).double()) == 9
    assert median(torch.zeros_like(z), torch.ones(5).double()) == 1


def test_median_bandwidth_is_a_constant_to_the_gradient(generator):
    x, y, w = normal(generator, 6, 2), normal(generator, 5, 2) + 1, uniform(generator, 6)
    pooled = torch.cat((x, y))
    median = median_by_hand(pooled, torch.cat((w / w.sum(), torch.full((5,), 0.2))))
    fitted = value_and_gradients(MMD(), x, y, w)
    fixed = value_and_gradients(MMD(bandwidth=math.sqrt(median)), x, y, w)
    for actual, expected in zip(fitted, fixed, strict=True):
        close(actual, expected, 1e-9)


# Distances


def test_distances_are_exact_at_zero_and_close_elsewhere(generator):
    x = normal(generator, 50, 20, dtype=torch.float32) + 100
    d2 = squared_distances(x, x)
    assert not d2.diagonal().any()
    exact = (x.double()[:, None] - x.double()).square().sum(-1)
    close(d2.double(), exact, 1e-5)
    near = torch.tensor([[-1.0], [1.0], [1.0 + 2**-8]])
    close(squared_distances(near, near)[1, 2], 2**-16, 1e-6)


def test_second_derivative_where_rows_coincide():
    """``D = 2 - 2 exp(-|x - y|^2 / 2 s^2)`` of one row each has the Hessian ``2 I / s^2`` at ``x = y``."""
    metric, y = MMD(bandwidth=0.5, scales=(1.0,), unbiased=False), torch.ones(1, 3).double()
    hessian = torch.autograd.functional.hessian(lambda x: metric(x, y), y)
    close(hessian.reshape(3, 3), 8 * torch.eye(3))


@every
def test_tight_samples_far_apart_keep_their_own_scale(metric, generator):
    x = (normal(generator, 20, 2, dtype=torch.float32) * 256).round() / 256
    y = x.flip(1) + 1e3
    exact = value_and_gradients(metric, x.double(), y.double())
    for actual, expected in zip(value_and_gradients(metric, x, y), exact, strict=True):
        close(actual / exact[0].item(), (expected / exact[0]).float(), 1e-5)


# Errors

ROWS = torch.zeros(3, 2)


@every
@pytest.mark.parametrize(
    ("x", "y", "wx", "message"),
    [
        (ROWS, torch.zeros(3, 4), None, r"width and dtype, got \(3, 2\).*\(3, 4\)"),
        (ROWS, ROWS.double(), None, r"torch.float32 and \(3, 2\) of torch.float64"),
        (ROWS, ROWS, torch.ones(2), r"wx: expected a weight a row, \(3,\), got \(2,\)"),
        (ROWS, ROWS, torch.ones(3, 1), r"wx: .*got \(3, 1\)"),
        (torch.zeros(0, 2), ROWS, None, r"x: expected rows .*got \[\(0, 2\)\]"),
        (ROWS, torch.tensor(1.0), None, r"y: expected rows .*got \[\(\)\]"),
        ((ROWS, torch.zeros(4)), ROWS, None, r"x: expected rows .*\(3, 2\), \(4,\)"),
        ((), ROWS, None, r"x: expected rows .*got \[\]"),
        (ROWS, ROWS.long(), None, r"y: expected floating-point events, got torch.int64"),
    ],
)
def test_samples_that_do_not_pair_up(metric, x, y, wx, message):
    with pytest.raises(ValueError, match=message):
        metric(x, y, wx)


@unbiased
def test_unbiased_needs_two_rows(metric):
    with pytest.raises(ValueError, match=rf"{metric.name}: .*two rows of each sample, got 3 of x and 1 of y"):
        metric(torch.zeros(3, 2), torch.zeros(1, 2))


@over([case for case in CASES if not case.unbiased and case.location])
def test_biased_needs_one_row(metric):
    assert metric(torch.zeros(1, 2), torch.ones(1, 2)) > 0


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (MMD, {"kernel": "laplace"}, r"kernel: expected one of \['rbf', 'imq'\] .*got 'laplace'"),
        (MMD, {"scales": ()}, r"scales: .*got \(\)"),
        (MMD, {"scales": (1.0, 0.0)}, r"scales: .*got \(1.0, 0.0\)"),
        (MMD, {"bandwidth": "mean"}, "bandwidth: expected 'median' or a positive number, got 'mean'"),
        (MMD, {"bandwidth": -1.0}, "bandwidth: .*got -1.0"),
        (MMD, {"bandwidth": math.inf}, "bandwidth: .*got inf"),
        (EnergyDistance, {"exponent": 0.0}, "exponent: .*got 0.0"),
        (EnergyDistance, {"exponent": 2.0}, "exponent: .*got 2.0"),
    ],
)
def test_options_out_of_range(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric(**options)


def test_rows_takes_tensors_only():
    with pytest.raises(TypeError, match=r"x: expected a tensor or .*, got ndarray of {'ndarray'}"):
        rows(np.zeros((3, 2)), name="x")  # type: ignore[arg-type]


def test_rows_joins_sites_of_any_event():
    joined = rows((torch.zeros(3), torch.ones(3, 2, 2), torch.full((3, 1), 2, dtype=torch.int64)))
    assert joined.tolist() == [[0, 1, 1, 1, 1, 2]] * 3
