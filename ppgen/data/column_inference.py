"""What a column of a frame is: its kind, grid, bounds and categories, with the reason.

The rules stand in `_text`, `_numbers` and `_key`, in the order in which they are tried. A kind that the user gives
replaces them, and the cells must have it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.data.column import CODED, Column
from ppgen.data.date_formats import recognize_date_format

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["infer_column"]

MOST_CATEGORIES = 1000
FEW = 20  # whole numbers with at most so many different values are ordered categories,
ROWS_EACH = 10  # if there are so many rows for each of them
KEY_ROWS = 20  # rows from which on different whole numbers in every row look like a key
MOST_DECIMALS = 8
NEARLY_ALL, ODD_CELLS = 0.95, 10  # cells that are numbers or dates, with so few others that these must be mistakes
EXACT = 2.0**53  # whole numbers beyond are no float64
KEY_NAME = re.compile(r"(?:^|[\W_])(?:id|key|uuid|guid|index|nr)$|[a-z](?:Id|ID|Key)$", re.IGNORECASE)
UNITS = ("D", "h", "m", "s", "ms", "us")


def infer_column(
    series: pd.Series,
    name: str,
    *,
    kind: str | None = None,
    marks: Collection[str] = (),
    source: str,
    location: Callable[[int], str],
) -> Column:
    """The column that a series is.

    Args:
        series: its cells.
        name: its name.
        kind: the kind that the user gave, or None.
        marks: texts that stand for missing cells.
        source: the source, for errors.
        location: describes where a row is in the source.

    Raises:
        ValueError: if the cells do not have the given kind, or a few are no numbers or dates and nearly all others are.
    """
    import pandas as pd

    series = series.reset_index(drop=True)  # rows are counted, whatever the index is
    absent = series.isna()
    marked = series.isin(list(marks)) if marks and _is_text_dtype(series) else absent & False
    absent |= marked
    found = [str(value) for value in pd.unique(series[absent].astype(object))]
    about: dict[str, Any] = {"name": name, "optional": bool(absent.any()), "missing": tuple(found[:10])}
    about["dtype"] = str(series.dtype)
    cells = series[~absent]
    if kind == "omitted":
        return Column(kind="omitted", reason="given", **about)
    if not len(cells):
        return Column(kind="omitted", reason="no cell has a value", **about)
    described = _describe(cells, name, kind, source, location)
    if kind is not None:
        described = _given(described, cells, kind, f"{source}, column {name!r}")
    return Column(**(about | described))


def _describe(
    cells: pd.Series, name: str, kind: str | None, source: str, location: Callable[[int], str]
) -> dict[str, Any]:
    """The attributes of a column without missing cells."""
    import pandas as pd

    dtype = cells.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _categorical_dtype(dtype)
    if pd.api.types.is_bool_dtype(dtype):
        return {"kind": "binary", "categories": (False, True), "reason": "booleans"}
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return dates(cells) | {"reason": "dates"}
    if pd.api.types.is_timedelta64_dtype(dtype):
        least = cells.min()
        unit = _unit(cells.to_numpy())
        known = {"kind": "positive", "low": 0.0} if least > pd.Timedelta(0) else {"kind": "continuous"}
        return known | {"unit": unit, "decimals": 0, "reason": "durations"}
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return _numbers(cells, name, kind, source, location)
    if _is_text_dtype(cells):
        return _objects(cells, name, kind, source, location)
    return {"kind": "omitted", "reason": f"cells of type {dtype}, which no kind describes; convert them"}


def _objects(
    cells: pd.Series, name: str, kind: str | None, source: str, location: Callable[[int], str]
) -> dict[str, Any]:
    """Texts, or Python objects of one type."""
    import pandas as pd

    types = set(map(type, cells)) if cells.dtype == object else {str}
    if types == {bool}:
        return {"kind": "binary", "categories": (False, True), "reason": "booleans"}
    if types <= {int, float} or (
        types and all(issubclass(t, (int, float, np.number)) and t is not bool for t in types)
    ):
        return _numbers(pd.to_numeric(cells), name, kind, source, location)
    if types == {datetime.date}:
        return dates(pd.to_datetime(cells)) | {"dtype": "date", "reason": "dates"}
    if not all(issubclass(t, str) for t in types):
        named = ", ".join(sorted(t.__name__ for t in types))
        return {"kind": "omitted", "reason": f"objects of type {named}; convert them to text, numbers or dates"}
    return _text(cells, name, kind, source, location)


def _text(cells: pd.Series, name: str, kind: str | None, source: str, location: Callable[[int], str]) -> dict[str, Any]:
    """Dates, categories, or keys and free text."""
    import pandas as pd

    if kind in (None, "datetime"):
        date_format, parsed, ambiguous = recognize_date_format(cells)
        if date_format is not None and parsed is not None:
            _check_odd(cells, parsed.isna(), f"a date like the others ({date_format})", name, source, location)
            other = f"; {ambiguous} would fit as well" if ambiguous else ""
            return dates(parsed) | {"date_format": date_format, "reason": f"dates written as {date_format}{other}"}
    if kind is None:
        numbers = pd.to_numeric(cells, errors="coerce")
        _check_odd(cells, numbers.isna() & numbers.notna().any(), "a number like the others", name, source, location)
    distinct = pd.unique(cells.astype(object))
    count, rows = len(distinct), len(cells)
    if kind not in CODED:
        if count == rows and rows > 2:
            return {"kind": "omitted", "reason": "another text in every row: a key or free text"}
        if count > FEW and count > rows / 2:
            return {"kind": "omitted", "reason": f"{count} different texts in {rows} rows: a key or free text"}
        if count > MOST_CATEGORIES:
            return {"kind": "omitted", "reason": f"{count} different texts, more than {MOST_CATEGORIES} categories"}
        if KEY_NAME.search(name) and count > FEW:
            return {"kind": "omitted", "reason": f"named like a key, with {count} different texts"}
    return _categories(sorted(distinct), f"{count} different texts" if count > 1 else "one text in all rows")


def _numbers(
    cells: pd.Series, name: str, kind: str | None, source: str, location: Callable[[int], str]
) -> dict[str, Any]:
    """Numbers: keys, categories, counts, or measurements."""
    values = cells.to_numpy(np.float64)
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise ValueError(
            f"{source}, {_place(cells, row, location)}, column {name!r}: expected a finite number, got {values[row]}"
        )
    distinct = np.unique(values)
    rows, count = len(values), len(distinct)
    whole = bool((values == np.round(values)).all())
    if kind in CODED:
        return _categories(_plain(distinct, whole, cells), f"{count} different numbers")
    if kind is None:
        if whole and (reason := _key(name, values, count)):
            return {"kind": "omitted", "reason": reason}
        if whole and np.abs(values).max() > EXACT:
            return {"kind": "omitted", "reason": "whole numbers beyond 2^53, which float64 does not hold"}
        if count == 1:
            return _categories(_plain(distinct, whole, cells), "one value in all rows")
        if count == 2 and rows >= ROWS_EACH * count:
            return _categories(_plain(distinct, whole, cells), "two different numbers")
        if whole and count <= FEW and rows >= ROWS_EACH * count:
            return _categories(_plain(distinct, whole, cells), f"{count} different whole numbers") | {"kind": "ordinal"}
    return _measured(values, cells.dtype, whole)


def _measured(values: np.ndarray, dtype: Any, whole: bool) -> dict[str, Any]:
    """Counts and measurements."""
    least, most = float(values.min()), float(values.max())
    decimals = 0 if whole else _decimals(values, np.float32 if str(dtype) in ("float32", "Float32") else np.float64)
    if whole and least >= 0:
        return {"kind": "count", "low": 0.0, "decimals": 0, "reason": f"whole numbers from {least:g} to {most:g}"}
    if not whole and least >= 0 and most <= 1:
        return {"kind": "bounded", "low": 0.0, "high": 1.0, "decimals": decimals, "reason": "all between 0 and 1"}
    if not whole and least > 0:
        return {"kind": "positive", "low": 0.0, "decimals": decimals, "reason": f"all above 0, up to {most:g}"}
    low = {"low": 0.0} if least == 0 else {}
    return {"kind": "continuous", "decimals": decimals, "reason": f"numbers from {least:g} to {most:g}"} | low


def _key(name: str, values: np.ndarray, count: int) -> str | None:
    """Why whole numbers are a key, or None."""
    rows = len(values)
    if count == rows and rows >= KEY_ROWS:
        if values.max() - values.min() == rows - 1:
            return "consecutive whole numbers, another in every row: a key"
        if np.abs(values).max() > EXACT:
            return "another whole number beyond 2^53 in every row: a key"
    if KEY_NAME.search(name) and count > FEW:
        return f"named like a key, with {count} different whole numbers in {rows} rows"
    return None


def _categorical_dtype(dtype: Any) -> dict[str, Any]:
    """The categories that a frame declares."""
    categories = dtype.categories.tolist()
    types = set(map(type, categories))
    if not types <= {str, int, float, bool} or len(types) > 1:
        return {"kind": "omitted", "reason": "its categories are not all texts, all numbers or all booleans"}
    kind = "ordinal" if dtype.ordered else "binary" if len(categories) == 2 else "categorical"
    known = "ordered categories" if dtype.ordered else "categories"
    dtype_name = f"category[{dtype.categories.dtype}]" + (", ordered" if dtype.ordered else "")
    return {"kind": kind, "categories": tuple(categories), "dtype": dtype_name, "reason": f"{known} of the frame"}


def _categories(distinct: Collection[Any], reason: str) -> dict[str, Any]:
    kind = "binary" if len(distinct) == 2 else "categorical"
    return {"kind": kind, "categories": tuple(distinct), "reason": reason}


def _plain(distinct: np.ndarray, whole: bool, cells: pd.Series) -> list[Any]:
    """Different numbers as Python's, whole ones of whole types as int."""
    import pandas as pd

    as_int = whole and (pd.api.types.is_integer_dtype(cells.dtype))
    return [int(v) if as_int else float(v) for v in distinct]


