"""Latents of which each is coupled with few others given the global ones: sequences and crossed effects.

Let g be the global latents and z all others, a "field" of thousands of numbers. Where every term of log p depends on
few entries of z, the precision H(g, z) = -d^2 log p / dz^2 is sparse. Which entries it has is read from derivatives
(`ppgen.posterior.sparsity`). Terms that depend on many entries, such as the density of a vector, count by the rows of
their Hessian. Latents of the same name up to numbers, 50 or more, are a family, and all families are in z.

Sums of independent steps, x = cumsum(e), couple each step with all others. They are read in the coordinates
w = cumsum(e) or cumsum(cumsum(e)), whose differences are the steps: the Jacobian of this map is 1.
"""

import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.func import grad, jvp, vmap

from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.sparse_precision import Pattern, pattern_of
from ppgen.posterior.sparsity import colored, find_dependencies
from ppgen.tracing.sites import quote_names
from ppgen.utils.graphs import record_simplified

__all__ = ["MOST_GLOBAL", "LatentField", "UnreadableStructure", "find_field", "unreadable_because"]

FAMILY = 50  # least number of latents of a family
MOST_GLOBAL = 50  # latents
ORDERS, MOST_SUMS = (1, 2), 2  # of the sums that are tried, and of how many families
NODES = 3000  # operations of a program, above which derivatives take minutes to record
EQUAL, ROUNDING = 1e-8, 1e-12  # relative difference of two ways to compute the same; of the same way


def _load_forward_mode() -> None:
    """Uses forward mode once, since torch then loads rules of which its own warnings say that they are deprecated."""
    zero = torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (zero,), (zero,))


