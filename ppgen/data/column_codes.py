"""The numbers of a column's cells, and the cells of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.data.column import Column

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["decode_column", "encode_column"]


def encode_column(
    column: Column, series: pd.Series, *, unknown: str = "error", source: str, location: Callable[[int], str]
) -> np.ndarray:
    """The numbers of cells, float64, NaN where one is missing.

    Args:
        column: what the column is.
        series: its cells.
        unknown: what a category that the column does not have is: "error", or "missing".
        source: the source, for errors.
        location: describes where a row is in the source.

    Raises:
        ValueError: for a cell that is not of the column's kind, and a category that it does not have.
    """
    absent = series.isna().to_numpy()
    if series.dtype == object or str(series.dtype) in ("str", "string"):
        marks = set(column.missing) - set(map(str, column.categories or ()))
        absent = absent | series.isin(marks).to_numpy()
    x = np.full(len(series), np.nan)
    cells = series[~absent]
    if len(cells):
        encode = _codes if column.is_coded else _steps if column.unit is not None else _values
        numbers, wrong, expected = encode(column, cells)
        if wrong.any() and not (column.is_coded and unknown == "missing"):
            row = int(np.flatnonzero(~absent)[np.flatnonzero(wrong)[0]])
            raise ValueError(
                f"{source}, {location(row)}, column {column.name!r}: expected {expected}, got "
                f"{str(series.iloc[row])!r} ({int(wrong.sum())} of {len(series)} cells)"
            )
        x[~absent] = np.where(wrong, np.nan, numbers)
    return x


def decode_column(column: Column, numbers: np.ndarray, index: Any = None) -> pd.Series:
    """The cells of numbers.

    Args:
        column: what the column is.
        numbers: float64 (n,), NaN for a missing cell.
        index: the index of the series; 0, 1, .. if left out.
    """
    absent = np.isnan(numbers)
    decode = _categories if column.is_coded else _dates if column.unit is not None else _rounded
    series = decode(column, np.where(absent, 0.0, numbers), absent)
    if index is not None:
        series.index = index
    return series


def _codes(column: Column, cells: pd.Series) -> tuple[np.ndarray, np.ndarray, str]:
    import pandas as pd

    categories = list(column.categories or ())
    values: Any = cells.astype(object)
    if isinstance(categories[0], (int, float)) and not isinstance(categories[0], bool):
        values = pd.to_numeric(values, errors="coerce").astype(object)
    elif isinstance(categories[0], bool):
        values = values.map(lambda v: _BOOLEANS.get(v.lower(), v) if isinstance(v, str) else v)
    else:
        values = values.map(str)
    codes = pd.Index(pd.Series(categories, dtype=object)).get_indexer(pd.Index(values, dtype=object)).astype(np.float64)
    shown = ", ".join(map(repr, categories[:8])) + (", ..." if len(categories) > 8 else "")
    return codes, codes < 0, f"one of the {len(categories)} categories {shown}"


_BOOLEANS = {"true": True, "false": False}


def _values(column: Column, cells: pd.Series) -> tuple[np.ndarray, np.ndarray, str]:
    import pandas as pd

    numbers = pd.to_numeric(cells.astype(object), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = ~np.isfinite(numbers)
    expected = "a finite number"
    with np.errstate(invalid="ignore"):
        if column.kind == "positive":
            wrong, expected = wrong | (numbers <= 0), "a finite number above 0"
        elif column.kind == "bounded":
            low, high = column.low, column.high
            wrong, expected = wrong | (numbers < low) | (numbers > high), f"a finite number from {low:g} to {high:g}"
        elif column.kind == "count":
            wrong, expected = wrong | (numbers < 0) | (numbers != np.round(numbers)), "a whole number of at least 0"
    return numbers, wrong, expected


def _steps(column: Column, cells: pd.Series) -> tuple[np.ndarray, np.ndarray, str]:
    """Dates and durations as multiples of the unit."""
    import pandas as pd

    if column.origin is None:
        durations = pd.to_timedelta(cells, errors="coerce")
        return _units(durations, column), durations.isna().to_numpy(), "a duration"
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        times = cells
    else:
        times = pd.to_datetime(cells, format=column.date_format, errors="coerce")
    if times.dt.tz is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    expected = "a date" if column.date_format is None else f"a date written as {column.date_format}"
    return _units(times - pd.Timestamp(column.origin), column), times.isna().to_numpy(), expected


def _units(durations: pd.Series, column: Column) -> np.ndarray:
    """Durations as multiples of the unit, exactly where float64 is."""
    import pandas as pd

    unit = np.timedelta64(1, column.unit)  # type: ignore[call-overload]
    steps = durations.fillna(pd.Timedelta(0)).to_numpy()  # cells that are wrong
    whole = steps // unit
    return whole.astype(np.float64) + (steps - whole * unit) / unit


def _categories(column: Column, numbers: np.ndarray, absent: np.ndarray) -> pd.Series:
    import pandas as pd

    categories = column.categories or ()
    codes = np.clip(np.round(numbers), 0, len(categories) - 1).astype(np.int64)
    if column.dtype.startswith("category["):
        inner, _, ordered = column.dtype.removeprefix("category[").partition("]")
        index = pd.Index(list(categories), dtype=inner)
        dtype = pd.CategoricalDtype(index, ordered=bool(ordered))
        return pd.Series(pd.Categorical.from_codes(np.where(absent, -1, codes), dtype=dtype))
    cells = np.empty(len(categories) + 1, object)
    cells[:-1] = list(categories)
    cells[-1] = _null(column)
    return _typed(pd.Series(cells[np.where(absent, len(categories), codes)], dtype=object), column, absent)


def _rounded(column: Column, numbers: np.ndarray, absent: np.ndarray) -> pd.Series:
    import pandas as pd

    values = numbers if column.decimals is None else np.round(numbers, column.decimals)
    low, high = column.low, column.high
    if column.kind == "positive":
        low = 10.0**-column.decimals if column.decimals is not None else float(np.finfo(np.float32).tiny)
    values = np.clip(values, low, high) if low is not None or high is not None else values
    if column.dtype.lower().startswith(("int", "uint")) and (limits := np.iinfo(column.dtype.lower())):
        values = np.clip(values, float(limits.min), float(limits.max))
    if column.dtype == "object":
        cells = np.empty(len(values), object)
        cells[:] = [int(v) for v in values] if column.decimals == 0 else values.tolist()
        cells[absent] = _null(column)
        return pd.Series(cells, dtype=object)
    return _typed(pd.Series(np.where(absent, np.nan, values)), column, absent)


def _dates(column: Column, numbers: np.ndarray, absent: np.ndarray) -> pd.Series:
    import pandas as pd

    steps = np.round(numbers).astype(np.int64).astype(f"timedelta64[{column.unit}]")
    durations = pd.Series(steps if column.unit != "D" else steps.astype("timedelta64[s]"))
    if column.origin is None:
        return durations.astype(column.dtype).mask(absent)
    times = durations + pd.Timestamp(column.origin)
    if column.date_format is not None:
        texts = times.dt.strftime(column.date_format).astype(object)
        texts[absent] = _null(column)
        return texts.astype(column.dtype)
    if column.dtype == "date":
        days = times.dt.date.astype(object)
        days[absent] = _null(column)
        return days
    if "," in column.dtype:
        times = times.dt.tz_localize("UTC")
    return times.astype(column.dtype).mask(absent)


def _typed(series: pd.Series, column: Column, absent: np.ndarray) -> pd.Series:
    """Cells in the column's type; with missing cells that it cannot hold, in the one that pandas gives them."""
    dtype = column.dtype
    if absent.any() and dtype.startswith(("int", "uint")):
        dtype = "float64"
    elif absent.any() and dtype == "bool":
        dtype = "object"
    return series.astype(dtype)


def _null(column: Column) -> Any:
    """What a missing cell of Python objects is."""
    import pandas as pd

    return {"None": None, "<NA>": pd.NA}.get(column.missing[0] if column.missing else "", np.nan)
