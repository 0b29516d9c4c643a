"""What the constructors share: univariate transforms, checks, and a composition that starts as the identity.

Univariate transforms f, elementwise in x, are

    additive     x + b
    affine       e^s x + b
    spline       a monotone rational-quadratic spline with 8 bins on [-5, 5], the identity outside (Durkan et al. 2019,
                 https://arxiv.org/abs/1906.04032)

They are combined either as couplings, y_a = x_a, y_b = f(x_b | x_a), or autoregressively, y_i = f(x_i | x_<i).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Transform

from ppgen.flows.flow import Base, Flow
from ppgen.flows.marginals import Gaussianization
from ppgen.flows.smooth_mlp import SmoothMLP
from ppgen.flows.whitening import Whitening
from ppgen.flows.zuko import gaussianization, lazy, networks, transforms

__all__ = [
    "ADDITIVE",
    "AFFINE",
    "SPLINE",
    "Univariate",
    "Widths",
    "check_layers",
    "compose",
    "order",
    "whitened",
    "zero_output",
]

BINS, BOUND = 8, 5.0

Widths: TypeAlias = Sequence[int]


class Univariate(NamedTuple):
    """A univariate transform.

    Attributes:
        make: The transform as a function of its parameters.
        shapes: The shapes of the parameters for one coordinate.
    """

    make: Callable[..., Transform]
    shapes: tuple[tuple[int, ...], ...]


ADDITIVE = Univariate(transforms.AdditiveTransform, ((),))
AFFINE = Univariate(transforms.MonotonicAffineTransform, ((), ()))
SPLINE = Univariate(partial(transforms.MonotonicRQSTransform, bound=BOUND), ((BINS,), (BINS,), (BINS - 1,)))


def compose(
    maps: Sequence[nn.Module],
    dim: int,
    *,
    context_dim: int,
    base: Base,
    support: constraints.Constraint = constraints.real,
) -> Flow:
    """A flow whose map from x to z is a composition; each map starts as the identity.

    Args:
        maps: The maps in the order from x to z.
        dim: The width of events.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z (see `Flow`).
        support: The support of each number of an event.
    """
    for part in maps:
        zero_output(part)
    return Flow(lazy.LazyComposedTransform(*maps), (dim,), context_dim=context_dim, base=base, support=support)


def whitened(flow: Flow, *, marginals: bool = False) -> Flow:
    """A flow of real vectors whose first map, from x, is a `Whitening`, which `Flow.initialize` sets.

    Args:
        flow: The flow.
        marginals: Whether it is a `Gaussianization`.
    """
    (dim,) = flow.event_shape
    maps = getattr(flow.maps, "transforms", [flow.maps])  # side by side, since a path is looked for in one list
    first = lazy.LazyComposedTransform(Gaussianization(dim) if marginals else Whitening(dim), *maps)
    return Flow(first, flow.event_shape, context_dim=flow.context_dim, base=flow._base, support=flow.support)


@torch.no_grad()
def zero_output(module: nn.Module) -> None:
    """Sets the last layer of every network in a module to zero, for which the maps here are the identity."""
    for part in module.modules():
        last: nn.Module | None = None
        if isinstance(part, networks.MLP | networks.MaskedMLP):
            last = part[-1]
        elif isinstance(part, SmoothMLP):
            last = part.layers[-1]
        elif isinstance(part, gaussianization.ElementWiseTransform) and hasattr(part, "phi"):
            last = part.phi
        for parameter in () if last is None else last.parameters():
            parameter.zero_()


def order(dim: int, layer: int) -> Tensor:
    """The order of the coordinates in an autoregressive layer: ascending in even layers, descending in odd ones."""
    ascending = torch.arange(dim)
    return ascending.flip(0) if layer % 2 else ascending


def check_layers(layers: int) -> None:
    """Checks the number of layers.

    Raises:
        ValueError: If it is below 1.
    """
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
