"""The invariants of a metric between two samples."""

from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.metrics import Metric

__all__ = ["check_metric"]

ROWS, WIDTH = 40, 3  # of the test samples
STEP = 1e-5  # of finite differences
GRADIENT_TOLERANCE = 1e-4  # relative, of the comparison with finite differences
ROUNDING: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}  # values that are equal but for rounding


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
    * D(x, x) = 0; or, for an unbiased estimate, the mean of D(x, x') over independent samples is zero within four
      standard errors, which are exceeded by chance with probability 6e-5.
    * D increases if one sample is shifted by three standard deviations.
    * D does not depend on the order of rows.
    * D does not depend on the scale of the weights, nor on a row of weight zero, even if it is NaN.
    * The gradient with respect to x is finite and agrees with finite differences.
    * Samples of different widths, and samples of integers, raise a ValueError.

    Args:
        metric: the metric.
        zero: "exact" if D(x, x) = 0, "unbiased" if D has mean zero for equal distributions; None if neither holds, as
            for an entropic transport cost.
        gradient: "exact"; "finite" if the gradient treats a quantity that depends on the samples (a bandwidth, a
            direction) as a constant and therefore differs from finite differences; None if there is no gradient.
        detects_shift: whether the metric depends on the location of the samples.
        seed: the seed of the samples, and of the metric's random numbers in each call.

    Raises:
        AssertionError: if an invariant does not hold; the message names it.

    Example:
        >>> import ppgen
        >>> ppgen.testing.check_metric(ppgen.metrics.EnergyDistance(), zero="unbiased")
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int = ROWS) -> Tensor:
        return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)

    def value(x: Tensor, y: Tensor, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # every call has the same random directions
            return metric(x, y, wx, wy)

    x, y = normal(), normal(ROWS - 7)
    base = value(x, y)
    assert base.shape == (), f"expected a scalar, got shape {tuple(base.shape)}"
    assert base.dtype == x.dtype, f"expected the dtype {x.dtype} of the samples, got {base.dtype}"
    assert base.isfinite(), f"the value is not finite: {float(base)}"

    if zero == "exact":
        assert abs(float(value(x, x))) < 1e-6, f"D(x, x) is {float(value(x, x)):.3g} instead of zero"
    elif zero == "unbiased":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            values = torch.stack([metric(normal(), normal()) for _ in range(200)])
        mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
        assert abs(mean) < 4 * error, f"the mean for equal distributions is {mean:.3g} +- {error:.1g} instead of zero"
    if detects_shift:
        assert value(x, y + 3.0) > base, "a shift by three standard deviations does not increase D"

    order = torch.randperm(len(x), generator=generator)
    torch.testing.assert_close(value(x[order], y.flip(0)), base, **ROUNDING, msg="D depends on the order of rows")

    wx, wy = (torch.rand(len(rows), generator=generator, dtype=x.dtype) + 0.1 for rows in (x, y))
    weighted = value(x, y, wx, wy)
    torch.testing.assert_close(
        value(x, y, 4 * wx, 8 * wy), weighted, **ROUNDING, msg="D depends on the scale of the weights"
    )
    nan, zero_weight = torch.full((1, WIDTH), torch.nan, dtype=x.dtype), x.new_zeros(1)
    padded = value(torch.cat([x, nan]), torch.cat([y, nan]), torch.cat([wx, zero_weight]), torch.cat([wy, zero_weight]))
    torch.testing.assert_close(padded, weighted, rtol=1e-6, atol=1e-8, msg="D depends on a row of weight zero")

    if gradient is not None:
        leaf = x.clone().requires_grad_()
        result = value(leaf, y)
        assert result.requires_grad, "D has no gradient with respect to x; if it is to have none, pass gradient=None"
        (x_gradient,) = torch.autograd.grad(result, leaf)
        assert x_gradient.isfinite().all(), "the gradient with respect to x is not finite"
        if gradient == "exact":
            direction = normal()
            forward, backward = value(x + STEP * direction, y), value(x - STEP * direction, y)
            expected, actual = float(forward - backward) / (2 * STEP), float((x_gradient * direction).sum())
            rounding = 1e-9 * max(1.0, abs(float(base)))
            assert abs(actual - expected) <= GRADIENT_TOLERANCE * abs(expected) + rounding, (
                f"the directional derivative from the gradient is {actual:.6g}, from finite differences {expected:.6g}"
            )
    _check_refused(metric, x, y[:, :-1], "samples of different widths")
    _check_refused(metric, x.long(), y.long(), "samples of integers")


def _check_refused(metric: Metric, x: Tensor, y: Tensor, samples: str) -> None:
    try:
        metric(x, y)
    except ValueError:
        return
    raise AssertionError(f"{samples} do not raise a ValueError")
