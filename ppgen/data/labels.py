"""Labels as written in the source, encoded as integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["UNKNOWN", "encode_labels", "row_number"]

UNKNOWN = -1  # the label of a row whose label is not known


def row_number(row: int) -> str:
    """The description of a row in a source without line numbers."""
    return f"row {row} (the first is 0)"


def encode_labels(
    labels: np.ndarray | pd.Series, *, name: str, location: Callable[[int], str] = row_number
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Encodes labels as integers.

    Integers are kept, whether they are stored as integers, floats or text. All else is read as names, which are sorted
    and numbered from 0.

    Args:
        labels: the labels (n,).
        name: the source, for errors.
        location: describes where a row is in the source, for errors.

    Returns:
        The labels, int64 (n,), and the names that they index, or None.

    Raises:
        ValueError: for missing labels, and for numbers that are not integers.
    """
    import pandas as pd

    series = pd.Series(labels)
    missing = np.flatnonzero(series.isna() | (series.astype(object) == ""))
    if missing.size:
        raise ValueError(f"{name}, {location(missing[0])}: the label is missing ({missing.size} of {len(series)} are)")
    numbers = None
    if not pd.api.types.is_bool_dtype(series.dtype):
        numbers = pd.to_numeric(series.astype(object), errors="coerce").to_numpy(np.float64)
    if numbers is None or np.isnan(numbers).any():
        names, codes = np.unique(series.astype(str).to_numpy(object), return_inverse=True)
        return codes.astype(np.int64), tuple(names.tolist())
    invalid = np.flatnonzero((numbers != np.round(numbers)) | (np.abs(numbers) >= 2.0**63))
    if invalid.size:
        raise ValueError(
            f"{name}, {location(invalid[0])}: expected a label, an integer or a name, "
            f"got {series.iloc[invalid[0]]}; a column of measurements holds no labels"
        )
    return numbers.astype(np.int64), None
