"""Tables from CSV and Parquet files and from pandas frames: numeric columns, and optionally one of labels.

A row of a CSV file may span several lines (a quoted line break), and blank lines are no rows. Messages give the line on
which a row starts, as an editor numbers it; the header is line 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppgen.data.checks import check
from ppgen.data.csv_format import CsvFormat, recognize_csv
from ppgen.data.labels import encode_labels, row_number
from ppgen.data.raw import RawData
from ppgen.data.splits import SplitBy
from ppgen.data.streaming import STREAMABLE, TO_STREAM
from ppgen.utils.regular_files import check_regular, check_size
from ppgen.utils.user_warnings import warn_user

if TYPE_CHECKING:
    import pandas as pd
    from pandas.errors import ParserError

# representations of a missing number; they do not apply to labels, because a class may be called "None"
MISSING = ["", "NA", "N/A", "<NA>", "NaN", "nan", "null", "NULL", "None"]


class MissingLabelColumn(ValueError):
    """A table does not have the column of labels."""


def read_csv(path: Path, label: str | None, split: SplitBy | None = None) -> RawData:
    """Reads a CSV file whose first line has the names of the columns; `recognize_csv` finds how it is written.

    Args:
        path: the file.
        label: the column of labels, or None.
        split: the column by which rows are split, or None.

    Raises:
        ValueError: for a header without names, and cells that are not finite numbers; the message names the file, line
            and column.
        ParserError: for rows of another length than the header (pandas' error, a ValueError).
    """
    import pandas as pd
    from pandas.errors import ParserError, ParserWarning

    check_size(path, check_regular(path), remedy=TO_STREAM)
    form = recognize_csv(path)
    header = check_header(path, form)
    as_text = {label} if split is None else {label, split.column}  # labels and keys as they are written
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # pandas truncates rows that are longer than the header
            frame = pd.read_csv(
                path,
                sep=form.separator,
                decimal=form.decimal,
                encoding=form.encoding,
                index_col=False,
                low_memory=False,
                keep_default_na=False,
                na_values={name: MISSING for name in header if name not in as_text},
                dtype={name: str for name in as_text if name is not None},
            )
    except (ParserError, ParserWarning) as error:
        raise ragged(path, len(header), form) or ParserError(f"{path}: {error}") from error

    def location(row: int) -> str:
        return f"line {next(line for i, (line, _) in enumerate(form.records(path)) if i == row + 1)}"

    if frame.isna().to_numpy().any():  # pandas pads short rows with NaN
        uneven = ragged(path, len(header), form)
        if uneven is not None:
            raise uneven
    raw = from_frame(frame, name=str(path), label=label, split=split, location=location)
    invalid = np.flatnonzero(~np.isfinite(raw.x).all(axis=1))
    if invalid.size:
        check(raw.x, name=f"{path}, first at {location(invalid[0])}", columns=raw.columns)
    if len(frame) and not form.is_usual:
        warn_user(f"{path} is read with {form}")
    return raw


def read_parquet(path: Path, label: str | None, split: SplitBy | None = None) -> RawData:
    """Reads a Parquet file.

    Args:
        path: the file.
        label: the column of labels, or None.
        split: the column by which rows are split, or None.

    Raises:
        ImportError: if pyarrow is not installed.
        ValueError: if the file cannot be read, and as `from_frame` does.
    """
    import pandas as pd

    check_regular(path)
    with readable_parquet(path):
        from pyarrow import parquet

        about = parquet.read_metadata(path)
        size = 8 * about.num_rows * about.num_columns  # runs of one value take no space in the file
        check_size(path, size, remedy=STREAMABLE)
        frame = pd.read_parquet(path)
    return from_frame(frame, name=str(path), label=label, split=split)


@contextmanager
def readable_parquet(path: Path) -> Iterator[None]:
    """Inside, pyarrow reads a Parquet file; what it cannot read is an error that names the file.

    Args:
        path: the file.

    Raises:
        ImportError: if pyarrow is not installed.
        ValueError: if the file cannot be read.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install 'ppgen[parquet]'") from error
    except (OSError, ValueError, ArithmeticError, LookupError, MemoryError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def from_frame(
    frame: pd.DataFrame,
    *,
    name: str,
    label: str | None,
    split: SplitBy | None = None,
    location: Callable[[int], str] = row_number,
) -> RawData:
    """Converts all columns to float64, and the columns of labels and of groups or times, if there are any, to integers.

    Args:
        frame: the table.
        name: the source, for errors.
        label: the column of labels, or None.
        split: the column by which rows are split, which is none of x, or None.
        location: describes where a row is in the source, for errors.

    Raises:
        MissingLabelColumn: if the table does not have the column of labels.
        ValueError: for a cell that is not a number, and labels that `encode_labels` refuses.
    """
    y, label_names, keys = None, None, None
    if split is not None:
        check_split(frame.columns, split, label, name)
        keys = split.keys(frame[split.column], name=name, location=location)
    if label is not None:
        check_label(frame.columns, label, name)
        y, label_names = encode_labels(frame[label], name=f"{name}, column {label!r}", location=location)
        frame = frame.drop(columns=label)
    frame = frame if split is None else frame.drop(columns=split.column)
    if not len(frame.columns):
        raise ValueError(f"{name} has no columns of numbers")
    x = np.column_stack([_numbers(frame[c], name, location) for c in frame.columns])
    return RawData(x, y, tuple(map(str, frame.columns)), label_names, keys=keys)


def check_label(columns: Iterable[str], label: str | None, name: str) -> None:
    """Checks that a table has the column of labels.

    Args:
        columns: the names of its columns.
        label: the column of labels, or None.
        name: the source, for errors.

    Raises:
        MissingLabelColumn: if the table does not have it.
    """
    if label is not None and label not in columns:
        raise MissingLabelColumn(f"{name} has no column {label!r} for labels, only {', '.join(map(repr, columns))}")


def check_split(columns: Iterable[str], split: SplitBy | None, label: str | None, name: str) -> None:
    """Checks that a table has the column by which its rows are split.

    Args:
        columns: the names of its columns.
        split: the column by which rows are split, or None.
        label: the column of labels, or None.
        name: the source, for errors.

    Raises:
        ValueError: if the table does not have it, or it has the labels.
    """
    if split is None:
        return
    if split.column not in columns:
        raise ValueError(f"{name} has no column {split.column!r} to split by, only {', '.join(map(repr, columns))}")
    if split.column == label:
        raise ValueError(f"{name}: the column {label!r} cannot be both the labels and what rows are split by")


def _numbers(column: pd.Series, name: str, location: Callable[[int], str]) -> np.ndarray:
    """A column as float64."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    numbers = pd.to_numeric(column.astype(object).astype(str), errors="coerce")
    text = np.flatnonzero(numbers.isna() & column.notna())
    if text.size:
        raise ValueError(
            f"{name}, {location(text[0])}, column {column.name!r}: expected a number, got "
            f"{str(column.iloc[text[0]])!r} ({text.size} of {len(column)} cells of the column are not "
            f"numbers); correct or remove it, or name the column with label= (on the command line --data.label) if it "
            "holds labels"
        )
    return numbers.to_numpy(np.float64)


def check_header(path: Path, form: CsvFormat) -> list[str]:
    """The names of the columns, checked.

    Args:
        path: the file.
        form: how the file is written.

    Raises:
        ValueError: for an empty file, columns without a name or with the same one, and a header of numbers.
    """
    import pandas as pd

    line, header = next(form.records(path), (0, []))
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
    # arrays that were saved by pandas have the column names 0, 1, 2, ..
    if numbers.notna().all() and (numbers != np.arange(len(header))).any():
        raise ValueError(f"{path}, line {line}: expected column names, got only numbers: {', '.join(header[:5])}")
    return header


def ragged(path: Path, width: int, form: CsvFormat) -> ParserError | None:
    """The error for the first row whose length is not that of the header, or None.

    Args:
        path: the file.
        width: the number of columns.
        form: how the file is written.
    """
    from pandas.errors import ParserError

    for line, cells in form.records(path):
        if len(cells) != width:
            return ParserError(f"{path}, line {line}: expected {width} cells as in the header, got {len(cells)}")
    return None
