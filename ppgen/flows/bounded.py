"""Flows on an interval: data in (low, high) are carried to the line before a flow of real numbers takes them.

    s = alpha + (1 - 2 alpha) (x - low) / (high - low)        y = log s - log(1 - s)

With alpha > 0, the slope is bounded on all of [low, high], and the density reaches a little beyond the ends (Dinh et
al. 2017, section 4.1, where alpha = 0.05). As alpha goes to 1/2, the map becomes a linear one.
"""

import math

from torch import Tensor
from torch.distributions import constraints

from ppgen.flows.flow import Flow
from ppgen.flows.layers import Layer
from ppgen.flows.zuko import lazy

__all__ = ["Logit", "bounded"]


class Logit(Layer):
    """The map above, of every element of an event of `rank` dimensions.

    Raises:
        ValueError: unless low < high and 0 <= alpha < 1/2.
    """

    def __init__(self, low: float, high: float, *, alpha: float, rank: int) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"expected bounds (low, high) with low < high, got ({low}, {high})")
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number from 0 to below 0.5, such as 0.05, got {alpha}")
        self.rank, self.alpha, self.low = rank, alpha, low
        self.slope = (1 - 2 * alpha) / (high - low)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the open interval that is mapped to the line."""
        return self.low - self.alpha / self.slope, self.low + (1 - self.alpha) / self.slope

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        s = self.alpha + self.slope * (x - self.low)
        log_s, log_rest = s.log(), (-s).log1p()
        log_slope = math.log(self.slope) - log_s - log_rest
        return log_s - log_rest, self._sum(log_slope)

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.low + (y.sigmoid() - self.alpha) / self.slope
        log_slope = -y.abs() - 2 * (-y.abs()).exp().log1p() - math.log(self.slope)
        return x, self._sum(log_slope)

    def _sum(self, value: Tensor) -> Tensor:
        return value.flatten(-self.rank).sum(-1)


def bounded(flow: Flow, low: float, high: float, *, alpha: float = 0.05) -> Flow:
    """A flow of real numbers as one of numbers between `low` and `high`, `Logit` before its maps.

    Raises:
        ValueError: as `Logit`.
    """
    logit = Logit(low, high, alpha=alpha, rank=len(flow.event_shape))
    return Flow(
        lazy.LazyComposedTransform(logit, flow.maps),
        flow.event_shape,
        context_dim=flow.context_dim,
        base=flow._base,
        support=constraints.interval(*logit.ends),
    )
