"""Flows on an interval: data in (low, high) are mapped to the real line before a flow of real numbers.

    s = alpha + (1 - 2 alpha) (x - low) / (high - low)        y = log s - log(1 - s)

With alpha > 0 the derivative is bounded on [low, high], and the density extends slightly beyond both ends. Dinh et al.
2017, section 4.1 (https://arxiv.org/abs/1605.08803) use alpha = 0.05. As alpha approaches 1/2, the map becomes linear.
"""

import math

from torch import Tensor
from torch.distributions import constraints

from ppgen.flows.bijection import InvertibleLayer
from ppgen.flows.flow import Flow
from ppgen.flows.zuko import lazy

__all__ = ["Logit", "bounded"]


class Logit(InvertibleLayer):
    """The map x -> y above, elementwise.

    Args:
        low: The lower bound of x.
        high: The upper bound of x.
        alpha: The distance of s from 0 and 1 at the bounds, from 0 to below 1/2.
        rank: The number of event dimensions.

    Raises:
        ValueError: If low < high or 0 <= alpha < 1/2 does not hold.
    """

    def __init__(self, low: float, high: float, *, alpha: float, rank: int) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"expected bounds (low, high) with low < high, got ({low}, {high})")
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number from 0 to below 0.5, such as 0.05, got {alpha}")
        self.rank, self.alpha, self.low = rank, alpha, low
        self.scale = (1 - 2 * alpha) / (high - low)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the open interval that is mapped onto the real line."""
        return self.low - self.alpha / self.scale, self.low + (1 - self.alpha) / self.scale

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        s = self.alpha + self.scale * (x - self.low)
        log_s, log_rest = s.log(), (-s).log1p()
        log_derivative = math.log(self.scale) - log_s - log_rest
        return log_s - log_rest, self._sum(log_derivative)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        x = self.low + (y.sigmoid() - self.alpha) / self.scale
        log_derivative = -y.abs() - 2 * (-y.abs()).exp().log1p() - math.log(self.scale)
        return x, self._sum(log_derivative)

    def _sum(self, value: Tensor) -> Tensor:
        return value.flatten(-self.rank).sum(-1)


def bounded(flow: Flow, low: float, high: float, *, alpha: float = 0.05) -> Flow:
    """Makes a flow of real numbers a flow of numbers between `low` and `high`, by a `Logit` before its maps.

    Args:
        flow: The flow of real numbers.
        low: The lower bound.
        high: The upper bound.
        alpha: The distance of s from 0 and 1 at the bounds (see the module's docstring), from 0 to below 1/2.

    Raises:
        ValueError: If low < high or 0 <= alpha < 1/2 does not hold.

    Example:
        >>> from ppgen import flows
        >>> flow = flows.bounded(flows.nsf(2, hidden=(8,)), 0.0, 1.0, alpha=0.0)
        >>> x = flow().sample((100,))
        >>> bool(((x >= 0) & (x <= 1)).all())
        True
    """
    logit = Logit(low, high, alpha=alpha, rank=len(flow.event_shape))
    return Flow(
        lazy.LazyComposedTransform(logit, flow.maps),
        flow.event_shape,
        context_dim=flow.context_dim,
        base=flow._base,
        support=constraints.interval(*logit.ends),
    )
