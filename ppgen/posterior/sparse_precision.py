"""Cholesky factors of sparse precision matrices, in operations of torch that have gradients.

    Chain     H is banded in some order, as for sequences: block-tridiagonal, factored by cyclic reduction. Every other
              block is eliminated, all at once, which leaves a chain of half the length.
    Arrow     H falls into small blocks once a few variables are set apart, as for crossed effects: the blocks are
              eliminated, all at once, and the rest, a Schur complement, is dense.

With H = L L' in the order of elimination, a draw of N(0, H^-1) is L'^-1 e of noise e ~ N(0, I).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

__all__ = ["Factor", "Pattern", "pattern_of"]

BLOCK = 16  # least size of the blocks of a chain, since small matrices take as long as those of this size
WIDEST = 64  # bandwidth of a chain
MOST_IN_BLOCK, MOST_IN_REST = 8, 3000  # variables of a block of an arrow, and of those that are set apart
NUMBERS = 2**25  # of the part of an arrow that joins blocks and rest, which bounds the memory


class Factor(Protocol):
    """L of a matrix H = L L' of n variables."""

    log_det: Tensor

    def solve(self, b: Tensor) -> Tensor:
        """H^-1 b, (n,)."""

    def draw(self, e: Tensor) -> Tensor:
        """L'^-1 e for noise e (n,)."""


class Pattern(Protocol):
    """Where the entries of a symmetric matrix are, in the order in which it is factored."""

    def factor(self, entries: Tensor) -> Factor:
        """The factor of the matrix with these entries.

        Raises:
            torch.linalg.LinAlgError: if it is not positive definite.
        """

    def log_det_slope(self, entries: Tensor, factor: Any) -> Tensor:
        """The derivatives of log |H| in the entries, which are those of H^-1, twice those off the diagonal."""


def pattern_of(row: np.ndarray, column: np.ndarray, families: Sequence[np.ndarray]) -> Pattern | None:
    """The pattern of a symmetric matrix; None if it is neither a chain nor an arrow.

    Args:
        row: the row of each entry; entries above the diagonal are left out.
        column: the column of each entry.
        families: the variables of each family, of which an arrow sets apart whole ones.
    """
    size = sum(map(len, families))
    graph = sparse.csr_array((np.ones(len(row)), (row, column)), shape=(size, size))
    graph = sparse.csr_array(graph + graph.T)
    order = np.asarray(csgraph.reverse_cuthill_mckee(graph, symmetric_mode=True))
    position = np.empty(size, dtype=np.int64)
    position[order] = np.arange(size)
    width = int(np.abs(position[row] - position[column]).max(initial=1))
    if width <= WIDEST:
        return ChainPattern(position[row], position[column], torch.as_tensor(order.astype(np.int64)), max(width, BLOCK))
    degree = np.diff(graph.indptr)
    apart = np.zeros(size, dtype=bool)
    for family in sorted(families, key=lambda family: -degree[family].mean())[:-1]:
        apart[family] = True
        if apart.sum() > MOST_IN_REST:
            return None
        inside = np.flatnonzero(~apart)
        label = csgraph.connected_components(graph[inside][:, inside])[1]
        count = np.bincount(label)
        if count.max() <= MOST_IN_BLOCK:
            numbers = len(count) * int(count.max()) * int(apart.sum())
            return _arrow(row, column, apart, label, count) if numbers <= NUMBERS else None
    return None


