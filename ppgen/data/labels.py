"""Labels as the source wrote them, into integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = -1  # the label of rows whose label is not known


def row_number(row: int) -> str:
    """How a row is named where the source has no lines."""
    return f"row {row} (the first is 0)"


def encode(
    labels: np.ndarray | pd.Series, *, name: str, place: Callable[[int], str] = row_number
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """int64 labels, and the names they index or None.

    Integers stay as they are, be they stored as integers, floats or text; anything else is read as names,
    sorted, and numbered from 0. Raises ValueError for missing labels and for numbers that are not integers;
    `name` and `place(row)` say where.
    """
    import pandas as pd

    series = pd.Series(labels)
    missing = np.flatnonzero(series.isna() | (series.astype(object) == ""))
    if missing.size:
        raise ValueError(f"{name}, {place(missing[0])}: the label is missing ({missing.size} of {len(series)} are)")
    numbers = None
    if not pd.api.types.is_bool_dtype(series.dtype):
        numbers = pd.to_numeric(series.astype(object), errors="coerce").to_numpy(np.float64)
    if numbers is None or np.isnan(numbers).any():
        names, codes = np.unique(series.astype(str).to_numpy(object), return_inverse=True)
        return codes.astype(np.int64), tuple(names.tolist())
    other = np.flatnonzero((numbers != np.round(numbers)) | (np.abs(numbers) >= 2.0**63))
    if other.size:
        raise ValueError(
            f"{name}, {place(other[0])}: expected a label, an integer or a name, "
            f"got {series.iloc[other[0]]}; a column of measurements holds no labels"
        )
    return numbers.astype(np.int64), None
