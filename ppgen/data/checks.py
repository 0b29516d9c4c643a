"""What every array of data must satisfy before a model sees it: numbers, at least one, all finite.

Arrays are rows first, shape (n, *event_shape). A *column* is a position of the event: a number, or a name
where `columns` gives one, for tables; a tuple of indices for images.
"""

from collections.abc import Sequence

import numpy as np
import torch

SHOWN = 5  # so many columns are named in a message


def name_columns(positions: np.ndarray, columns: Sequence[str] | None = None) -> str:
    """Event positions, one a row of `positions`, as text for a message: "columns 'a', 'b' and 3 more"."""
    if positions.shape[1] == 0:
        return "the only column"
    if positions.shape[1] == 1:
        names = [repr(columns[p]) if columns else str(p) for p in positions[:SHOWN, 0].tolist()]
        kind = "column" if len(positions) == 1 else "columns"
    else:
        names = [str(tuple(p)) for p in positions[:SHOWN].tolist()]
        kind = "position" if len(positions) == 1 else "positions"
    more = f" and {len(positions) - SHOWN} more" if len(positions) > SHOWN else ""
    return f"{kind} {', '.join(names)}{more}"


def tally(bad: np.ndarray, columns: Sequence[str] | None = None) -> str:
    """Where the mask `bad`, shape (n, *event_shape), holds: how many values, how many rows, which columns."""
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    where = name_columns(np.argwhere(bad.any(axis=0)), columns)
    first = f"the first is row {rows[0]}"
    return f"{bad.sum()} of {bad.size} values, in {len(rows)} of {len(bad)} rows ({first}), {where}"


def check(x: np.ndarray | torch.Tensor, *, name: str = "data", columns: Sequence[str] | None = None) -> None:
    """Raise unless `x`, shape (n, *event_shape), holds finite real numbers and at least one of them.

    Raises TypeError for anything but a NumPy array or a torch tensor of real numbers (booleans count), and
    ValueError for no rows axis, no values, or values that are NaN or infinite; the message counts those and
    their rows, numbered from 0, and names their columns. `name` says whose data it is.
    """
    if not isinstance(x, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name}: expected a NumPy array or a torch tensor, got {type(x).__name__}")
    real = x.dtype.kind in "biuf" if isinstance(x, np.ndarray) else not x.is_complex()
    if not real:
        raise TypeError(f"{name}: expected real numbers, got dtype {x.dtype}")
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(f"{name}: expected at least one row of values, got shape {tuple(x.shape)}")
    if isinstance(x, torch.Tensor):
        bad, nan = (~torch.isfinite(x)).cpu().numpy(), int(torch.isnan(x).sum())
    else:
        bad, nan = ~np.isfinite(x), int(np.isnan(x).sum())
    if bad.any():
        raise ValueError(
            f"{name}: {tally(bad, columns)}, are not finite ({nan} NaN, {bad.sum() - nan} infinite); "
            f"drop those rows or fill them"
        )
