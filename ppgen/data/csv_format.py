"""How a CSV file is written: its separator, decimal mark and encoding, recognized from the file."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

__all__ = ["CsvFormat", "recognize_csv"]

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
MARKS_OF_ORDER = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
LINES = 200  # from which the separator and the decimal mark are recognized
CHUNK = 2**20
DECIMAL_COMMA, DECIMAL_POINT = re.compile(r"[+-]?\d+,\d+"), re.compile(r"[+-]?\d+\.\d+")


@dataclass(frozen=True)
class CsvFormat:
    """The format of a CSV file.

    Attributes:
        separator: between cells: a comma, a semicolon, a tab or a vertical bar.
        decimal: "." or ",".
        encoding: the name of the encoding.
    """

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"

    @property
    def is_usual(self) -> bool:
        """Whether it is UTF-8 with commas and decimal points."""
        return (self.separator, self.decimal) == (",", ".") and self.encoding.startswith("utf-8")

    def __str__(self) -> str:
        decimal = "decimal comma" if self.decimal == "," else "decimal point"
        return f"separator {SEPARATORS.get(self.separator, repr(self.separator))}, {decimal}, encoding {self.encoding}"

    def records(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """The header and the rows as text, each with its line, without the blank lines that pandas skips.

        Args:
            path: the file.

        Raises:
            ValueError: for text that is not in the encoding.
            ParserError: for a quotation mark that is left open (pandas' error, a ValueError).
        """
        from pandas.errors import ParserError

        start = 1
        with path.open(newline="", encoding=self.encoding) as file:
            reader = csv.reader(file, strict=True, delimiter=self.separator)
            try:
                for cells in reader:
                    if cells and not (len(cells) == 1 and cells[0].isspace()):
                        yield start, cells
                    start = reader.line_num + 1
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not {self.encoding} text: {error}") from error
            except csv.Error as error:
                raise ParserError(f"{path}, line {start}: {error}; is a quotation mark left open?") from error


def recognize_csv(path: Path) -> CsvFormat:
    """Recognizes the format of a CSV file.

    The encoding is UTF-8 if the whole file is, UTF-16 if it begins with that byte order mark, else Windows-1252. The
    separator is the one that divides most lines into the same number of cells, the comma where several do. The decimal
    mark is a comma if the separator is another and cells are written so, and none with a point.

    Args:
        path: the file.

    Raises:
        ValueError: if the file is in none of these encodings.
    """
    encoding = _encoding(path)
    with path.open(newline="", encoding=encoding) as file:
        lines = [line for line in islice(file, LINES) if line.strip()]
    separator = max(SEPARATORS, key=lambda mark: _agreement(lines, mark))  # the first of equals
    cells = [cell.strip() for row in _rows(lines[1:], separator) for cell in row]
    comma = any(map(DECIMAL_COMMA.fullmatch, cells)) and not any(map(DECIMAL_POINT.fullmatch, cells))
    return CsvFormat(separator, "," if separator != "," and comma else ".", encoding)


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in MARKS_OF_ORDER.items():
        if start.startswith(mark):
            return name
    for name in ("utf-8", "cp1252"):
        decoder = codecs.getincrementaldecoder(name)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    decoder.decode(chunk)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            reason = error
            continue
        return name
    raise ValueError(f"{path} is not UTF-8 text, nor UTF-16 or Windows-1252 ({reason}); save it as UTF-8")


def _rows(lines: list[str], separator: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=separator))
    except csv.Error:
        return []


def _agreement(lines: list[str], separator: str) -> tuple[int, int]:
    """How many lines have the most common number of cells, and that number; nothing for a single cell."""
    widths = Counter(len(row) for row in _rows(lines, separator))
    if not widths:
        return 0, 0
    width, count = max(widths.items(), key=lambda item: (item[1], item[0]))
    return (count, width) if width > 1 else (0, 0)