def _given(described: dict[str, Any], cells: pd.Series, kind: str, where: str) -> dict[str, Any]:
    """The attributes with the kind of the user, which the cells must have."""
    import pandas as pd

    found = described["kind"]
    if kind in CODED:
        if described.get("categories") is None:
            raise ValueError(f"{where}: kind {kind!r} expects texts, whole numbers or booleans, got {cells.dtype}")
        return described | {"kind": kind, "reason": "given"}
    if kind == "datetime" or found == "datetime":
        if found != kind:
            raise ValueError(f"{where}: kind {kind!r} does not fit to {described['reason']}, which are {found}")
        return described | {"reason": "given"}
    if found in CODED or found == "omitted":  # texts; numbers have been described as measurements
        raise ValueError(f"{where}: kind {kind!r} expects numbers, got {described['reason']}")
    if described.get("unit") is not None:
        return described | {"kind": kind, "reason": "given"}
    values = pd.to_numeric(cells).to_numpy(np.float64)
    least, most = float(values.min()), float(values.max())
    wrong = {"positive": least <= 0, "count": least < 0 or (values != np.round(values)).any()}.get(kind, False)
    if wrong:
        raise ValueError(f"{where}: kind {kind!r} does not fit to numbers from {least:g} to {most:g}")
    bounds: dict[str, float | None] = {"low": None, "high": None}
    if kind == "bounded":
        bounds = {"low": 0.0, "high": 1.0} if least >= 0 and most <= 1 else {"low": least, "high": most}
    elif kind in ("positive", "count"):
        bounds["low"] = 0.0
    return described | bounds | {"kind": kind, "reason": "given"}


