"""Low-rank flows: planar and radial (Rezende & Mohamed 2015) and Sylvester maps (van den Berg et al. 2018).

From base to data, the maps and their log determinants are closed formulas. The inverse of a planar map takes the root
of one increasing function, the inverse of a Sylvester map one root per direction in sequence, and the inverse of a
radial map the root of a quadratic, so all three score data too. In the transforms of this module x is on the side of
the base and y on the side of the data.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn import functional as F

from ppgen.flows.composition import Widths, check_layers, compose
from ppgen.flows.conditional_parameters import ConditionalParameters
from ppgen.flows.flow import Base, Flow
from ppgen.flows.root import find_root
from ppgen.flows.zuko import lazy

__all__ = ["InvertedTransform", "Planar", "Radial", "Sylvester", "planar", "radial", "sylvester"]


def planar(dim: int, *, layers: int = 16, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Planar flow: maps x + u tanh(w . x + b).

    From Rezende & Mohamed 2015, equation 10 (https://arxiv.org/abs/1505.05770). Scoring data takes one root per map.

    Args:
        dim: The width of events.
        layers: The number of maps.
        hidden: The hidden widths of the networks, which see the context only.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.
    """

    def initial() -> dict[str, Tensor]:
        return {"u": torch.zeros(dim), "w": torch.randn(dim), "b": torch.zeros(1)}

    return _low_rank(Planar, initial, dim, layers, hidden, context_dim, base)


