"""The log density of a program on many rows, as a sum over chunks of rows or an estimate from a subset of them.

Let rows i = 1 .. N of the arguments be independent given the latents u, so that

    log p(u) = log prior(u) + sum_i l_i(u)

A run of the program on some rows gives the prior and the terms of these rows: the sites whose log density has another
shape on more rows are terms of rows, and all others, with the Jacobians of the latents, are the prior. Nothing but the
sites is read, so the plate of the rows may have any name. That the sum over chunks is log p(u) is checked at a point.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.posterior.control_variate import FACTOR, ControlVariate, same_arguments
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.noted_latents import NotedLatents
from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.loss_scales import plates_scale
from ppgen.tracing.sites import Program, Site, is_deterministic, sample_sites
from ppgen.utils.torch_private import record_function

__all__ = ["RowChunks", "RowWeights", "split_by_rows"]

ROWS = 5000  # of the first subset; of twice as many rows or less, all are used
CHECKED = 64  # draws at which the error of a subset is measured
TERMS = 2**20  # rows times points that are evaluated at once, which bounds the memory
POINTS = (1, 8, 64)  # numbers of points for which graphs are recorded
SMALL, LARGE = 3, 5  # rows of the two runs that tell which sites are terms of rows
EQUAL = 1e-8  # relative difference of log p and the sum over chunks
TRIED = 5  # points at which they are compared, of which one must have a density


class RowWeights(ProgramInContext):
    """A program on some of its rows, whose sites are weighted.

    Args:
        program: the program.
        rows: the names of the sites that are terms of rows, each with the scale that its plates have on all rows.
        row_weight: the weight of these.
        prior_weight: the weight of all other sites.
    """

    def __init__(self, program: Program, rows: dict[str, float], row_weight: float, prior_weight: float) -> None:
        super().__init__(program)
        self.rows, self.row_weight, self.prior_weight = rows, row_weight, prior_weight

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with _Weights(self):
            return self.program(*args, **kwargs)


class _Weights(Messenger):
    def __init__(self, weights: RowWeights) -> None:
        super().__init__()
        self.weights = weights

    def _pyro_sample(self, msg: Site) -> None:
        rows = self.weights.rows
        if msg["name"] in rows:
            msg["scale"] = msg["scale"] * (self.weights.row_weight * rows[msg["name"]] / plates_scale(msg))
        else:
            msg["scale"] = msg["scale"] * self.weights.prior_weight


class RowChunks:
    """The exact log density, computed chunk by chunk in memory that does not grow with the rows.

    Args:
        whole: the log density on all rows, whose arguments are used.
        positions: which of the arguments have the rows, in their first dimension.
        rows: the sites that are terms of rows, as for `RowWeights`.

    Attributes:
        size: the number of rows, N.
    """

    unit = "rows"

    def __init__(self, whole: UnconstrainedLogDensity, positions: Sequence[int], rows: dict[str, float]) -> None:
        self.first, self.searched, self.checked = ROWS, ROWS, CHECKED
        self.whole, self.positions, self.rows = whole, tuple(positions), rows
        self.size = len(whole.args[positions[0]])
        self._parts: dict[int, UnconstrainedLogDensity] = {}
        self._recorded: dict[tuple[int, int], Callable] = {}

    def args(self, index: slice | Tensor) -> tuple:
        """The arguments of the program, with these rows."""
        return tuple(part[index] if i in self.positions else part for i, part in enumerate(self.whole.args))

    def scaled(self, index: Tensor) -> UnconstrainedLogDensity:
        """The log density by some rows, scaled to all.

        Args:
            index: the rows.
        """
        program = RowWeights(self.whole.model, self.rows, self.size / len(index), 1.0)
        return UnconstrainedLogDensity(program, self.args(index))

    def estimate(self, index: Tensor, difference: ControlVariate) -> "RowSubset":
        """A program on some rows, scaled to all, with a control variate.

        Args:
            index: the rows.
            difference: the control variate.
        """
        return RowSubset(self, index, difference)

    def begin_at(self, u: Tensor) -> None:
        """Nothing depends on a point."""

    def other_error(self, u: Tensor) -> float:
        """The sum over rows is exact."""
        return 0.0

    def log_prob(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> Tensor:
        """The values of log p at points (n, dim): (n,).

        Args:
            u: the points.
            show: a function that is told how far the sum is.
        """
        return self.log_prob_and_grad(u, show)[0]

    def log_prob_and_grad(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> tuple[Tensor, Tensor]:
        """The values of log p (n,) and its gradients (n, dim) at points (n, dim).

        Args:
            u: the points.
            show: a function that is told how far the sum is.
        """
        self.whole.evaluations["gradients"] += len(u)
        values, gradients = zip(*(self._batch(part, show) for part in u.split(POINTS[-1])), strict=True)
        return torch.cat(values), torch.cat(gradients)

    def _batch(self, u: Tensor, show: Callable[[str], object]) -> tuple[Tensor, Tensor]:
        """The sums over all chunks, at no more points than are evaluated at once."""
        points = next(size for size in POINTS if size >= len(u))
        padded = torch.cat([u, u[:1].expand(points - len(u), -1)])
        count = -(-self.size // max(1, TERMS // points))
        ends = [self.size * (i + 1) // count for i in range(count)]
        value, gradient = u.new_zeros(points), torch.zeros_like(padded)
        for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            show(f"{len(u)} points, {start / self.size:.0%} of the rows" if count > 1 and i else "")
            part, change = self.part(padded, slice(start, end))
            value, gradient = value + part, gradient + change
        return value[: len(u)], gradient[: len(u)]

    def part(self, u: Tensor, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The values (n,) and the gradients (n, dim) of the part of some rows, with their share of the prior.

        Args:
            u: points, (n, dim).
            index: the rows.
        """
        args = self.args(index)
        tensors = [args[i] for i in self.positions]
        rows = len(tensors[0])
        key = len(u), rows
        with torch.no_grad():
            if key not in self._recorded:
                density = self._density(args, rows)

                def function(points: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
                    replaced = iter(given)
                    with density.on(tuple(next(replaced) if i in self.positions else a for i, a in enumerate(args))):
                        return density.batched_grad_and_value(points)

                self._recorded[key] = record_function(function, u, *tensors)
            gradient, value = self._recorded[key](u, *tensors)
        return value, gradient

    def _density(self, args: tuple, rows: int) -> UnconstrainedLogDensity:
        """The density of a chunk of so many rows."""
        if rows not in self._parts:
            program = RowWeights(self.whole.model, self.rows, 1.0, rows / self.size)
            self._parts[rows] = UnconstrainedLogDensity(program, args, jacobian_weight=rows / self.size)
        return self._parts[rows]


class RowSubset(ProgramInContext):
    """A program on a subset of its rows, whose log density estimates that of all rows.

    Args:
        chunks: all rows.
        index: the subset, (m,).
        difference: D, as the difference of two control variates.
    """

    def __init__(self, chunks: RowChunks, index: Tensor, difference: ControlVariate) -> None:
        super().__init__(RowWeights(chunks.whole.model, chunks.rows, chunks.size / len(index), 1.0))
        self.difference, self.args = difference, chunks.args(index)
        self.names, self._all = tuple(chunks.whole.shapes), chunks.whole.args

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with NotedLatents(self.names) as latents:
            result = self.program(*args, **kwargs)
        u = latents.point
        if u.shape != self.difference.modes.center.shape[1:]:  # particles then run under vmap
            raise ValueError("a program on a subset of rows does not broadcast over particles")
        pyro.factor(FACTOR, self.difference(u))
        return result

    def is_of(self, data: tuple) -> bool:
        """Whether these are the arguments from which the subset was taken.

        Args:
            data: the arguments.
        """
        return same_arguments(data, self._all)


def split_by_rows(whole: UnconstrainedLogDensity) -> RowChunks | None:
    """Splits a log density into terms of rows; None if its rows are not independent given the latents.

    Args:
        whole: the log density on all rows.
    """
    lengths = [len(part) if isinstance(part, Tensor) and part.dim() else 0 for part in whole.args]
    size = max(lengths, default=0)
    positions = [i for i, length in enumerate(lengths) if length == size]
    if size <= 2 * ROWS or not whole.vectorized:
        return None
    chunks = RowChunks(whole, positions, {})
    try:
        chunks.rows = _terms_of_rows(chunks)
        return chunks if chunks.rows and _is_sum(chunks) else None
    except (ValueError, RuntimeError, IndexError, TypeError):  # the program does not run on some of its rows
        return None


def _terms_of_rows(chunks: RowChunks) -> dict[str, float]:
    """The sites whose log density has another shape on more rows, with the scale that their plates have on all rows.

    It is empty if a latent is one of a row.
    """
    whole = chunks.whole
    u = torch.zeros(whole.dim, dtype=torch.float64)
    sites = sample_sites(whole.trace(u))
    few, more = (UnconstrainedLogDensity(whole.model, chunks.args(slice(0, rows))) for rows in (SMALL, LARGE))
    if not few.shapes == more.shapes == whole.shapes:
        return {}
    runs = [sample_sites(density.trace(u)) for density in (few, more)]
    shapes = [{name: (site["log_prob"].shape, site["value"].shape) for name, site in run.items()} for run in runs]
    names = [name for name in sites if shapes[0][name] != shapes[1][name] and not is_deterministic(sites[name])]
    return {name: plates_scale(sites[name]) for name in names}


def _is_sum(chunks: RowChunks) -> bool:
    """Whether log p is the sum over every other row and the rest, at a point where it is finite."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIED):
        u = torch.rand(1, chunks.whole.dim, generator=generator, dtype=torch.float64)
        expected = chunks.whole.log_prob(u)
        if expected.isfinite():
            even, odd = (chunks.part(u, torch.arange(start, chunks.size, 2))[0] for start in (0, 1))
            return torch.allclose(expected, even + odd, rtol=EQUAL, atol=EQUAL)
    return False
