"""Bijections with parameters, given by both directions and their log determinants.

Forward is the direction of a `Flow`'s maps, from data x towards the base. Both directions return the value and the
log |det| of their own Jacobian, in nats, for any batch dimensions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributions import Transform, constraints

__all__ = ["Bijection", "Composed", "InvertibleLayer"]

MapWithLogDet: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class Bijection(Transform):
    """A torch transform from two functions.

    Args:
        forward_and_log_det: The map x -> y and its log |det|.
        inverse_and_log_det: The map y -> x and its log |det|.
        rank: The number of event dimensions.
    """

    bijective = True

    def __init__(self, forward_and_log_det: MapWithLogDet, inverse_and_log_det: MapWithLogDet, rank: int) -> None:
        super().__init__()
        self.forward_and_log_det, self.inverse_and_log_det = forward_and_log_det, inverse_and_log_det
        self.rank = rank
        self.domain = self.codomain = constraints.independent(constraints.real, rank)

    @property
    def inv(self) -> "Bijection":
        """The inverse transform."""
        return Bijection(self.inverse_and_log_det, self.forward_and_log_det, self.rank)

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy / dx|."""
        return self.forward_and_log_det(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|, by one evaluation."""
        return self.forward_and_log_det(x)


class InvertibleLayer(nn.Module):
    """A bijection with parameters. Called with a context, it returns a torch transform, as `Flow` requires of its maps.

    Attributes:
        rank: The number of event dimensions.
    """

    rank = 3

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        raise NotImplementedError

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        raise NotImplementedError

    def forward(self, context: Tensor | None = None) -> Transform:
        """Returns the transform for a context (*batch, context_dim), or None."""
        return Bijection(
            partial(self.forward_and_log_det, context=context),
            partial(self.inverse_and_log_det, context=context),
            self.rank,
        )


class Composed(InvertibleLayer):
    """A composition of layers.

    Args:
        *layers: The layers, in the order from x to y.
    """

    def __init__(self, *layers: InvertibleLayer) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        total = x.new_zeros(())
        for layer in self.layers:
            x, log_det = layer.forward_and_log_det(x, context)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        total = y.new_zeros(())
        for layer in reversed(self.layers):
            y, log_det = layer.inverse_and_log_det(y, context)
            total = total + log_det
        return y, total
