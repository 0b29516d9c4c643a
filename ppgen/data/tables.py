"""Tables from CSV and Parquet files and from pandas frames: numeric columns, and perhaps one of labels.

A row of the table may take more than one line of a CSV file (a quoted line break), and blank lines take none;
messages give the line on which the row starts, as an editor counts, the header being line 1.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppgen.data.checks import check
from ppgen.data.labels import encode, row_number
from ppgen.data.raw import Raw

if TYPE_CHECKING:
    import pandas as pd
    from pandas.errors import ParserError

# what stands for a missing number; a class may well be called "None", so these do not apply to labels
MISSING = ["", "NA", "N/A", "<NA>", "NaN", "nan", "null", "NULL", "None"]


class NoColumn(ValueError):
    """A table lacks the column that was named for labels."""


def read_csv(path: Path, label: str | None) -> Raw:
    """The table of a CSV file in UTF-8 whose first line names the columns.

    Raises ValueError (pandas' ParserError, a kind of it, where the shape is at fault) that names the file,
    and the line and column where there is one: a header without names, rows of another length, cells that are
    no numbers or not finite.
    """
    import pandas as pd
    from pandas.errors import ParserError, ParserWarning

    header = _header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # rows longer than the header would be cut
            frame = pd.read_csv(
                path,
                index_col=False,
                low_memory=False,
                keep_default_na=False,
                na_values={name: MISSING for name in header if name != label},
                dtype=None if label is None else {label: str},
            )
    except (ParserError, ParserWarning) as error:
        raise _ragged(path, len(header)) or ParserError(f"{path}: {error}") from error

    def place(row: int) -> str:
        return f"line {next(line for i, (line, _) in enumerate(_records(path)) if i == row + 1)}"

    if frame.isna().to_numpy().any():  # which is also how pandas pads a short row
        ragged = _ragged(path, len(header))
        if ragged is not None:
            raise ragged
    raw = from_frame(frame, name=str(path), label=label, place=place)
    bad = np.flatnonzero(~np.isfinite(raw.x).all(axis=1))
    if bad.size:
        check(raw.x, name=f"{path}, first at {place(bad[0])}", columns=raw.columns)
    return raw


def read_parquet(path: Path, label: str | None) -> Raw:
    """The table of a Parquet file. Raises ImportError without pyarrow, and ValueError as `from_frame`."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install 'ppgen[parquet]'") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    return from_frame(frame, name=str(path), label=label)


def from_frame(frame: pd.DataFrame, *, name: str, label: str | None, place: Callable[[int], str] = row_number) -> Raw:
    """Every column as float64, apart from the one named `label`, if any, which holds labels.

    Raises ValueError for a label column that is not there, a cell that is no number, and labels that `encode`
    refuses; `place(row)` says where that is in the source.
    """
    y, label_names = None, None
    if label is not None:
        if label not in frame.columns:
            raise NoColumn(f"{name} has no column {label!r} for labels, only {', '.join(map(repr, frame.columns))}")
        y, label_names = encode(frame[label], name=f"{name}, column {label!r}", place=place)
        frame = frame.drop(columns=label)
    if not len(frame.columns):
        raise ValueError(f"{name} has no columns of numbers")
    x = np.column_stack([_numbers(frame[c], name, place) for c in frame.columns])
    return Raw(x, y, tuple(map(str, frame.columns)), label_names)


def _numbers(column: pd.Series, name: str, place: Callable[[int], str]) -> np.ndarray:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    numbers = pd.to_numeric(column.astype(object).astype(str), errors="coerce")
    text = np.flatnonzero(numbers.isna() & column.notna())
    if text.size:
        raise ValueError(
            f"{name}, {place(text[0])}, column {column.name!r}: expected a number, got "
            f"{str(column.iloc[text[0]])!r} ({text.size} of {len(column)} cells of the column are no "
            f"numbers); correct or remove it, or name the column with label= if it holds labels"
        )
    return numbers.to_numpy(np.float64)


def _header(path: Path) -> list[str]:
    import pandas as pd

    line, header = next(_records(path), (0, []))
    if not header:
        raise ValueError(f"{path} is empty: expected a line of column names and rows of numbers")
    for i, name in enumerate(header):
        if not name.strip():
            raise ValueError(
                f"{path}, line {line}: column {i + 1} has no name; name it or leave it out (pandas writes its row "
                f"index that way, unless by to_csv(index=False))"
            )
        if name in header[:i]:
            raise ValueError(f"{path}, line {line}: two columns are named {name!r}")
    numbers = pd.to_numeric(pd.Series(header, dtype=object), errors="coerce")
    # arrays saved through pandas have the column names 0, 1, 2, ..
    if numbers.notna().all() and (numbers != np.arange(len(header))).any():
        raise ValueError(f"{path}, line {line}: expected column names, got only numbers: {', '.join(header[:5])}")
    return header


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows as text, each with its line, leaving out the blank lines that pandas does."""
    from pandas.errors import ParserError

    start = 1
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells and not (len(cells) == 1 and cells[0].isspace()):
                    yield start, cells
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text in UTF-8: {error}") from error
        except csv.Error as error:
            raise ParserError(f"{path}, line {start}: {error}; is a quotation mark left open?") from error


def _ragged(path: Path, width: int) -> ParserError | None:
    """The error that the first row of another length than `width` deserves, if there is one."""
    from pandas.errors import ParserError

    for line, cells in _records(path):
        if len(cells) != width:
            return ParserError(f"{path}, line {line}: expected {width} cells as in the header, got {len(cells)}")
    return None
