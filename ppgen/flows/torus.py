"""Flows of angles: autoregressive circular splines (Rezende et al. 2020, section 2.1, https://arxiv.org/abs/2002.02428).

    y_i = spline(x_i + shift | x_<i), on the circle [-pi, pi)

The spline has derivative one at both ends, so the density is continuous across them. The learned shift puts the ends at
another angle in every layer. The networks see the sine and cosine of an angle, so they are periodic in it.
"""

import math
from collections.abc import Sequence
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppgen.flows.composition import Widths, check_layers, compose, order
from ppgen.flows.flow import Base, Flow
from ppgen.flows.zuko import lazy, networks, transforms

__all__ = ["CircularSpline", "circular"]

BINS = 8
CIRCLE = constraints.interval(-math.pi, math.pi)


def circular(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Autoregressive circular splines for `dim` angles in [-pi, pi) (Rezende et al. 2020).

    Args:
        dim: The number of angles.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for the uniform distribution.

    Raises:
        ValueError: If `layers` is below 1.
    """
    check_layers(layers)
    maps = [CircularSpline(order(dim, layer), hidden=hidden, context_dim=context_dim) for layer in range(layers)]

    def uniform(zero: Tensor) -> TorchDistribution:
        return dist.Uniform((zero - math.pi).expand(dim), zero + math.pi, validate_args=False).to_event(1)

    base = uniform if base is None else base
    return compose(maps, dim, context_dim=context_dim, base=base, support=CIRCLE)


class CircularSpline(lazy.LazyTransform):
    """One autoregressive map of circular splines.

    Args:
        position: The position of each angle in the autoregressive order, (dim,).
        hidden: The hidden widths of the network.
        context_dim: The width of the context, 0 for none.
    """

    def __init__(self, position: Tensor, *, hidden: Sequence[int], context_dim: int = 0) -> None:
        super().__init__()
        self.dim = len(position)
        before = position[:, None] > position
        # inputs: sines, cosines, the context, and a constant one, from which the first angle gets its parameters
        mask = torch.cat([before, before, before.new_ones(self.dim, context_dim + 1)], 1)
        self.sizes = (1, BINS, BINS, BINS - 1)
        mask = mask.repeat_interleave(sum(self.sizes), 0)
        self.network = networks.MaskedMLP(mask, hidden_features=list(hidden), activation=nn.SiLU)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform for a context c (*batch, context_dim), or None."""
        return transforms.AutoregressiveTransform(partial(self._transform_given, c), passes=self.dim)

    def _transform_given(self, context: Tensor | None, x: Tensor) -> Transform:
        batch = x.shape[:-1]
        contexts = [] if context is None else [context.expand(*batch, context.shape[-1])]
        inputs = torch.cat([x.sin(), x.cos(), *contexts, x.new_ones(*batch, 1)], -1)
        shift, *parameters = self.network(inputs).unflatten(-1, (self.dim, -1)).split(self.sizes, -1)
        spline = transforms.MonotonicRQSTransform(*parameters, bound=math.pi)
        return transforms.DependentTransform(transforms.ComposedTransform(_Rotation(shift.squeeze(-1)), spline), 1)


class _Rotation(Transform):
    """y = x + angle on the circle."""

    domain = CIRCLE
    codomain = CIRCLE
    bijective = True

    def __init__(self, angle: Tensor) -> None:
        super().__init__()
        self.angle = angle

    def _call(self, x: Tensor) -> Tensor:
        return _wrap(x + self.angle)

    def _inverse(self, y: Tensor) -> Tensor:
        return _wrap(y - self.angle)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero: a rotation preserves volume."""
        return torch.zeros_like(x)


def _wrap(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