def dates(parsed: pd.Series) -> dict[str, Any]:
    """The origin and the unit of dates: the coarsest in which all are whole numbers from the first date.

    Args:
        parsed: the dates, datetime64 with or without a time zone, none missing.
    """
    naive = parsed.dt.tz_convert("UTC").dt.tz_localize(None) if parsed.dt.tz is not None else parsed
    origin = naive.min().floor("D")
    unit = _unit((naive - origin).to_numpy())
    return {"kind": "datetime", "origin": origin.isoformat(), "unit": unit, "decimals": 0}


def _unit(durations: np.ndarray) -> str:
    """The coarsest unit of which all are multiples; microseconds where float64 does not hold all nanoseconds."""
    for unit in UNITS:
        if not (durations % np.timedelta64(1, unit)).astype(np.int64).any():  # type: ignore[call-overload]
            return unit
    return "ns" if np.abs(durations.astype(np.int64)).max() < EXACT else "us"


def _decimals(values: np.ndarray, dtype: Any) -> int | None:
    cells = values.astype(dtype)
    for decimals in range(1, MOST_DECIMALS + 1):
        if (np.round(values, decimals).astype(dtype) == cells).all():
            return decimals
    return None


def _is_text_dtype(series: pd.Series) -> bool:
    import pandas as pd

    return series.dtype == object or isinstance(series.dtype, pd.StringDtype)


def _check_odd(
    cells: pd.Series, odd: pd.Series, expected: str, name: str, source: str, location: Callable[[int], str]
) -> None:
    """Refuses a few cells that are none of what nearly all others are.

    Raises:
        ValueError: for the first of them.
    """
    import pandas as pd

    where = np.flatnonzero(odd.to_numpy())
    if not len(where) or len(where) > (1 - NEARLY_ALL) * len(cells):
        return
    if len(pd.unique(cells[odd].astype(object))) > ODD_CELLS:
        return
    raise ValueError(
        f"{source}, {_place(cells, int(where[0]), location)}, column {name!r}: expected {expected}, got "
        f"{str(cells.iloc[where[0]])!r} ({len(where)} of {len(cells)} cells are not); correct them, name the text as a "
        "mark of missing cells with missing=, or give the kind of the column with kinds="
    )


def _place(cells: pd.Series, position: int, location: Callable[[int], str]) -> str:
    """Where a cell is; the index of `cells` holds positions."""
    return location(int(cells.index[position]))
