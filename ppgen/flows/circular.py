"""Flows of angles: autoregressions of circular splines (Rezende et al. 2020, section 2.1).

    y_i = spline(x_i + shift | x_<i), on the circle [-pi, pi)

The spline's slope is one at both ends, so that the density closes; the shift, learned, puts the ends elsewhere in every
layer. Networks see the sine and cosine of an angle, so that densities of the other angles close too.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppgen.flows.zuko import lazy, networks, transforms

__all__ = ["Circular"]

BINS = 8


class Circular(lazy.LazyTransform):
    """A context to one autoregression of circular splines.

    Args:
        order: (dim,), the place of each angle among those it may depend on.
        hidden: the network's hidden widths.
        context_dim: the width of a context, 0 for none.
    """

    def __init__(self, order: Tensor, *, hidden: Sequence[int], context_dim: int = 0) -> None:
        super().__init__()
        self.dim = len(order)
        before = order[:, None] > order
        # inputs: sines, cosines, the context, and a one that the first angle has its parameters from
        inputs = torch.cat([before, before, before.new_ones(self.dim, context_dim + 1)], 1)
        self.sizes = (1, BINS, BINS, BINS - 1)
        inputs = inputs.repeat_interleave(sum(self.sizes), 0)
        self.network = networks.MaskedMLP(inputs, hidden_features=list(hidden), activation=nn.SiLU)

    def forward(self, c: Tensor | None = None) -> Transform:
        return transforms.AutoregressiveTransform(partial(self._given, c), passes=self.dim)

    def _given(self, context: Tensor | None, x: Tensor) -> Transform:
        batch = x.shape[:-1]
        contexts = [] if context is None else [context.expand(*batch, context.shape[-1])]
        inputs = torch.cat([x.sin(), x.cos(), *contexts, x.new_ones(*batch, 1)], -1)
        shift, *spline = self.network(inputs).unflatten(-1, (self.dim, -1)).split(self.sizes, -1)
        turned = transforms.MonotonicRQSTransform(*spline, bound=math.pi)
        return transforms.DependentTransform(transforms.ComposedTransform(_Turn(shift.squeeze(-1)), turned), 1)


class _Turn(Transform):
    """y = x + shift, on the circle."""

    domain = constraints.interval(-math.pi, math.pi)
    codomain = domain
    bijective = True

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = shift

    def _call(self, x: Tensor) -> Tensor:
        return _wrap(x + self.shift)

    def _inverse(self, y: Tensor) -> Tensor:
        return _wrap(y - self.shift)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _wrap(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
