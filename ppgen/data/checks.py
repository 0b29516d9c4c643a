"""Checks of arrays of data: real numbers, at least one, all finite.

Arrays have shape (n, *event_shape). A *column* is a position in the event: a number, or for tables a name, if `columns`
gives one; a tuple of indices for images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["FiniteCheck", "InvalidValues", "check", "chunks", "describe_invalid", "name_columns"]

CHUNK = 2**20  # values that are looked at together
MAX_NAMED = 5  # the most columns that a message names


def name_columns(positions: np.ndarray, columns: Sequence[str] | None = None) -> str:
    """Positions in the event as text, such as "columns 'a', 'b' and 3 more".

    Args:
        positions: one position in each row, (number, rank of the event).
        columns: the names of columns, or None.
    """
    if positions.shape[1] == 0:
        return "the only column"
    if positions.shape[1] == 1:
        names = [repr(columns[p]) if columns else str(p) for p in positions[:MAX_NAMED, 0].tolist()]
        kind = "column" if len(positions) == 1 else "columns"
    else:
        names = [str(tuple(p)) for p in positions[:MAX_NAMED].tolist()]
        kind = "position" if len(positions) == 1 else "positions"
    more = f" and {len(positions) - MAX_NAMED} more" if len(positions) > MAX_NAMED else ""
    return f"{kind} {', '.join(names)}{more}"


@dataclass
class InvalidValues:
    """The invalid values of an array, counted chunk by chunk.

    Attributes:
        count: the number of invalid values so far.
        size: the number of values.
        rows: the number of rows with invalid values.
        length: the number of rows.
        first: the number of the first row with invalid values.
        positions: where in the event there were invalid values, booleans (*event_shape).
    """

    count: int = 0
    size: int = 0
    rows: int = 0
    length: int = 0
    first: int | None = None
    positions: Any = None

    def add(self, invalid: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Counts the next chunk.

        Args:
            invalid: booleans (n, *event_shape).
            rows: the numbers (n,) of its rows; those after the rows so far if left out.
        """
        found = np.flatnonzero(invalid.reshape(len(invalid), -1).any(axis=1))
        if len(found):
            first = int(rows[found].min()) if rows is not None else self.length + int(found[0])
            self.first = first if self.first is None else min(self.first, first)
            here = invalid.any(axis=0)
            self.positions = here if self.positions is None else self.positions | here
        self.count, self.rows = self.count + int(invalid.sum()), self.rows + len(found)
        self.size, self.length = self.size + invalid.size, self.length + len(invalid)

    def describe(self, columns: Sequence[str] | None = None, of: str = "") -> str:
        """The number of invalid values and of their rows, and their columns, as text.

        Args:
            columns: the names of columns, or None.
            of: what the rows are of, if not of all data.
        """
        where = name_columns(np.argwhere(self.positions), columns)
        first = f"the first is row {self.first}"
        return f"{self.count} of {self.size} values, in {self.rows} of {self.length} rows{of} ({first}), {where}"


def describe_invalid(invalid: np.ndarray, columns: Sequence[str] | None = None) -> str:
    """The number of invalid values and of their rows, and their columns, as text.

    Args:
        invalid: booleans (n, *event_shape).
        columns: the names of columns, or None.
    """
    found = InvalidValues()
    found.add(invalid)
    return found.describe(columns)


@dataclass
class FiniteCheck:
    """A check that data are finite, chunk by chunk.

    Args:
        name: the source, for errors.
        columns: the names of columns, for errors, or None.
        allow_nan: whether NaN, a missing value, is allowed.
        of: what the rows are of, for errors, if not of all data.
    """

    name: str = "data"
    columns: Sequence[str] | None = None
    allow_nan: bool = False
    of: str = ""
    nan: int = 0
    invalid: InvalidValues = field(default_factory=InvalidValues)

    def add(self, x: np.ndarray | torch.Tensor, rows: np.ndarray | None = None) -> bool:
        """Looks at the next chunk, and returns whether it has NaN.

        Args:
            x: numbers (n, *event_shape).
            rows: the numbers (n,) of its rows; those after the rows so far if left out.
        """
        invalid, nan = invalid_values(x)
        self.invalid.add(invalid, rows)
        self.nan += nan
        return nan > 0

    def finish(self) -> None:
        """Raises an error that counts the values that are not finite, if there are any.

        Raises:
            ValueError: with their rows and columns.
        """
        if (count := self.invalid.count) > (self.nan if self.allow_nan else 0):
            raise ValueError(
                f"{self.name}: {self.invalid.describe(self.columns, self.of)}, are not finite "
                f"({self.nan} NaN, {count - self.nan} infinite); drop those rows or fill them"
            )


def invalid_values(x: np.ndarray | torch.Tensor) -> tuple[np.ndarray, int]:
    """Where numbers are NaN or infinite, and how many are NaN.

    Args:
        x: the numbers.
    """
    if isinstance(x, torch.Tensor):
        finite = torch.isfinite(x)
        return (~finite).numpy(force=True), 0 if finite.all() else int(torch.isnan(x).sum())
    invalid = ~np.isfinite(x)
    return invalid, int(np.isnan(x).sum()) if invalid.any() else 0


def check(
    x: np.ndarray | torch.Tensor,
    *,
    name: str = "data",
    columns: Sequence[str] | None = None,
    allow_nan: bool = False,
    finite: bool = True,
) -> None:
    """Checks that data are finite real numbers, and that there are some.

    Args:
        x: an array or tensor (n, *event_shape); booleans are real numbers here.
        name: the source, for errors.
        columns: the names of columns, for errors, or None.
        allow_nan: whether NaN, a missing value, is allowed.
        finite: whether to look at the values, which reads all of them.

    Raises:
        TypeError: for anything but an array or a tensor of real numbers.
        ValueError: if there are no rows or no values, or values are NaN or infinite; the message counts them and their
            rows, numbered from 0, and names their columns.
    """
    if not isinstance(x, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name}: expected a NumPy array or a torch tensor, got {type(x).__name__}")
    real = x.dtype.kind in "biuf" if isinstance(x, np.ndarray) else not x.is_complex()
    if not real:
        raise TypeError(f"{name}: expected real numbers, got dtype {x.dtype}")
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(f"{name}: expected at least one row of values, got shape {tuple(x.shape)}")
    if finite:
        values = FiniteCheck(name, columns, allow_nan)
        for start, stop in chunks(x.shape):  # so that no second array of the size of the data is needed
            values.add(x[start:stop])
        values.finish()


def chunks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first row and the end of each chunk of an array, in turn.

    Args:
        shape: the shape of the array.
    """
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
