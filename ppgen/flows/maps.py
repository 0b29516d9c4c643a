"""Bijections that zuko does not have in the form needed here: couplings that can be traced, and linear maps."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from ppgen.flows.given import Given
from ppgen.flows.zuko import lazy, networks, transforms

__all__ = ["Coupling", "Linear", "Scale"]


class Fixed(transforms.CouplingTransform):
    """A coupling whose halves are known by their indices, so that no step looks for them."""

    def __init__(self, meta: Callable[[Tensor], Transform], constant: Tensor, moved: Tensor) -> None:
        Transform.__init__(self)
        self.meta, self.idx_a, self.idx_b = meta, constant, moved


class Coupling(lazy.LazyTransform):
    """y_a = x_a, y_b = f(x_b | x_a, context), elementwise in x_b (Dinh et al. 2015, 2017).

    Args:
        dim: the width of x, at least 2.
        constant: which coordinates are x_a: those of even (0) or of odd (1) index.
        univariate: f, of parameters of the shapes `shapes` for each coordinate.
        hidden: the network's hidden widths.
        context_dim: the width of the context.
    """

    constant: Tensor
    moved: Tensor

    def __init__(
        self,
        dim: int,
        *,
        constant: int,
        univariate: Callable[..., Transform],
        shapes: Sequence[tuple[int, ...]],
        hidden: Sequence[int],
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        index = torch.arange(dim)
        self.register_buffer("constant", index[index % 2 == constant])
        self.register_buffer("moved", index[index % 2 != constant])
        self.univariate, self.shapes = univariate, tuple(shapes)
        self.total = sum(map(prod, self.shapes))
        widths = len(self.constant) + context_dim, len(self.moved) * self.total
        self.network = networks.MLP(*widths, hidden_features=list(hidden), activation=nn.SiLU)

    def forward(self, c: Tensor | None = None) -> Transform:
        return Fixed(partial(self._given, c), self.constant, self.moved)

    def _given(self, context: Tensor | None, x: Tensor) -> Transform:
        if context is not None:
            x = torch.cat([x, context.expand(*x.shape[:-1], context.shape[-1])], -1)
        raw = self.network(x).unflatten(-1, (-1, self.total))
        sizes = [prod(shape) for shape in self.shapes]
        parts = [
            part.reshape(*part.shape[:-1], *shape)
            for part, shape in zip(raw.split(sizes, -1), self.shapes, strict=True)
        ]
        return transforms.DependentTransform(self.univariate(*parts), 1)


class Linear(lazy.LazyTransform):
    """y = L U x + b, L lower and U unit upper triangular: log |det| = sum_i log |l_ii|; b may depend on the context."""

    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.eye(dim))
        self.shift = Given({"b": torch.zeros(dim)}, context_dim=context_dim)

    def forward(self, c: Tensor | None = None) -> Transform:
        linear = transforms.LULinearTransform(self.factors)
        shift = transforms.DependentTransform(transforms.AdditiveTransform(self.shift(c)["b"]), 1)
        return transforms.ComposedTransform(linear, shift)


class Scale(lazy.LazyTransform):
    """y_i = exp(s_i) x_i, which additive couplings need, as they keep volumes (Dinh et al. 2015, section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, c: Tensor | None = None) -> Transform:
        scale = transforms.AffineTransform(0.0, self.log_scale.exp())
        return transforms.DependentTransform(scale, 1)
