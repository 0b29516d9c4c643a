"""Bijections that bend space along few directions: planar, radial (Rezende & Mohamed 2015), Sylvester (van den Berg et
al. 2018).

From base to data they and their log dets are formulas. Back again a planar map takes the root of one increasing
function, a Sylvester map one for each direction in turn, a radial map that of a quadratic, so that all score data too.
Here x is where a map starts, at the side of the base, and y where it ends.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn import functional as F

from ppgen.flows.given import Given
from ppgen.flows.roots import root
from ppgen.flows.zuko import lazy

__all__ = ["LowRank", "Planar", "Radial", "Sylvester"]


class _Vector(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True


class Planar(_Vector):
    """y = x + u tanh(w . x + b), det = 1 + w . u tanh'(w . x + b).

    u is moved along w until w . u > -1, without which it is no bijection.

    Args:
        u, w: (*batch, dim).
        b: (*batch, 1).
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        along = _dot(w, u)
        self.slope = _above_minus_one(along)
        self.u = u + (self.slope - along) * w / _dot(w, w)
        self.w, self.b = w, b

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * torch.tanh(_dot(self.w, x) + self.b)

    def _inverse(self, y: Tensor) -> Tensor:
        a = _bend(self.slope, _dot(self.w, y) + self.b)
        return y - self.u * torch.tanh(a)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        bent = _bell(_dot(self.w, x) + self.b)
        return torch.log1p(self.slope * bent).squeeze(-1)


class Radial(_Vector):
    """y = x + s (x - c), s = beta / (alpha + r), r = |x - c|; det = (1 + s)^(dim - 1) (1 + alpha s / (alpha + r)).

    alpha > 0 and beta > -alpha, without which it is no bijection.

    Args:
        center: c, (*batch, dim).
        width: log alpha, (*batch, 1).
        pull: (*batch, 1), beta is 0 at 0 and grows with it.
    """

    def __init__(self, center: Tensor, width: Tensor, pull: Tensor) -> None:
        super().__init__()
        self.center, self.alpha = center, width.exp()
        self.beta = self.alpha * _above_minus_one(pull)

    def _call(self, x: Tensor) -> Tensor:
        away = x - self.center
        return x + self.beta * away / (self.alpha + _norm(away))

    def _inverse(self, y: Tensor) -> Tensor:
        away = y - self.center
        # |y - c| = r + beta r / (alpha + r) is a quadratic in r with one root that is not negative
        reach = _norm(away)
        half = (self.alpha + self.beta - reach) / 2
        radius = (half**2 + self.alpha * reach).sqrt() - half
        return self.center + away / (1 + self.beta / (self.alpha + radius))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r = _norm(x - self.center)
        across = self.beta / (self.alpha + r)
        along = across * self.alpha / (self.alpha + r)
        return ((x.shape[-1] - 1) * torch.log1p(across) + torch.log1p(along)).squeeze(-1)


class Sylvester(_Vector):
    """y = x + Q R tanh(S Q' x + b), det = prod_i (1 + r_ii s_ii tanh'_i).

    Q has orthonormal columns, R and S are upper triangular with r_ii s_ii > -1.

    Args:
        reflections: (*batch, rank, dim), vectors of the Householder reflections whose product's first columns are Q.
        outer, inner: (*batch, rank, rank), whose upper triangles are R's and S's; their diagonals are raw, r_ii s_ii
            being a function of outer's and s_ii the exponential of inner's.
        b: (*batch, rank).
    """

    def __init__(self, reflections: Tensor, outer: Tensor, inner: Tensor, b: Tensor) -> None:
        super().__init__()
        self.q = _orthonormal(reflections)
        scale = inner.diagonal(dim1=-2, dim2=-1).exp()
        self.slope = _above_minus_one(outer.diagonal(dim1=-2, dim2=-1))
        self.r = outer.triu(1) + torch.diag_embed(self.slope / scale)
        self.s = inner.triu(1) + torch.diag_embed(scale)
        self.b = b

    def _call(self, x: Tensor) -> Tensor:
        return x + _times(self.q, _times(self.r, torch.tanh(self._inside(x))))

    def _inverse(self, y: Tensor) -> Tensor:
        # S Q' y + b = a + S R tanh(a), a triangular system with r_ii s_ii on its diagonal: from the last row up
        mixed = self.s @ self.r
        known = self._inside(y)
        bent: list[Tensor] = []
        for i in reversed(range(known.shape[-1])):
            level = known[..., i]
            for j, value in enumerate(reversed(bent), start=i + 1):
                level = level - mixed[..., i, j] * value
            bent.append(torch.tanh(_bend(self.slope[..., i], level)))
        return y - _times(self.q, _times(self.r, torch.stack(bent[::-1], -1)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.log1p(self.slope * _bell(self._inside(x))).sum(-1)

    def _inside(self, x: Tensor) -> Tensor:
        return _times(self.s, _times(self.q.mT, x)) + self.b


class LowRank(lazy.LazyTransform):
    """A context to one of the transforms above, turned round: from data to base."""

    def __init__(self, make: Callable[..., Transform], given: Given) -> None:
        super().__init__()
        self.make, self.given = make, given

    def forward(self, c: Tensor | None = None) -> Transform:
        return self.make(**self.given(c)).inv


def _bend(slope: Tensor, level: Tensor) -> Tensor:
    """a with a + slope tanh(a) = level."""
    slope, level = torch.broadcast_tensors(slope, level)
    width = slope.detach().abs()

    def rest(a: Tensor) -> tuple[Tensor, Tensor]:
        return a + slope * torch.tanh(a) - level, 1 + slope * _bell(a)

    return root(rest, level.detach() - width, level.detach() + width)


def _bell(a: Tensor) -> Tensor:
    """tanh'(a)."""
    return 1 - torch.tanh(a) ** 2


def _above_minus_one(raw: Tensor) -> Tensor:
    """The line onto (-1, inf), smooth and increasing, 0 at 0."""
    return F.softplus(raw + math.log(math.e - 1)) - 1


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _norm(a: Tensor) -> Tensor:
    """|a|, with a gradient at 0 too."""
    return (_dot(a, a) + torch.finfo(a.dtype).tiny).sqrt()


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """The first columns of a product of reflections I - 2 v v' / |v|^2, one for each vector: (*, dim, rank)."""
    rank, dim = vectors.shape[-2:]
    columns = torch.eye(dim, rank, dtype=vectors.dtype, device=vectors.device)
    for vector in reversed(vectors.unbind(-2)):
        row = vector.unsqueeze(-2)
        columns = columns - 2 / _dot(row, row) * row.mT @ (row @ columns)
    return columns
