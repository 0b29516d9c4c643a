"""The invariants of a metric between two samples."""

from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.metrics import Metric

__all__ = ["check_metric"]

ROWS, WIDTH = 40, 3  # of the samples that the metric is tried on
STEP, CLOSE = 1e-5, 1e-4  # of a finite difference, and its relative error
SAME: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def check_metric(
    metric: Metric,
    *,
    zero: Literal["exact", "unbiased"] | None = "exact",
    gradient: Literal["exact", "finite"] | None = "exact",
    detects_shift: bool = True,
    seed: int = 0,
) -> None:
    """Checks a metric D(x, y) of two samples (n, d) and (m, d) on Gaussian rows in float64.

    * The value is a finite scalar of the samples' dtype.
    * D(x, x) = 0, or, for an estimate without bias, the mean of D(x, x') over independent samples is zero (within four
      standard errors; the level is about 6e-5).
    * D grows when one sample is shifted by three standard deviations.
    * The order of rows does not matter.
    * The scale of the weights does not matter, and a row of weight zero has no effect, not even if it is NaN.
    * Gradients with respect to x are finite, and equal to finite differences.
    * Samples of different widths, and integers, raise ValueError.

    Args:
        metric: the metric.
        zero: how D vanishes for equal distributions; None if it does not, as an entropic transport cost.
        gradient: "finite" if the metric treats something that it fits to the samples (a bandwidth, a direction) as a
            constant; None if it has no gradient.
        detects_shift: whether the metric compares locations.
        seed: seed of the samples, and of the metric's own random numbers in each call.

    Raises:
        AssertionError: naming the invariant that does not hold.

    Example:
        >>> import ppgen
        >>> ppgen.testing.check_metric(ppgen.metrics.EnergyDistance(), zero="unbiased")
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int = ROWS) -> Tensor:
        return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)

    def value(x: Tensor, y: Tensor, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # random directions are the same in every call
            return metric(x, y, wx, wy)

    x, y = normal(), normal(ROWS - 7)
    base = value(x, y)
    assert base.shape == (), f"expected a scalar, got the shape {tuple(base.shape)}"
    assert base.dtype == x.dtype, f"expected {x.dtype}, got {base.dtype}"
    assert base.isfinite(), f"the value is {float(base)}"

    if zero == "exact":
        assert abs(float(value(x, x))) < 1e-6, f"D(x, x) is {float(value(x, x)):.3g}, not zero"
    elif zero == "unbiased":
        values = torch.stack([metric(normal(), normal()) for _ in range(200)])
        error = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean())) < 4 * error, (
            f"the mean under equality is {float(values.mean()):.3g} ({error:.1g})"
        )
    if detects_shift:
        assert value(x, y + 3.0) > base, "a shift by three standard deviations does not increase the value"

    order = torch.randperm(len(x), generator=generator)
    torch.testing.assert_close(value(x[order], y.flip(0)), base, **SAME, msg="the order of rows matters")

    weights = torch.rand(len(x), generator=generator, dtype=x.dtype) + 0.1
    weighted = value(x, y, weights)
    torch.testing.assert_close(value(x, y, 5 * weights), weighted, **SAME, msg="the scale of the weights matters")
    extra = torch.cat([x, torch.full((1, WIDTH), torch.nan, dtype=x.dtype)])
    padded = value(extra, y, torch.cat([weights, weights.new_zeros(1)]))
    torch.testing.assert_close(padded, weighted, rtol=1e-6, atol=1e-8, msg="a row of weight zero has an effect")

    if gradient is not None:
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(leaf, y), leaf)
        assert slope.isfinite().all(), "the gradient is not finite"
        if gradient == "exact":
            direction = normal()
            ahead, behind = value(x + STEP * direction, y), value(x - STEP * direction, y)
            expected, found = float(ahead - behind) / (2 * STEP), float((slope * direction).sum())
            assert abs(found - expected) <= CLOSE * max(1.0, abs(expected)), (
                f"the gradient along a direction is {found:.6g}, by finite differences {expected:.6g}"
            )
    _refuses(metric, x, y[:, :-1], "samples of different widths")
    _refuses(metric, x.long(), y.long(), "integers")


def _refuses(metric: Metric, x: Tensor, y: Tensor, what: str) -> None:
    try:
        metric(x, y)
    except ValueError:
        return
    raise AssertionError(f"{what} do not raise a ValueError")