class UnreadableStructure(ValueError):
    """The latents have no structure that can be used; the message says why, as the end of a sentence.

    Args:
        message: the reason.
        names: the first site of each family whose latents depend on too many others.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


class Family(NamedTuple):
    """Latents that are alike.

    Attributes:
        names: the names of their sites.
        shape: the shape of all together on the real line.
        order: how often w is summed.
    """

    names: tuple[str, ...]
    shape: torch.Size
    order: int = 0

    def values(self, w: Tensor) -> Tensor:
        """The latents on the real line, from the coordinates w (numel,)."""
        x, axis = w.reshape(self.shape), int(np.argmax(self.shape))
        for _ in range(self.order):
            x = torch.cat([x.narrow(axis, 0, 1), x.diff(dim=axis)], axis)
        return x


class LatentField:
    """The field z of a program, given its families.

    Args:
        density: log p of all latents.
        families: the families.

    Attributes:
        size: the number of latents in z.
        global_index: the numbers of the others in a point.
        derivatives: the function from (g, z) to log p, its gradient in z, (n,), and the entries of H.
        pattern: the pattern of H.
        diagonal: one for entries on the diagonal, zero for all others.
        quadratic: whether log p is quadratic in z.

    Raises:
        UnreadableStructure: if H is not sparse.
    """

    def __init__(self, density: UnconstrainedLogDensity, families: Sequence[Family]) -> None:
        self.density, self.families = density, tuple(families)
        self.local = tuple(name for family in families for name in family.names)
        self.sizes = [family.shape.numel() for family in families]
        self.size = sum(self.sizes)
        starts = np.cumsum([0, *(shape.numel() for shape in density.shapes.values())])
        ranges = {k: torch.arange(*starts[i : i + 2]) for i, k in enumerate(density.shapes)}
        self.global_index = torch.cat([n for k, n in ranges.items() if k not in self.local] + [torch.arange(0)])
        local_index = torch.cat([ranges[name] for name in self.local])
        self._order = torch.cat([self.global_index, local_index]).argsort()
        self._read()

    def point(self, g: Tensor, z: Tensor) -> Tensor:
        """The point u (dim,) of global latents (D,) and a field of n numbers."""
        parts = z.reshape(-1).split(self.sizes)
        values = [family.values(w).reshape(-1) for family, w in zip(self.families, parts, strict=True)]
        return torch.cat([g, *values])[self._order]

    def parts_of(self, z: Tensor) -> dict[str, Tensor]:
        """The values of the field's latents on the real line, by name and in their shapes."""
        found: dict[str, Tensor] = {}
        for family, w in zip(self.families, z.reshape(-1).split(self.sizes), strict=True):
            values = family.values(w).reshape(len(family.names), -1)
            shapes = map(self.density.shapes.__getitem__, family.names)
            found |= {k: v.reshape(shape) for k, v, shape in zip(family.names, values, shapes, strict=True)}
        return found

    def family_of(self, entries: np.ndarray) -> list[str]:
        """The names of the families of these entries of z."""
        which = np.unique(np.searchsorted(np.cumsum(self.sizes), entries, side="right"))
        return [self.families[i].names[0] for i in which]

    def _terms(self, g: Tensor, z: Tensor) -> Tensor:
        return self.density.terms(self.point(g, z))

    def log_prob(self, g: Tensor, z: Tensor) -> Tensor:
        """The value of log p at global latents (D,) and a field (n,)."""
        return self._recorded_terms(g, z).sum()

    def _read(self) -> None:
        """Finds the entries of H, and records its computation."""
        _load_forward_mode()
        generator = torch.Generator().manual_seed(0)
        g, z, direction = (
            torch.rand(size, generator=generator, dtype=torch.float64)
            for size in (len(self.global_index), self.size, self.size)
        )
        terms = record_simplified(lambda g, z: self._terms(g, z), torch.zeros_like(g), torch.zeros_like(z))
        if not torch.equal(value := terms(g, z), self._terms(g, z)) or not value.isfinite().all():
            raise UnreadableStructure("their density cannot be recorded as a function of them")
        if len(getattr(getattr(terms, "__self__", None), "graph", fx.Graph()).nodes) > NODES:
            raise UnreadableStructure("the program samples them in a long loop, in the place of plates or vectors")

        def products(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return vmap(lambda v: jvp(function, (z,), (v,))[1])

        found = find_dependencies(products(lambda z: terms(g, z)), len(value), self.size)
        dense = torch.as_tensor(found.dense)
        rows: list[_OfTerms | _OfRows] = [_OfTerms(found.value, found.argument, self.size)]
        if len(dense):
            gradient = grad(lambda z: terms(g, z)[dense].sum())
            of_rows = find_dependencies(products(gradient), self.size, self.size)
            if len(of_rows.dense):
                names = self.family_of(of_rows.dense)
                raise UnreadableStructure(
                    f"given the others, {quote_names(names)} depend on too many of each other", names
                )
            rows.append(_OfRows(of_rows.value, of_rows.argument, self.size))
        key = np.concatenate([part.row * self.size + part.column for part in rows] + [np.arange(self.size)])
        diagonal = np.arange(self.size) * (self.size + 1)
        key = np.unique(np.concatenate([key[: -self.size], diagonal]))
        for part in rows:
            part.place = torch.as_tensor(np.searchsorted(key, part.row * self.size + part.column))
        numbers = np.split(np.arange(self.size), np.cumsum(self.sizes)[:-1])
        pattern = pattern_of(key // self.size, key % self.size, numbers)
        if pattern is None:
            raise UnreadableStructure("given the others, they form neither a sequence nor crossed effects")
        self.pattern: Pattern = pattern
        self.diagonal = torch.as_tensor(np.isin(key, diagonal)).double()

        def derivatives(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            entries = z.new_zeros(len(key))
            for part in rows:
                numbers = part.numbers(lambda z: terms(g, z), z, dense)
                entries = entries.index_add(0, part.place, -numbers)
            gradient = grad(lambda z: terms(g, z).sum())(z)
            return terms(g, z).sum(), gradient, entries

        self.derivatives = record_simplified(derivatives, g, z)
        self._recorded_terms = terms
        _, _, entries = self.derivatives(g, z)
        _, _, others = self.derivatives(g, z + direction)
        self.quadratic = torch.allclose(entries, others, rtol=ROUNDING, atol=ROUNDING * float(entries.abs().max()))
        a, b = torch.as_tensor(key // self.size), torch.as_tensor(key % self.size)
        product = torch.zeros_like(z).index_add(0, a, entries * direction[b])
        product = product.index_add(0, b, torch.where(a == b, 0.0, entries * direction[a]))
        expected = -jvp(grad(partial(self.log_prob, g)), (z,), (direction,))[1]
        if not torch.allclose(product, expected, rtol=EQUAL, atol=EQUAL * float(expected.abs().max())):
            raise UnreadableStructure("their curvature does not follow from the terms of log p")


class _OfTerms:
    """Second derivatives of terms that depend on few entries each.

    The entries have colors, such that a term depends on one of each color at most: its derivatives in the directions of
    two colors are its derivatives in two entries.

    Attributes:
        row: the row of each number in H, at least its column.
        column: its column.
        place: its place among all entries.
    """

    place: Tensor

    def __init__(self, value: np.ndarray, argument: np.ndarray, size: int) -> None:
        color = colored(value, argument, size)
        self._directions = [torch.as_tensor(color == c).double() for c in range(int(color.max(initial=0)) + 1)]
        terms = np.unique(value)
        of_color = np.full((len(self._directions), len(terms)), -1)
        of_color[color[argument], np.searchsorted(terms, value)] = argument
        pairs = list(itertools.combinations_with_replacement(range(len(self._directions)), 2))
        which, at, row, column = [], [], [], []
        for pair, (k, other) in enumerate(pairs):
            both = np.flatnonzero((of_color[k] >= 0) & (of_color[other] >= 0))
            which.append(np.full(len(both), pair))
            at.append(terms[both])
            row.append(np.maximum(of_color[k, both], of_color[other, both]))
            column.append(np.minimum(of_color[k, both], of_color[other, both]))
        self._at = torch.as_tensor(np.concatenate(which)), torch.as_tensor(np.concatenate(at))
        self._pairs = [torch.stack([self._directions[pair[i]] for pair in pairs]) for i in (0, 1)]
        self.row, self.column = np.concatenate(row), np.concatenate(column)

    def numbers(self, terms: Callable[[Tensor], Tensor], z: Tensor, dense: Tensor) -> Tensor:
        """The numbers at z."""
        if not len(self.row):
            return z.new_zeros(0)

        def second(first: Tensor, other: Tensor) -> Tensor:
            return jvp(lambda z: jvp(terms, (z,), (first,))[1], (z,), (other,))[1]

        return vmap(second)(*self._pairs)[self._at]


class _OfRows:
    """Second derivatives of the sum of the other terms, whose Hessian has few entries in each row."""

    place: Tensor

    def __init__(self, value: np.ndarray, argument: np.ndarray, size: int) -> None:
        color = colored(value, argument, size)
        self._directions = [torch.as_tensor(color == c).double() for c in range(int(color.max(initial=0)) + 1)]
        lower = value >= argument
        self.row, self.column = value[lower], argument[lower]
        self._at = torch.as_tensor(color[self.column]), torch.as_tensor(self.row)

    def numbers(self, terms: Callable[[Tensor], Tensor], z: Tensor, dense: Tensor) -> Tensor:
        """The numbers at z."""

        def of_dense(z: Tensor) -> Tensor:
            return terms(z)[dense].sum()

        gradient = grad(of_dense)
        return vmap(lambda v: jvp(gradient, (z,), (v,))[1])(torch.stack(self._directions))[self._at]


def find_field(density: UnconstrainedLogDensity) -> LatentField:
    """The field of a program's latents.

    Args:
        density: log p.

    Raises:
        UnreadableStructure: if there is none.
    """
    if density.discrete or not density.vectorized:
        raise UnreadableStructure("there are discrete latents, or the program reads values of latents")
    families = _families(density)
    count = density.dim - sum(family.shape.numel() for family in families)
    if not families or not 0 < count <= MOST_GLOBAL:
        raise UnreadableStructure(
            f"{count} of them are in sites of fewer than {FAMILY}, of which there should be 1 to {MOST_GLOBAL}"
        )
    try:
        return LatentField(density, families)
    except UnreadableStructure as error:
        first = error
    dense = first.names if len(first.names) <= MOST_SUMS else ()
    for orders in itertools.product((0, *ORDERS), repeat=len(dense)):
        if any(orders):
            order = dict(zip(dense, orders, strict=True))
            try:
                return LatentField(density, [f._replace(order=order.get(f.names[0], 0)) for f in families])
            except UnreadableStructure:
                continue
    raise first


def unreadable_because(density: UnconstrainedLogDensity) -> str:
    """Why there is no field, as the end of a sentence.

    Args:
        density: log p.
    """
    try:
        find_field(density)
    except UnreadableStructure as error:
        return str(error)
    return "there are too few of them"


def _families(density: UnconstrainedLogDensity) -> list[Family]:
    """Latents of one site, or of sites of one name up to numbers and of one shape, if there are many."""
    alike: dict[tuple, list[str]] = {}
    for name, shape in density.shapes.items():
        key = name if shape.numel() >= FAMILY else re.sub(r"\d+", "#", name)
        alike.setdefault((key, shape), []).append(name)
    families = []
    for (_, shape), names in alike.items():
        family = Family(tuple(names), shape if len(names) == 1 else torch.Size((len(names), *shape)))
        if family.shape.numel() >= FAMILY:
            families.append(family)
    return families
