"""Tables of mixed columns in CSV and Parquet files: frames with their schema, and the way back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.data.csv_format import CsvFormat, recognize_csv
from ppgen.data.labels import row_number
from ppgen.data.schema import Schema
from ppgen.data.tables import MISSING, check_header, ragged, readable_parquet
from ppgen.utils.regular_files import check_regular

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MARKS", "Table", "is_table", "read_table", "write_table"]

MARKS = (*MISSING, "n/a", "#N/A", "?", "-", ".")  # texts that stand for a missing cell
CHUNK_ROWS = 100_000
LEADING_ZERO = r"[+-]?0\d"  # as in a postal code, which is no number
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True)
class Table:
    """A table that was read from a file.

    Attributes:
        frame: its cells. Columns of a CSV file that are not all numbers are text.
        name: the path, for errors.
        csv: how the file is written; None for Parquet.
        location: describes where a row is in the file: its line, or its number.
        marks: by column, the texts that stand for missing cells in a CSV file.
    """

    frame: pd.DataFrame
    name: str
    csv: CsvFormat | None = None
    location: Callable[[int], str] = row_number
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def infer(self, **options: Any) -> Schema:
        """The schema of the table, with the texts that stand for missing cells in its file.

        Args:
            **options: options of `Schema.infer`.
        """
        schema = Schema.infer(self.frame, name=self.name, location=self.location, **options)
        marked = [replace(c, missing=self.marks[c.name]) if self.marks.get(c.name) else c for c in schema.columns]
        return Schema(tuple(marked))

    def encode(self, schema: Schema, **options: Any) -> np.ndarray:
        """The numbers of the table.

        Args:
            schema: the columns.
            **options: options of `Schema.encode`.
        """
        return schema.encode(self.frame, name=self.name, location=self.location, **options)


def is_table(path: Path) -> bool:
    """Whether the name of a file is that of a table."""
    return path.suffix.lower() in SUFFIXES


def read_table(
    path: str | Path, *, missing: Collection[str] = (), text: Collection[str] = (), csv: CsvFormat | None = None
) -> Table:
    """Reads a table of mixed columns from a .csv, .tsv, .txt or .parquet file.

    In a CSV file a cell is missing if it is empty or one of `MARKS`. A column whose other cells are all numbers becomes
    numbers, unless they have leading zeros as postal codes have; all other columns are text.

    Args:
        path: the file.
        missing: further texts that stand for missing cells.
        text: columns that are text, for example because "NA" or "None" is a value of theirs: there only an empty cell
            is missing.
        csv: the format of a CSV file; recognized if left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if a Parquet file is given and pyarrow is not installed.
        ValueError: for a file that is no table, rows of another length than the header, duplicate names and no rows.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not is_table(path):
        raise ValueError(f"{path}: expected a table, a file {', '.join(SUFFIXES)}")
    check_regular(path)
    if path.suffix.lower() == ".parquet":
        import pandas as pd

        with readable_parquet(path):
            frame = pd.read_parquet(path)
        table = Table(frame, str(path))
    else:
        table = _read_csv(path, missing, text, csv)
    if not len(table.frame):
        raise ValueError(f"{path} has no rows: expected a line of column names and rows of cells")
    return table


def write_table(
    frame: pd.DataFrame, path: str | Path, csv: CsvFormat | None = None, *, schema: Schema | None = None
) -> None:
    """Writes a table to a .csv, .tsv, .txt or .parquet file, without the row numbers.

    Args:
        frame: the table.
        path: the file, which is overwritten.
        csv: the format of a CSV file; commas and decimal points in UTF-8 if left out.
        schema: the columns, for the number of decimals and the mark of missing cells in a CSV file.

    Raises:
        ValueError: for another kind of file.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        with readable_parquet(path):
            frame.to_parquet(path, index=False)
        return
    if not is_table(path):
        raise ValueError(f"{path}: expected the name of a table, {', '.join(SUFFIXES)}")
    csv = csv or CsvFormat("\t" if path.suffix.lower() == ".tsv" else ",")
    frame = frame.copy()
    for column in () if schema is None else schema.kept:
        if column.name in frame:
            cells = frame[column.name]
            mark = column.missing[0] if column.optional and column.missing else ""
            mark = "" if mark in ("nan", "None", "<NA>", "NaT") and column.dtype not in ("object", "str") else mark
            if column.decimals is not None and cells.dtype.kind == "f":
                written = cells.map(
                    lambda v, d=column.decimals: "" if v != v else f"{v:.{d}f}".replace(".", csv.decimal)
                )
                frame[column.name] = written.astype(object)
            if mark:
                frame[column.name] = frame[column.name].astype(object).where(cells.notna(), mark)
    frame.to_csv(path, index=False, sep=csv.separator, decimal=csv.decimal, encoding=csv.encoding)


def _read_csv(path: Path, missing: Collection[str], text: Collection[str], csv: CsvFormat | None) -> Table:
    import pandas as pd
    from pandas.errors import ParserError

    form = recognize_csv(path) if csv is None else csv
    header = check_header(path, form)
    if wrong := [name for name in text if name not in header]:
        raise ValueError(f"{path} has no column {wrong[0]!r}, only {', '.join(map(repr, header))}")
    marks = [*MARKS, *missing]
    how: dict[str, Any] = {"sep": form.separator, "encoding": form.encoding, "index_col": False, "low_memory": False}
    numeric = dict.fromkeys(header, True)
    found: dict[str, set[str]] = {name: set() for name in header}
    rows = 0
    try:
        for chunk in pd.read_csv(path, dtype=str, na_filter=False, chunksize=CHUNK_ROWS, **how):
            rows += len(chunk)
            for name in header:
                cells = chunk[name].fillna("")  # pandas fills short rows
                absent = cells.isin(marks if name not in text else [""])
                found[name].update(cells[absent].unique())
                if numeric[name]:
                    numeric[name] = name not in text and _are_numbers(cells[~absent], form.decimal)
        frame = pd.read_csv(
            path,
            dtype={name: str for name in header if not numeric[name]},
            na_values={name: sorted(found[name]) for name in header},
            keep_default_na=False,
            decimal=form.decimal,
            skipinitialspace=False,
            **how,
        )
    except ParserError as error:
        raise ragged(path, len(header), form) or ParserError(f"{path}: {error}") from error
    uneven = ragged(path, len(header), form) if _has_short_rows(path, form, header, rows) else None
    if uneven is not None:
        raise uneven

    def location(row: int) -> str:
        return f"line {next(line for i, (line, _) in enumerate(form.records(path)) if i == row + 1)}"

    return Table(frame, str(path), form, location, {name: tuple(sorted(texts)) for name, texts in found.items()})


def _are_numbers(cells: pd.Series, decimal: str) -> bool:
    import pandas as pd

    cells = cells.astype(object)
    if cells.str.match(LEADING_ZERO).any():
        return False
    if decimal != ".":
        cells = cells.str.replace(decimal, ".")
    return bool(pd.to_numeric(cells, errors="coerce").notna().all())


def _has_short_rows(path: Path, form: CsvFormat, header: list[str], rows: int) -> bool:
    """Whether the file has fewer separators than its rows need, which pandas does not tell from missing cells."""
    if len(header) == 1:
        return False
    pattern = re.escape(form.separator.encode(form.encoding.removesuffix("-sig").replace("utf-16", "utf-16-le")))
    with path.open("rb") as file:
        count = sum(len(re.findall(pattern, line)) for line in file)
    return count < (rows + 1) * (len(header) - 1)