def radial(dim: int, *, layers: int = 16, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Radial flow: maps that contract towards a center or expand from it.

    From Rezende & Mohamed 2015, equation 14 (https://arxiv.org/abs/1505.05770).

    Args:
        dim: The width of events.
        layers: The number of maps.
        hidden: The hidden widths of the networks, which see the context only.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.
    """

    def initial() -> dict[str, Tensor]:
        return {"center": torch.randn(dim), "log_alpha": torch.zeros(1), "raw_beta": torch.zeros(1)}

    return _low_rank(Radial, initial, dim, layers, hidden, context_dim, base)


def sylvester(
    dim: int,
    *,
    layers: int = 8,
    rank: int | None = None,
    hidden: Widths = (64, 64),
    context_dim: int = 0,
    base: Base = None,
) -> Flow:
    """Sylvester flow: maps x + Q R tanh(S Q' x + b), which generalize planar maps to `rank` directions.

    From van den Berg et al. 2018 (https://arxiv.org/abs/1803.05649). Scoring data takes `rank` roots per map, one after
    another.

    Args:
        dim: The width of events.
        layers: The number of maps.
        rank: The number of directions, from 1 to dim; None for min(dim, 16).
        hidden: The hidden widths of the networks, which see the context only.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1 or `rank` is out of range.
    """
    rank = min(dim, 16) if rank is None else rank
    if not 1 <= rank <= dim:
        raise ValueError(f"rank: expected 1 .. {dim}, the number of directions, got {rank}")

    def initial() -> dict[str, Tensor]:
        square = torch.zeros(rank, rank)
        return {"reflections": torch.randn(rank, dim), "outer": square, "inner": square, "b": torch.zeros(rank)}

    return _low_rank(Sylvester, initial, dim, layers, hidden, context_dim, base)


def _low_rank(
    make: Callable[..., Transform],
    initial: Callable[[], dict[str, Tensor]],
    dim: int,
    layers: int,
    hidden: Widths,
    context_dim: int,
    base: Base,
) -> Flow:
    check_layers(layers)
    maps = [
        InvertedTransform(make, ConditionalParameters(initial(), hidden=hidden, context_dim=context_dim))
        for _ in range(layers)
    ]
    return compose(maps, dim, context_dim=context_dim, base=base)


class InvertedTransform(lazy.LazyTransform):
    """The inverse of a transform with learned parameters: from data to base.

    Args:
        make: The transform from base to data, as a function of its parameters.
        conditional: The parameters, given a context.
    """

    def __init__(self, make: Callable[..., Transform], conditional: ConditionalParameters) -> None:
        super().__init__()
        self.make, self.conditional = make, conditional

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform for a context c (*batch, context_dim), or None."""
        return self.make(**self.conditional(c)).inv


class _VectorTransform(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True


class Planar(_VectorTransform):
    """y = x + u tanh(w . x + b), det = 1 + w . u tanh'(w . x + b).

    u is shifted along w so that w . u > -1, which makes the map a bijection.

    Args:
        u: The direction (*batch, dim), before the shift.
        w: The normal vector (*batch, dim).
        b: The offset (*batch, 1).
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        w_dot_u = _dot(w, u)
        self.coefficient = _above_minus_one(w_dot_u)  # w . u after the shift
        self.u = u + (self.coefficient - w_dot_u) * w / _dot(w, w)
        self.w, self.b = w, b

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * torch.tanh(_dot(self.w, x) + self.b)

    def _inverse(self, y: Tensor) -> Tensor:
        a = _solve_tanh(self.coefficient, _dot(self.w, y) + self.b)
        return y - self.u * torch.tanh(a)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy / dx|."""
        return torch.log1p(self.coefficient * _tanh_derivative(_dot(self.w, x) + self.b)).squeeze(-1)


class Radial(_VectorTransform):
    """y = x + s (x - c), s = beta / (alpha + r), r = |x - c|; det = (1 + s)^(dim - 1) (1 + alpha s / (alpha + r)).

    alpha > 0 and beta > -alpha make the map a bijection.

    Args:
        center: c, (*batch, dim).
        log_alpha: log alpha, (*batch, 1).
        raw_beta: (*batch, 1); beta increases with it and is 0 at 0.
    """

    def __init__(self, center: Tensor, log_alpha: Tensor, raw_beta: Tensor) -> None:
        super().__init__()
        self.center, self.alpha = center, log_alpha.exp()
        self.beta = self.alpha * _above_minus_one(raw_beta)

    def _call(self, x: Tensor) -> Tensor:
        offset = x - self.center
        return x + self.beta * offset / (self.alpha + _norm(offset))

    def _inverse(self, y: Tensor) -> Tensor:
        offset = y - self.center
        # |y - c| = r + beta r / (alpha + r) is a quadratic in r with one nonnegative root
        distance = _norm(offset)
        half = (self.alpha + self.beta - distance) / 2
        radius = (half**2 + self.alpha * distance).sqrt() - half
        return self.center + offset / (1 + self.beta / (self.alpha + radius))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy / dx|."""
        r = _norm(x - self.center)
        s = self.beta / (self.alpha + r)
        radial_derivative = s * self.alpha / (self.alpha + r)
        return ((x.shape[-1] - 1) * torch.log1p(s) + torch.log1p(radial_derivative)).squeeze(-1)


class Sylvester(_VectorTransform):
    """y = x + Q R tanh(S Q' x + b), det = prod_i (1 + r_ii s_ii tanh'_i).

    Q has orthonormal columns; R and S are upper triangular with r_ii s_ii > -1.

    Args:
        reflections: Vectors (*batch, rank, dim) of Householder reflections; Q is the first columns of their product.
        outer: (*batch, rank, rank). Its upper triangle is that of R; its diagonal determines r_ii s_ii.
        inner: (*batch, rank, rank). Its upper triangle is that of S; its diagonal is log s_ii.
        b: The offset (*batch, rank).
    """

    def __init__(self, reflections: Tensor, outer: Tensor, inner: Tensor, b: Tensor) -> None:
        super().__init__()
        self.q = _orthonormal(reflections)
        scale = inner.diagonal(dim1=-2, dim2=-1).exp()
        self.coefficient = _above_minus_one(outer.diagonal(dim1=-2, dim2=-1))  # r_ii s_ii
        self.r = outer.triu(1) + torch.diag_embed(self.coefficient / scale)
        self.s = inner.triu(1) + torch.diag_embed(scale)
        self.b = b

    def _call(self, x: Tensor) -> Tensor:
        return x + _matvec(self.q, _matvec(self.r, torch.tanh(self._preactivation(x))))

    def _inverse(self, y: Tensor) -> Tensor:
        # S Q' y + b = a + S R tanh(a) is triangular in a with r_ii s_ii on the diagonal: solve from the last row up
        product = self.s @ self.r
        right = self._preactivation(y)
        solved: list[Tensor] = []  # tanh(a_i), the last first
        for i in reversed(range(right.shape[-1])):
            level = right[..., i]
            for j, value in enumerate(reversed(solved), start=i + 1):
                level = level - product[..., i, j] * value
            solved.append(torch.tanh(_solve_tanh(self.coefficient[..., i], level)))
        return y - _matvec(self.q, _matvec(self.r, torch.stack(solved[::-1], -1)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy / dx|."""
        return torch.log1p(self.coefficient * _tanh_derivative(self._preactivation(x))).sum(-1)

    def _preactivation(self, x: Tensor) -> Tensor:
        return _matvec(self.s, _matvec(self.q.mT, x)) + self.b


def _solve_tanh(coefficient: Tensor, level: Tensor) -> Tensor:
    """Solves a + coefficient tanh(a) = level for a, with coefficient > -1."""
    coefficient, level = torch.broadcast_tensors(coefficient, level)
    width = coefficient.detach().abs()

    def residual(a: Tensor) -> tuple[Tensor, Tensor]:
        return a + coefficient * torch.tanh(a) - level, 1 + coefficient * _tanh_derivative(a)

    return find_root(residual, level.detach() - width, level.detach() + width)


def _tanh_derivative(a: Tensor) -> Tensor:
    return 1 - torch.tanh(a) ** 2


def _above_minus_one(raw: Tensor) -> Tensor:
    """A smooth increasing map from the real line onto (-1, inf), with 0 at 0."""
    return F.softplus(raw + math.log(math.e - 1)) - 1


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _norm(a: Tensor) -> Tensor:
    """The Euclidean norm, with a finite gradient at 0."""
    return (_dot(a, a) + torch.finfo(a.dtype).tiny).sqrt()


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """The first `rank` columns of the product of the reflections I - 2 v v' / |v|^2, (*batch, dim, rank)."""
    rank, dim = vectors.shape[-2:]
    columns = torch.eye(dim, rank, dtype=vectors.dtype, device=vectors.device)
    for vector in reversed(vectors.unbind(-2)):
        row = vector.unsqueeze(-2)
        columns = columns - 2 / _dot(row, row) * row.mT @ (row @ columns)
    return columns
