"""Checks of arrays of data: real numbers, at least one, all finite.

Arrays have shape (n, *event_shape). A *column* is a position in the event: a number, or for tables a name, if `columns`
gives one; a tuple of indices for images.
"""

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["check", "describe_invalid", "name_columns"]

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


def describe_invalid(invalid: np.ndarray, columns: Sequence[str] | None = None) -> str:
    """The number of invalid values and of their rows, and their columns, as text.

    Args:
        invalid: booleans (n, *event_shape).
        columns: the names of columns, or None.
    """
    rows = np.flatnonzero(invalid.reshape(len(invalid), -1).any(axis=1))
    where = name_columns(np.argwhere(invalid.any(axis=0)), columns)
    first = f"the first is row {rows[0]}"
    return f"{invalid.sum()} of {invalid.size} values, in {len(rows)} of {len(invalid)} rows ({first}), {where}"


def check(
    x: np.ndarray | torch.Tensor, *, name: str = "data", columns: Sequence[str] | None = None, allow_nan: bool = False
) -> None:
    """Checks that data are finite real numbers, and that there are some.

    Args:
        x: an array or tensor (n, *event_shape); booleans are real numbers here.
        name: the source, for errors.
        columns: the names of columns, for errors, or None.
        allow_nan: whether NaN, a missing value, is allowed.

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
    if isinstance(x, torch.Tensor):
        invalid, nan = (~torch.isfinite(x)).cpu().numpy(), int(torch.isnan(x).sum())
    else:
        invalid, nan = ~np.isfinite(x), int(np.isnan(x).sum())
    if invalid.sum() > (nan if allow_nan else 0):
        raise ValueError(
            f"{name}: {describe_invalid(invalid, columns)}, are not finite "
            f"({nan} NaN, {invalid.sum() - nan} infinite); drop those rows or fill them"
        )
