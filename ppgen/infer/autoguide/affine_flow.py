"""The distribution of an affine map after a normalizing flow."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.flows import FlowDistribution

__all__ = ["AffineFlow"]


class AffineFlow(TorchDistribution):
    """The distribution of u = loc + diag(scale) C y, where y follows a flow and C is unit lower triangular.

    The log density of its own last draw is known from the forward pass, without an inverse of the flow.

    Args:
        flow: the distribution of y, with events (dim,).
        loc: (*batch, dim).
        scale: positive, (*batch, dim).
        scale_tril: C, (dim, dim).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: FlowDistribution, loc: Tensor, scale: Tensor, scale_tril: Tensor) -> None:
        self.flow, self.loc, self.scale, self.scale_tril = flow, loc, scale, scale_tril
        self._last_draw: tuple[Tensor, Tensor] | None = None  # with its log density
        batch_shape = torch.broadcast_shapes(flow.batch_shape, loc.shape[:-1])
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "AffineFlow":
        """The same distribution with a larger batch shape."""
        return AffineFlow(self.flow.expand(batch_shape), self.loc, self.scale, self.scale_tril)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, *batch, dim) that are differentiable in the parameters."""
        y, log_prob = self.flow.rsample_and_log_prob(sample_shape)
        u = self.loc + self.scale * (y @ self.scale_tril.mT)
        self._last_draw = u, log_prob - self._log_det
        return u

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density in nats, (*sample_shape, *batch)."""
        if self._last_draw is not None and value is self._last_draw[0]:
            return self._last_draw[1]
        scaled = (value - self.loc) / self.scale
        columns = scaled.reshape(-1, scaled.shape[-1]).T
        y = torch.linalg.solve_triangular(self.scale_tril, columns, upper=False, unitriangular=True).T
        return self.flow.log_prob(y.reshape(scaled.shape)) - self._log_det

    @property
    def _log_det(self) -> Tensor:
        return self.scale.log().sum(-1)
