"""Invariants of every metric without a critic, and the checks of samples that all metrics share."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from metrics.helpers import close, mean_and_error, metric_and_gradients, normal, uniform
from metrics.registry import CRITIC_ROWS, ROWS, Row, rational
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import ppgen.metrics
from ppgen.metrics import METRICS, MMD, CriticMetric, EnergyDistance, Metric, rows
from ppgen.metrics.metric import squared_distances


def over(selected: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("metric", [pytest.param(row.metric, id=repr(row.metric)) for row in selected])


every = over(ROWS)
unbiased = over([row for row in ROWS if row.unbiased])
biased = over([row for row in ROWS if not row.unbiased])
zero = over([row for row in ROWS if row.zero and not row.unbiased])
located = over([row for row in ROWS if row.location])
differentiable = over([row for row in ROWS if not row.flat])
traceable = over([row for row in ROWS if row.traceable])
fixed = pytest.mark.parametrize("row", [pytest.param(r, id=repr(r.metric)) for r in ROWS if not r.adaptive | r.flat])
fixed_unbiased = over([row for row in ROWS if row.unbiased and not row.adaptive])

FLAT = {row.metric for row in ROWS if row.flat}
BOUNDED = {row.metric for row in ROWS if row.bounded}
SEARCHED = {row.metric for row in ROWS if row.searched}


@pytest.fixture(autouse=True)
def _same_directions(monkeypatch):
    """Random directions are the same in every call, so that values can be compared."""
    call = Metric.__call__

    def seeded(*arguments: Any) -> Tensor:
        torch.manual_seed(3)
        return call(*arguments)

    monkeypatch.setattr(Metric, "__call__", seeded)


def value_and_gradients(metric: Metric, x: Tensor, y: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    """The gradients are zero if the metric refuses to give them."""
    if metric in FLAT:
        return metric(x, y, *weights), torch.zeros_like(x), torch.zeros_like(y)
    return metric_and_gradients(metric, x, y, *weights)


def widened(metric: Metric, tolerance: float) -> float:
    """At a maximum, values within a tolerance have arguments and gradients within its root."""
    return math.sqrt(tolerance) if metric in SEARCHED else tolerance


def test_the_registry_has_every_metric():
    with_critic = {type(row.make(nn.Identity())) for row in CRITIC_ROWS.values()}
    assert {type(row.metric) for row in ROWS} | with_critic == set(METRICS.values())


def test_every_metric_is_called_through_its_base_class():
    """So that the checks of samples and weights, which are tested once, hold for all."""
    for kind in METRICS.values():
        base = CriticMetric if issubclass(kind, CriticMetric) else Metric
        assert kind.__call__ is base.__call__, kind


# Invariants


@unbiased
def test_unbiased_metrics_have_mean_zero_for_equal_distributions(metric, generator):
    mean, error = mean_and_error(metric, *normal(generator, 2, 1000, 8, 2))
    assert abs(mean) < 4 * error  # level 6e-5


@zero
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-14)])
def test_biased_metrics_are_zero_for_equal_samples(metric, dtype, tolerance, generator):
    x = normal(generator, 9, 3, dtype=dtype)
    assert metric(x, x.flip(0)).abs() < tolerance
    assert metric(x, 2 * x + 1) > 0.01


@located
def test_a_larger_shift_has_a_larger_value(metric, generator):
    x, y = normal(generator, 50, 2), normal(generator, 50, 2)
    near, middle, far = (metric(x, y + shift).item() for shift in (0.0, 1.0, 2.0))
    assert near + 0.05 < middle < far - 0.05


@fixed_unbiased
def test_the_mean_of_unbiased_metrics_does_not_depend_on_the_batch_size(metric, generator):
    def sample(repeats: int, n: int, m: int) -> tuple[Tensor, Tensor]:
        return normal(generator, repeats, n, 2), normal(generator, repeats, m, 2) + 1

    small, small_error = mean_and_error(metric, *sample(4000, 3, 2))
    large, large_error = mean_and_error(metric, *sample(500, 12, 16))
    assert abs(small - large) < 4 * math.hypot(small_error, large_error)  # level 6e-5


@every
def test_metrics_are_symmetric(metric, generator):
    x, y, wx, wy = normal(generator, 6, 2), normal(generator, 4, 2) + 1, *uniform(generator, 2, 6)
    close(metric(x, y, wx, wy[:4]), metric(y, x, wy[:4], wx))


@every
def test_the_order_of_rows_does_not_matter(metric, generator):
    x, y, w = normal(generator, 7, 2), normal(generator, 5, 2) + 1, uniform(generator, 7)
    order = torch.randperm(7, generator=generator)
    close(metric(x[order], y.flip(0), w[order]), metric(x, y, w))


@every
def test_no_weights_are_uniform_weights(metric, generator):
    x, y = normal(generator, 6, 2), normal(generator, 4, 2)
    close(metric(x, y, torch.full((6,), 3.0), torch.ones(4, dtype=torch.bool)), metric(x, y))


@every
def test_the_scale_of_weights_does_not_matter_but_the_weights_do(metric, generator):
    x, y, wx, wy = normal(generator, 5, 2), normal(generator, 5, 2) + 1, *uniform(generator, 2, 5)
    close(metric(x, y, 10 * wx, wy / 3), metric(x, y, wx, wy))
    assert abs(metric(x, y, wx, wy) - metric(x, y)) > 1e-4


@biased
def test_integer_weights_are_repeated_rows(metric, generator):
    x, y = normal(generator, 5, 2), normal(generator, 3, 2) + 1
    wx, wy = torch.tensor([3, 0, 1, 2, 1]), torch.tensor([1, 4, 1])
    close(metric(x, y, wx, wy), metric(x.repeat_interleave(wx, 0), y.repeat_interleave(wy, 0)))


@every
def test_rows_of_weight_zero_have_no_effect(metric, generator):
    x, y, wx, wy = normal(generator, 6, 2), normal(generator, 5, 2) + 1, *uniform(generator, 2, 6)
    wy = wy[:5]
    wx[[1, 4]] = 0
    wy[0] = 0
    value, grad_x, grad_y = value_and_gradients(metric, x, y, wx, wy)
    kept = value_and_gradients(metric, x[wx > 0], y[wy > 0], wx[wx > 0], wy[wy > 0])
    for actual, expected in zip((value, grad_x[wx > 0], grad_y[wy > 0]), kept, strict=True):
        close(actual, expected, widened(metric, 1e-12))
    assert not grad_x[wx == 0].any()
    assert not grad_y[wy == 0].any()

    x[1], x[4], y[0] = math.nan, 1e30, math.inf
    for actual, expected in zip(value_and_gradients(metric, x, y, wx, wy), (value, grad_x, grad_y), strict=True):
        assert torch.equal(actual, expected)  # to the last bit, whatever the rows contain


@every
def test_a_sample_without_positive_weights_has_value_and_gradients_zero(metric, generator):
    x, y = normal(generator, 4, 2), normal(generator, 4, 2)
    for weights in ((torch.zeros(4), None), (None, torch.zeros(4)), (torch.zeros(4), torch.zeros(4))):
        assert not any(part.any() for part in value_and_gradients(metric, x, y, *weights))


@every
def test_a_single_row_of_positive_weight_is_a_point_mass(metric, generator):
    x, y = normal(generator, 4, 2), normal(generator, 5, 2)
    one = torch.tensor([0.0, 0.0, 2.0, 0.0])
    value, grad_x, _ = value_and_gradients(metric, x, y, one)
    assert grad_x.isfinite().all()
    close(value, metric(x[2].repeat(3, 1), y))


@fixed
def test_gradients_equal_finite_differences(row, generator):
    x, y, w = normal(generator, 3, 2), normal(generator, 4, 2) + 1, uniform(generator, 3)
    inputs = (x.requires_grad_(), y.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(row.metric, inputs)
    assert not row.twice or torch.autograd.gradgradcheck(row.metric, inputs)


@differentiable
@pytest.mark.parametrize("apart", [0.0, 1e-6])
def test_gradients_are_finite_if_rows_coincide(metric, apart, generator):
    base = normal(generator, 4, 2, dtype=torch.float32)
    x, y = torch.cat((base, base + apart)).requires_grad_(), base.clone().requires_grad_()
    value = metric(x, y)
    first = torch.autograd.grad(value, (x, y), create_graph=True)
    second = torch.autograd.grad(torch.cat(first).square().sum(), (x, y))
    assert all(part.isfinite().all() for part in (value, *first, *second))


@every
def test_gradients_are_zero_if_all_rows_are_equal(metric):
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
def test_the_origin_does_not_matter_in_float32(metric, generator):
    # float32 resolves this grid at 1e3 too, so that shifting the coordinates loses nothing
    x, y = ((normal(generator, n, 2, dtype=torch.float32) * 256).round() / 256 for n in (30, 20))
    w = torch.arange(30.0) % 3
    here, shifted = (value_and_gradients(metric, x + far, y + far, w) for far in (0.0, 1e3))
    exact = value_and_gradients(metric, x.double(), y.double(), w)
    if metric in SEARCHED:  # at the maximum two rows may swap their order, where the gradient jumps
        here, shifted, exact = here[:1], shifted[:1], exact[:1]
    for actual, moved, expected in zip(here, shifted, exact, strict=True):
        close(actual, expected, widened(metric, 1e-5))
        close(moved, expected, widened(metric, 1e-5))


@every
def test_compact_samples_far_apart_keep_their_precision(metric, generator):
    x = (normal(generator, 20, 2, dtype=torch.float32) * 256).round() / 256
    y = x.flip(1) + 1e3
    exact = value_and_gradients(metric, x.double(), y.double())
    for actual, expected in zip(value_and_gradients(metric, x, y), exact, strict=True):
        close(actual / exact[0].item(), (expected / exact[0]).float(), 1e-5)


@traceable
def test_a_traced_call_equals_an_eager_one(metric, generator):
    def step(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return value_and_gradients(metric, x, y, w)

    def sample(scale: float) -> tuple[Tensor, ...]:
        return scale * normal(generator, 6, 2), normal(generator, 4, 2) + 1, uniform(generator, 6)

    traced = make_fx(step)(*sample(1.0))
    other = sample(3.0)
    other[2][0] = 0  # a weight that was positive when the step was traced
    eager = step(*other)
    torch.manual_seed(3)
    for actual, expected in zip(traced(*other), eager, strict=True):
        close(actual, expected)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_a_scalar_of_the_dtype_of_the_samples(metric, dtype, generator):
    x, y = normal(generator, 3, dtype=dtype), normal(generator, 4, dtype=dtype)
    value = metric(x, y, uniform(generator, 3))
    assert value.shape == ()
    assert value.dtype == dtype


@over([row for row in ROWS if not row.unbiased and row.location])
def test_biased_metrics_need_one_row(metric):
    assert metric(torch.zeros(1, 2), torch.ones(1, 2)) > 0


@unbiased
def test_unbiased_metrics_need_two_rows(metric):
    with pytest.raises(ValueError, match=rf"{metric.name}: .*two rows of each sample, got 3 of x and 1 of y"):
        metric(torch.zeros(3, 2), torch.zeros(1, 2))


@every
def test_repr_is_the_constructor_call(metric):
    again = eval(repr(metric), {**vars(ppgen.metrics), "rational": rational})
    assert repr(again) == repr(metric)
    assert vars(again) == vars(metric)


# Code that all metrics share, tested on one of them


def test_repr_and_name_omit_defaults():
    assert repr(MMD()) == "MMD()"
    assert repr(MMD(kernel="imq", scales=[1])) == "MMD(kernel='imq', scales=(1,))"
    assert repr(EnergyDistance(name="codes", exponent=0.5)) == "EnergyDistance(name='codes', exponent=0.5)"
    assert (MMD().name, EnergyDistance(name="codes").name) == ("MMD", "codes")


def test_a_tuple_is_concatenated(generator):
    metric = EnergyDistance()
    x, y = normal(generator, 6, 5), normal(generator, 4, 5) + 1
    joined = metric((x[:, 0], x[:, 1:].reshape(6, 2, 2)), (y[:, 0], y[:, 1:].reshape(4, 2, 2)))
    assert torch.equal(joined, metric(x, y))


def test_images_are_flattened(generator):
    metric = EnergyDistance()
    x, y = normal(generator, 6, 2, 3, 3), normal(generator, 4, 2, 3, 3)
    assert torch.equal(metric(x, y), metric(x.flatten(1), y.flatten(1)))


SAMPLE = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("x", "y", "wx", "message"),
    [
        (SAMPLE, torch.zeros(3, 4), None, r"width and dtype, got \(3, 2\).*\(3, 4\)"),
        (SAMPLE, SAMPLE.double(), None, r"torch.float32 and \(3, 2\) of torch.float64"),
        (SAMPLE, SAMPLE, torch.ones(2), r"wx: expected one weight per row, \(3,\), got \(2,\)"),
        (SAMPLE, SAMPLE, torch.ones(3, 1), r"wx: .*got \(3, 1\)"),
        (torch.zeros(0, 2), SAMPLE, None, r"x: expected rows .*got \[\(0, 2\)\]"),
        (SAMPLE, torch.tensor(1.0), None, r"y: expected rows .*got \[\(\)\]"),
        ((SAMPLE, torch.zeros(4)), SAMPLE, None, r"x: expected rows .*\(3, 2\), \(4,\)"),
        ((), SAMPLE, None, r"x: expected rows .*got \[\]"),
        (SAMPLE, SAMPLE.long(), None, r"y: expected floating-point events, got torch.int64"),
    ],
)
def test_samples_and_weights_are_checked(x, y, wx, message):
    with pytest.raises(ValueError, match=message):
        EnergyDistance()(x, y, wx)


def test_rows_accepts_tensors_only():
    with pytest.raises(TypeError, match=r"x: expected a tensor or .*, got ndarray of {'ndarray'}"):
        rows(np.zeros((3, 2)), name="x")  # type: ignore[arg-type]


def test_rows_concatenates_sites_of_any_event_shape():
    joined = rows((torch.zeros(3), torch.ones(3, 2, 2), torch.full((3, 1), 2, dtype=torch.int64)))
    assert joined.tolist() == [[0, 1, 1, 1, 1, 2]] * 3


def test_squared_distances_are_exact_at_zero_and_close_elsewhere(generator):
    x = normal(generator, 50, 20, dtype=torch.float32) + 100
    d2 = squared_distances(x, x)
    assert not d2.diagonal().any()
    exact = (x.double()[:, None] - x.double()).square().sum(-1)
    close(d2.double(), exact, 1e-5)
    near = torch.tensor([[-1.0], [1.0], [1.0 + 2**-8]])
    close(squared_distances(near, near)[1, 2], 2**-16, 1e-6)