class ChainPattern:
    """A banded matrix.

    Args:
        row: the row of each entry, in the order of the chain.
        column: the column of each entry.
        order: the variable at each position.
        width: the size of blocks, at least the bandwidth.
    """

    def __init__(self, row: np.ndarray, column: np.ndarray, order: Tensor, width: int) -> None:
        self.order, self.width = order, width
        self.blocks = -(-len(order) // width)
        a, b = torch.as_tensor(np.maximum(row, column)), torch.as_tensor(np.minimum(row, column))
        inside = a // width == b // width
        self._diagonal = inside & (a == b)
        self._inside, self._below = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        flat = (a // width * width + a % width) * width + b % width
        mirrored = (a // width * width + b % width) * width + a % width
        self._at, self._mirrored = flat[self._inside], mirrored[self._inside]
        self._at_below = flat[self._below] - width * width
        self._off_diagonal = (~self._diagonal)[self._inside].double()
        padded = self.blocks * width - len(order)
        self._padding = torch.cat([torch.zeros(len(order)), torch.ones(padded)]).double().reshape(-1, width)

    def factor(self, entries: Tensor) -> Factor:
        """The factor of the matrix with these entries."""
        count, width = self.blocks, self.width
        inside = entries[self._inside]
        flat = entries.new_zeros(count * width * width).index_add(0, self._at, inside)
        flat = flat.index_add(0, self._mirrored, inside * self._off_diagonal)
        diagonal = flat.reshape(count, width, width) + self._padding.diag_embed()
        below = entries.new_zeros((count - 1) * width * width).index_add(0, self._at_below, entries[self._below])
        return Chain(diagonal, below.reshape(count - 1, width, width), self.order)

    def log_det_slope(self, entries: Tensor, factor: Any) -> Tensor:
        """The derivatives of log |H| in the entries."""
        with torch.enable_grad():
            entries = entries.detach().requires_grad_()
            return torch.autograd.grad(self.factor(entries).log_det, entries)[0]


class _Level(NamedTuple):
    """The blocks that are eliminated at one level of cyclic reduction: the second, the fourth and so on.

    Attributes:
        root: L of each, (k, w, w).
        before: L^-1 H of each with the block before it.
        after: L^-1 H of each with the block after it; zero for a last block.
    """

    root: Tensor
    before: Tensor
    after: Tensor


class Chain:
    """The factor of a block-tridiagonal matrix, by cyclic reduction.

    Args:
        diagonal: the blocks on the diagonal, (m, w, w).
        below: the blocks below it, (m - 1, w, w).
        order: the variable at each position.
    """

    def __init__(self, diagonal: Tensor, below: Tensor, order: Tensor) -> None:
        self.order, self.shape = order, diagonal.shape[:2]
        self._levels: list[_Level] = []
        self.log_det = diagonal.new_zeros(())
        while len(diagonal) > 1:
            root = torch.linalg.cholesky(diagonal[1::2])
            before = torch.linalg.solve_triangular(root, below[::2], upper=False)
            after = torch.linalg.solve_triangular(root, _to_length(below[1::2].mT, len(root)), upper=False)
            self._levels.append(_Level(root, before, after))
            self.log_det = self.log_det + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum()
            diagonal = diagonal[::2] - _at_others(before.mT @ before, after.mT @ after, len(diagonal[::2]))
            left = len(diagonal) - 1
            below = -after[:left].mT @ before[:left]
        self._last = torch.linalg.cholesky(diagonal[0])
        self.log_det = self.log_det + 2 * self._last.diagonal().log().sum()

    def solve(self, b: Tensor) -> Tensor:
        """H^-1 b, (n,)."""
        right, parts = self._blocks(b), []
        for level in self._levels:
            part = torch.linalg.solve_triangular(level.root, right[1::2], upper=False)
            right = right[::2] - _at_others(level.before.mT @ part, level.after.mT @ part, len(right[::2]))
            parts.append(part)
        return self._backwards(torch.linalg.solve_triangular(self._last, right[0], upper=False), parts)

    def draw(self, e: Tensor) -> Tensor:
        """L'^-1 e for noise e (n,)."""
        noise, parts = self._blocks(e), []
        for _ in self._levels:
            parts.append(noise[1::2])
            noise = noise[::2]
        return self._backwards(noise[0], parts)

    def _blocks(self, x: Tensor) -> Tensor:
        """Numbers (n,) as vectors (m, w, 1)."""
        count, width = self.shape
        return _to_length(x[self.order], count * width).reshape(count, width, 1)

    def _backwards(self, last: Tensor, parts: list[Tensor]) -> Tensor:
        x = torch.linalg.solve_triangular(self._last.mT, last, upper=True)[None]
        for level, part in zip(reversed(self._levels), reversed(parts), strict=True):
            count = len(part)
            right = part - level.before @ x[:count] - level.after @ _to_length(x[1:], count)
            between = torch.linalg.solve_triangular(level.root.mT, right, upper=True)
            x = torch.cat([torch.stack([x[:count], between], 1).flatten(0, 1), x[count:]])
        return torch.empty_like(self.order, dtype=x.dtype).index_copy(0, self.order, x.flatten()[: len(self.order)])


def _to_length(x: Tensor, length: int) -> Tensor:
    """A tensor with zeros after it."""
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def _at_others(before: Tensor, after: Tensor, length: int) -> Tensor:
    """What blocks that are eliminated contribute to those before and after them."""
    return _to_length(before, length) + torch.cat([torch.zeros_like(before[:1]), after[: length - 1]])


@dataclass(frozen=True)
class ArrowPattern:
    """A matrix of small blocks and a dense rest.

    Attributes:
        shape: the number of blocks, the size of the largest, and that of the rest.
        slots: the place of each variable: that in the blocks, (count, size), or, beyond, in the rest.
        places: for the three parts, blocks, joints and rest, the entries in it and their flat places in it.
        padding: one on the diagonal of blocks where there is no variable.
    """

    shape: tuple[int, int, int]
    slots: Tensor
    places: tuple[tuple[Tensor, Tensor], ...]
    padding: Tensor

    def factor(self, entries: Tensor) -> Factor:
        """The factor of the matrix with these entries."""
        count, size, rest = self.shape
        shapes = (count, size, size), (count, size, rest), (rest, rest)
        inner, joint, outer = (
            entries.new_zeros(int(np.prod(shape))).index_add(0, place, entries[which]).reshape(shape)
            for shape, (which, place) in zip(shapes, self.places, strict=True)
        )
        return Arrow(inner + self.padding, joint, outer, self.slots)

    def log_det_slope(self, entries: Tensor, factor: "Arrow") -> Tensor:
        """The derivatives of log |H| in the entries."""
        slope = torch.zeros_like(entries)
        for times, inverse, (which, place) in zip((1, 2, 1), factor.inverse(), self.places, strict=True):
            slope = slope.index_add(0, which, times * inverse.flatten()[place])
        return slope


def _arrow(
    row: np.ndarray, column: np.ndarray, apart: np.ndarray, label: np.ndarray, count: np.ndarray
) -> ArrowPattern:
    """The pattern of an arrow.

    Args:
        row: the row of each entry.
        column: the column of each entry.
        apart: which variables are set apart.
        label: the block of each of the others.
        count: the number of variables of each block.
    """
    blocks, size, rest = len(count), int(count.max()), int(apart.sum())
    slots = np.empty(len(apart), dtype=np.int64)
    slots[apart] = blocks * size + np.arange(rest)
    by_label = np.argsort(label, kind="stable")
    within = np.empty(len(label), dtype=np.int64)
    within[by_label] = np.arange(len(label)) - np.repeat(np.cumsum(count) - count, count)
    slots[~apart] = label * size + within
    a, b = np.minimum(slots[row], slots[column]), np.maximum(slots[row], slots[column])
    inner, outer = blocks * size, np.arange(len(row))
    in_block, in_rest = b < inner, a >= inner
    places = []
    for which, mirrored, place in (
        (in_block, True, lambda p, q: (p // size * size + p % size) * size + q % size),
        (~in_block & ~in_rest, False, lambda p, q: p * rest + q - inner),
        (in_rest, True, lambda p, q: (p - inner) * rest + q - inner),
    ):
        chosen, p, q = outer[which], a[which], b[which]
        at = place(p, q)
        if mirrored:
            chosen, at = np.concatenate([chosen, chosen[p != q]]), np.concatenate([at, place(q, p)[p != q]])
        places.append((torch.as_tensor(chosen), torch.as_tensor(at)))
    padding = torch.as_tensor(np.arange(size) >= count[:, None]).double().diag_embed()
    return ArrowPattern((blocks, size, rest), torch.as_tensor(slots), tuple(places), padding)


class Arrow:
    """The factor of a matrix of small blocks and a dense rest.

    Args:
        inner: the blocks, (k, s, s).
        joint: the entries that join blocks and rest, (k, s, r).
        outer: the rest, (r, r).
        slots: the place of each variable.
    """

    def __init__(self, inner: Tensor, joint: Tensor, outer: Tensor, slots: Tensor) -> None:
        self.slots = slots
        one = inner.shape[-1] == 1
        self._inner = inner.sqrt() if one else torch.linalg.cholesky(inner)
        if one and not (inner > 0).all():
            raise torch.linalg.LinAlgError("a block is not positive definite")
        self._joint = joint / self._inner if one else torch.linalg.solve_triangular(self._inner, joint, upper=False)
        flat = self._joint.flatten(0, 1)
        self._outer = torch.linalg.cholesky(outer - flat.mT @ flat)
        diagonal = torch.cat([self._inner.diagonal(dim1=-2, dim2=-1).flatten(), self._outer.diagonal()])
        self.log_det = 2 * diagonal.log().sum()

    def solve(self, b: Tensor) -> Tensor:
        """H^-1 b, (n,)."""
        inner, outer = self._parts(b)
        inner = torch.linalg.solve_triangular(self._inner, inner, upper=False)
        outer = outer - self._joint.flatten(0, 1).mT @ inner.flatten(0, 1)
        return self._backwards(inner, torch.linalg.solve_triangular(self._outer, outer, upper=False))

    def draw(self, e: Tensor) -> Tensor:
        """L'^-1 e for noise e (n,)."""
        return self._backwards(*self._parts(e))

    def inverse(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three parts of H^-1: blocks, joints and rest."""
        outer = torch.cholesky_inverse(self._outer)
        joint = torch.linalg.solve_triangular(self._inner.mT, self._joint, upper=True)
        both = (joint.flatten(0, 1) @ outer).reshape(joint.shape)
        inner = torch.cholesky_inverse(self._inner) + both @ joint.mT
        return inner, -both, outer

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = self._inner.shape[0] * self._inner.shape[1]
        flat = x.new_zeros(inner + len(self._outer)).index_copy(0, self.slots, x)
        return flat[:inner].reshape(*self._inner.shape[:2], 1), flat[inner:, None]

    def _backwards(self, inner: Tensor, outer: Tensor) -> Tensor:
        outer = torch.linalg.solve_triangular(self._outer.mT, outer, upper=True)
        inner = torch.linalg.solve_triangular(self._inner.mT, inner - self._joint @ outer, upper=True)
        return torch.cat([inner.flatten(), outer.flatten()])[self.slots]
