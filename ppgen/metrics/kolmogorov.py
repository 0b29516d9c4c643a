"""Metrics of cumulative distribution functions, on random projections if the data have more than one dimension.

On a line, ``F(t) = sum_i p_i 1[x_i <= t]`` and ``G(t) = sum_j q_j 1[y_j <= t]`` are the distribution functions of the
samples. Monotone changes of the line do not affect them, so these metrics are dimensionless and between 0 and 1, and
an outlier counts like any other row. Step functions have no gradient in the rows. With a ``temperature``, every step
is replaced by a sigmoid,

    1[x <= t]  ->  sigmoid((t - x) / tau),
    tau = temperature * (standard deviation of the pooled distribution (P + Q) / 2),

which has a gradient. All estimates are biased: they are positive for two finite samples of one distribution.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.checks import check_integer, check_positive
from ppgen.metrics.metric import Metric
from ppgen.metrics.slices import centered, project

__all__ = ["CramerVonMises", "DistributionFunctionMetric", "KolmogorovSmirnov"]


@dataclass(kw_only=True, eq=False, repr=False)
class DistributionFunctionMetric(Metric):
    """A functional of the difference ``F - G`` on each line; a subclass defines the functional.

    Args:
        projections: The number of random directions, sampled again in each call from torch's global generator. In one
            dimension no direction is sampled.
        over: ``"mean"`` or ``"max"`` over the directions.
        temperature: ``None`` uses the exact step functions at every row, and a gradient in the rows is refused. A
            number smooths the steps, for training; 0.1 is a good first value.
        points: The number of points at which the smoothed functions are evaluated, evenly spaced quantiles of the
            pooled distribution. Time and memory grow as ``projections * points * (n + m)``.

    Raises:
        ValueError: If options are out of range, and on a call if a gradient is required without a temperature.
    """

    projections: int = 100
    over: str = "mean"
    temperature: float | None = None
    points: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("projections", self.projections)
        check_integer("points", self.points)
        if self.over not in ("mean", "max"):
            raise ValueError(f"over: expected 'mean' or 'max', got {self.over!r}")
        if self.temperature is not None:
            check_positive("temperature", self.temperature, "None or a positive number")

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The mean or maximum of the statistic over the lines."""
        if self.temperature is None and torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            raise ValueError(
                f"{self.name}: empirical distribution functions are step functions and have no gradient in the rows; "
                "smooth them with temperature=0.1, or evaluate under torch.no_grad()"
            )
        u, v = project(x, y, self.projections)
        if self.temperature is None:
            difference, mass = _exact_difference(u, v, p, q, _projection_error(x, y))
        else:
            difference, mass = _smooth_difference(u, v, p, q, self.temperature, self.points)
        value = self.statistic(difference, mass)
        value = value.mean() if self.over == "mean" else value.amax()
        return value + 0 * (u.sum() + v.sum())  # NaN if a row is not finite, which comparisons would hide

    @abstractmethod
    def statistic(self, difference: Tensor, mass: Tensor) -> Tensor:
        """One number per line.

        Args:
            difference: ``F - G`` ``(lines, points)``.
            mass: The mass of the pooled distribution that each point represents.
        """


@dataclass(kw_only=True, eq=False, repr=False)
class KolmogorovSmirnov(DistributionFunctionMetric):
    """The Kolmogorov-Smirnov statistic ``sup_t |F(t) - G(t)|``, that of the two-sample test if ``d = 1``."""

    title = "Kolmogorov-Smirnov, sliced"

    def statistic(self, difference: Tensor, mass: Tensor) -> Tensor:
        """``sup |F - G|``; what rounding makes of a difference of zero has no gradient."""
        size = difference.abs()
        return size.where(size > 4 * torch.finfo(size.dtype).eps, 0.0).amax(1)


@dataclass(kw_only=True, eq=False, repr=False)
class CramerVonMises(DistributionFunctionMetric):
    """The Cramér-von Mises distance ``int (F - G)^2 dH``, with ``H`` the pooled distribution ``(P + Q) / 2``.

    It is at most 1/3. If ``n = m`` and ``d = 1``, Anderson's two-sample statistic ``T`` is ``n / 2`` times this
    (Anderson 1962, https://doi.org/10.1214/aoms/1177704477).
    """

    title = "Cramér-von Mises, sliced"

    def statistic(self, difference: Tensor, mass: Tensor) -> Tensor:
        """``int (F - G)^2 dH``."""
        return (difference.square() * mass).sum(1)


def _projection_error(x: Tensor, y: Tensor) -> Tensor:
    """The largest difference ``(n + m,)`` between the projections of two equal rows; zero in one dimension."""
    size = torch.cat(centered(x, y)).norm(dim=1)
    return size * (torch.finfo(x.dtype).eps * (1 + math.sqrt(x.shape[1])) if x.shape[1] > 1 else 0.0)


def _exact_difference(u: Tensor, v: Tensor, p: Tensor, q: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """``F - G`` and the pooled mass at every row ``(lines, n + m)``.

    The projections of equal rows of the two samples may differ by ``rounding``. It is added to ``t`` so that both rows
    are counted.
    """
    t = torch.cat((u, v), dim=1) + rounding

    def distribution_function(z: Tensor, r: Tensor) -> Tensor:
        z, order = z.sort(1)
        cumulative = torch.cat((r.new_zeros(len(z), 1), r[order].cumsum(1)), dim=1)
        return cumulative.gather(1, torch.searchsorted(z, t, right=True))

    return distribution_function(u, p) - distribution_function(v, q), torch.cat((p, q)) / 2


def _smooth_difference(
    u: Tensor, v: Tensor, p: Tensor, q: Tensor, temperature: float, points: int
) -> tuple[Tensor, Tensor]:
    """The smoothed ``F - G`` at quantiles of the pooled distribution ``(lines, points)``, which have equal masses."""
    z, r = torch.cat((u, v), dim=1), torch.cat((p, q)) / 2
    variance = ((z - (z @ r)[:, None]).square() @ r)[:, None]
    # If all rows coincide, any width gives the same value.
    tau = temperature * torch.where(variance > 0, variance, 1.0).sqrt()
    order = z.detach().argsort(1)
    # An irrational offset, so that rounding cannot decide about a level at which uniform weights have a step.
    levels = (torch.arange(points, device=r.device).to(r) + (math.sqrt(2) - 1)) / points
    at = torch.searchsorted(r[order].cumsum(1).detach(), levels.expand(len(z), -1).contiguous())
    t = z.gather(1, order.gather(1, at.clamp(max=len(r) - 1)))
    difference = torch.sigmoid((t[:, :, None] - z[:, None]) / tau[:, :, None]) @ torch.cat((p, -q))
    return difference, r.new_full((), 1 / points)
