"""Metrics of distribution functions, laid along lines where the data have more than one dimension.

On a line, ``F(t) = sum_i p_i 1[x_i <= t]`` and ``G(t) = sum_j q_j 1[y_j <= t]`` are the distribution functions of
the samples. They do not change when the line is stretched, so that these metrics are pure numbers between 0 and 1,
and outliers weigh no more than their number. Being steps they have no gradient in the rows. With a
``temperature``, every step is replaced by

    1[x <= t]  ->  sigmoid((t - x) / tau),    tau = temperature * (standard deviation of the pooled law (P + Q) / 2),

and has one. All estimates are biased: positive for two finite samples of one law.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.metric import Metric
from ppgen.metrics.slices import centered, check_number, check_positive, on_lines


@dataclass(kw_only=True, eq=False, repr=False)
class DistributionMetric(Metric):
    """What the metrics below share; a subclass makes a number of the gap ``F - G`` on each line.

    - ``projections``: the number of random directions, new ones in each call, from torch's global generator. In
      one dimension none is drawn.
    - ``over``: ``"mean"`` or ``"max"`` over the directions.
    - ``temperature``: ``None`` takes the samples' own steps and looks at every row; a gradient in the rows is
      refused. A number makes them smooth, for training: 0.1 is a start.
    - ``points``: where the smooth functions are looked at, quantiles of the pooled law at equal distances. Time and
      memory grow as ``projections * points * (n + m)``.

    Raises ``ValueError`` for options out of range, and where a gradient is required without a temperature.
    """

    projections: int = 100
    over: str = "mean"
    temperature: float | None = None
    points: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("projections", self.projections)
        check_number("points", self.points)
        if self.over not in ("mean", "max"):
            raise ValueError(f"over: expected 'mean' or 'max', got {self.over!r}")
        if self.temperature is not None:
            check_positive("temperature", self.temperature, "None or a positive number")

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        if self.temperature is None and torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            raise ValueError(
                f"{self.name}: the distribution functions of samples are steps and have no gradient in the rows; "
                "smooth them: temperature=0.1, or evaluate under torch.no_grad()"
            )
        u, v = on_lines(x, y, self.projections)
        if self.temperature is None:
            gap, mass = _steps(u, v, p, q, _rounding(x, y))
        else:
            gap, mass = _smooth(u, v, p, q, self.temperature, self.points)
        value = self.number(gap, mass)
        value = value.mean() if self.over == "mean" else value.amax()
        return value + 0 * (u.sum() + v.sum())  # NaN where a row is not finite, which a comparison would hide

    @abstractmethod
    def number(self, gap: Tensor, mass: Tensor) -> Tensor:
        """A number a line, of ``F - G`` ``(lines, points)`` and the pooled law's mass that each point stands for."""


@dataclass(kw_only=True, eq=False, repr=False)
class KolmogorovSmirnov(DistributionMetric):
    """The Kolmogorov-Smirnov statistic ``sup_t |F(t) - G(t)|``: of the two-sample test, where ``d = 1``."""

    def number(self, gap: Tensor, mass: Tensor) -> Tensor:
        return gap.abs().amax(1)


@dataclass(kw_only=True, eq=False, repr=False)
class CramerVonMises(DistributionMetric):
    """The Cramér-von Mises distance ``int (F - G)^2 dH``, ``H`` the pooled law ``(P + Q) / 2``; at most 1/3.

    Where ``n = m`` and ``d = 1``, Anderson's two-sample statistic ``T`` (1962) is ``n / 2`` times this.
    """

    def number(self, gap: Tensor, mass: Tensor) -> Tensor:
        return (gap.square() * mass).sum(1)


def _rounding(x: Tensor, y: Tensor) -> Tensor:
    """How far apart two equal rows may come to lie on a line ``(n + m,)``; on their own line not at all."""
    size = torch.cat(centered(x, y)).norm(dim=1)
    return size * (torch.finfo(x.dtype).eps * (1 + math.sqrt(x.shape[1])) if x.shape[1] > 1 else 0.0)


def _steps(u: Tensor, v: Tensor, p: Tensor, q: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """``F - G`` and the pooled mass at every row ``(lines, n + m)``.

    Equal rows of the two samples may be laid apart by ``rounding``, and it is added to ``t`` so that none of them
    is left out.
    """
    t = torch.cat((u, v), dim=1) + rounding

    def distribution(z: Tensor, r: Tensor) -> Tensor:
        z, order = z.sort(1)
        below = torch.cat((r.new_zeros(len(z), 1), r[order].cumsum(1)), dim=1)
        return below.gather(1, torch.searchsorted(z, t, right=True))

    return distribution(u, p) - distribution(v, q), torch.cat((p, q)) / 2


def _smooth(u: Tensor, v: Tensor, p: Tensor, q: Tensor, temperature: float, points: int) -> tuple[Tensor, Tensor]:
    """``F - G`` at quantiles of the pooled law ``(lines, points)``, which stand for equal masses."""
    z, r = torch.cat((u, v), dim=1), torch.cat((p, q)) / 2
    variance = ((z - (z @ r)[:, None]).square() @ r)[:, None]
    # Where all rows coincide no width is right and none matters.
    tau = temperature * torch.where(variance > 0, variance, 1.0).sqrt()
    order = z.detach().argsort(1)
    # Irrational, so that rounding cannot decide about a level where uniform weights have a step.
    levels = (torch.arange(points, device=r.device).to(r) + (math.sqrt(2) - 1)) / points
    at = torch.searchsorted(r[order].cumsum(1).detach(), levels.expand(len(z), -1).contiguous())
    t = z.gather(1, order.gather(1, at.clamp(max=len(r) - 1)))
    gap = torch.sigmoid((t[:, :, None] - z[:, None]) / tau[:, :, None]) @ torch.cat((p, -q))
    return gap, r.new_full((), 1 / points)
