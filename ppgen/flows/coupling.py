"""Coupling flows: y_a = x_a, y_b = f(x_b | x_a). Both directions take one evaluation of each network.

NICE (Dinh et al. 2015, https://arxiv.org/abs/1410.8516), RealNVP (Dinh et al. 2017, https://arxiv.org/abs/1605.08803)
and neural spline flows (Durkan et al. 2019, https://arxiv.org/abs/1906.04032) differ in the univariate transform f.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from ppgen.flows.composition import ADDITIVE, AFFINE, SPLINE, Univariate, Widths, check_layers, compose
from ppgen.flows.flow import Base, Flow
from ppgen.flows.zuko import lazy, networks, transforms
from ppgen.nets import ACTIVATIONS, lookup

__all__ = ["Coupling", "Scale", "nice", "nsf", "realnvp"]


def nice(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """NICE: additive couplings and a diagonal scaling (Dinh et al. 2015, https://arxiv.org/abs/1410.8516).

    Args:
        dim: The width of events, at least 2.
        layers: The number of couplings.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `dim` is below 2 or `layers` below 1.
    """
    return _couplings(dim, ADDITIVE, layers, hidden, context_dim, base, [Scale(dim)])


def realnvp(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """RealNVP: affine couplings (Dinh et al. 2017, https://arxiv.org/abs/1605.08803).

    Args:
        dim: The width of events, at least 2.
        layers: The number of couplings.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `dim` is below 2 or `layers` below 1.
    """
    return _couplings(dim, AFFINE, layers, hidden, context_dim, base)


def nsf(
    dim: int,
    *,
    layers: int = 4,
    hidden: Widths = (64, 64),
    activation: str = "silu",
    context_dim: int = 0,
    base: Base = None,
) -> Flow:
    """Neural spline flow: couplings of splines (Durkan et al. 2019, https://arxiv.org/abs/1906.04032).

    Args:
        dim: The width of events, at least 2.
        layers: The number of couplings.
        hidden: The hidden widths of the networks.
        activation: A key of ``ppgen.nets.ACTIVATIONS``.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `dim` is below 2 or `layers` below 1, or there is no such activation.

    Example:
        >>> from ppgen import flows
        >>> flow = flows.nsf(2, layers=2, hidden=(8,))
        >>> x = flow().sample((5,))
        >>> flow().log_prob(x).shape
        torch.Size([5])
    """
    return _couplings(dim, SPLINE, layers, hidden, context_dim, base, activation=activation)


def _couplings(
    dim: int,
    univariate: Univariate,
    layers: int,
    hidden: Widths,
    context_dim: int,
    base: Base,
    after: Sequence[nn.Module] = (),
    activation: str = "silu",
) -> Flow:
    if dim < 2:
        raise ValueError(
            f"a coupling splits events into two parts, which needs a width of at least 2, got {dim}; use another flow, "
            "such as maf"
        )
    check_layers(layers)
    maps = [
        Coupling(
            dim,
            constant=layer % 2,
            univariate=univariate,
            hidden=hidden,
            activation=activation,
            context_dim=context_dim,
        )
        for layer in range(layers)
    ]
    return compose([*maps, *after], dim, context_dim=context_dim, base=base)


class Coupling(lazy.LazyTransform):
    """y_a = x_a, y_b = f(x_b | x_a, context), elementwise in x_b. Unlike zuko's, it can be compiled.

    Args:
        dim: The width of x, at least 2.
        constant: Which coordinates are x_a: those with an even (0) or with an odd (1) index.
        univariate: f.
        hidden: The hidden widths of the network.
        activation: A key of ``ppgen.nets.ACTIVATIONS``.
        context_dim: The width of the context, 0 for none.
    """

    constant: Tensor
    transformed: Tensor

    def __init__(
        self,
        dim: int,
        *,
        constant: int,
        univariate: Univariate,
        hidden: Sequence[int],
        activation: str = "silu",
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        index = torch.arange(dim)
        self.register_buffer("constant", index[index % 2 == constant])
        self.register_buffer("transformed", index[index % 2 != constant])
        self.univariate = univariate
        self.sizes = [prod(shape) for shape in univariate.shapes]
        widths = len(self.constant) + context_dim, len(self.transformed) * sum(self.sizes)
        layer = lookup(ACTIVATIONS, activation, option="activation")
        self.network = networks.MLP(*widths, hidden_features=list(hidden), activation=layer)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform for a context c (*batch, context_dim), or None."""
        return _IndexedCoupling(partial(self._transform_given, c), self.constant, self.transformed)

    def _transform_given(self, context: Tensor | None, x_a: Tensor) -> Transform:
        """f(. | x_a, context)."""
        if context is not None:
            x_a = torch.cat([x_a, context.expand(*x_a.shape[:-1], context.shape[-1])], -1)
        raw = self.network(x_a).unflatten(-1, (-1, sum(self.sizes)))
        parameters = [
            part.reshape(*part.shape[:-1], *shape)
            for part, shape in zip(raw.split(self.sizes, -1), self.univariate.shapes, strict=True)
        ]
        return transforms.DependentTransform(self.univariate.make(*parameters), 1)


class _IndexedCoupling(transforms.CouplingTransform):
    """zuko's coupling with the indices of its parts given, so that no step searches a mask for them."""

    def __init__(self, meta: Callable[[Tensor], Transform], constant: Tensor, transformed: Tensor) -> None:
        Transform.__init__(self)
        self.meta, self.idx_a, self.idx_b = meta, constant, transformed


class Scale(lazy.LazyTransform):
    """y_i = exp(s_i) x_i. Additive couplings need it because they preserve volume (Dinh et al. 2015, section 3.3).

    Args:
        dim: The width of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform, which does not depend on the context c."""
        scale = transforms.AffineTransform(0.0, self.log_scale.exp())
        return transforms.DependentTransform(scale, 1)
