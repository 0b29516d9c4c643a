"""A report, and its rendering as a single HTML page.

The page contains everything that it shows: its style, and each figure as a base64 data URI. It runs no script, and its
content security policy forbids loading anything.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure as Drawing

from ppgen.utils.files import write_atomically

__all__ = ["Figure", "Listing", "Report", "Section", "Table", "write_report"]

DPI = 160

# The first bytes of the pictures that a page can contain, and their media types.
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"<svg": "image/svg+xml",
    b"<?xml": "image/svg+xml",
}


@dataclass(frozen=True)
class Figure:
    """A matplotlib figure, or the bytes of a PNG, JPEG or SVG picture.

    Attributes:
        picture: the figure, or the bytes.
        caption: the text below the picture.
        alt: a description for readers who cannot see the picture.
    """

    picture: Drawing | bytes
    caption: str
    alt: str

    @property
    def uri(self) -> str:
        """The picture as a data URI.

        Raises:
            ValueError: for bytes of another kind.
        """
        data = self.picture if isinstance(self.picture, bytes) else _png(self.picture)
        kind = next((kind for start, kind in MEDIA_TYPES.items() if data.startswith(start)), None)
        if kind is None:
            raise ValueError(f"expected the bytes of a PNG, JPEG or SVG picture, got {data[:12]!r}: {self.caption}")
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Table:
    """A table whose cells are text, numbers, or pairs (value, standard error).

    Attributes:
        header: the titles of the columns.
        rows: the rows, each as long as the header.
        caption: the text below the table.

    Raises:
        ValueError: for rows of another length than the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"expected rows of {len(self.header)} cells, as the header, got {list(row)}")


@dataclass(frozen=True)
class Listing:
    """Text that keeps its line breaks, such as a configuration."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        title: the heading.
        text: the text, with blank lines between paragraphs.
        items: the figures, tables and listings below the text.
    """

    title: str
    text: str = ""
    items: Sequence[Figure | Table | Listing] = ()


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        title: the title.
        subtitle: the line below the title.
        sections: the sections.
    """

    title: str
    subtitle: str = ""
    sections: Sequence[Section] = field(default_factory=list)


def write_report(path: str | os.PathLike, report: Report) -> Path:
    """Writes a report as one HTML file, atomically, and creates its folder if it is missing.

    Args:
        path: the path of the file.
        report: the report.

    Returns:
        The path.

    Raises:
        ValueError: if the bytes of a figure are not a picture.
        OSError: if the file cannot be written.
    """
    return write_atomically(path, render(report))


def render(report: Report) -> str:
    """The page as HTML, in which all text of the report is escaped."""
    template = resources.files("ppgen.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    environment.tests |= {
        "figure": lambda item: isinstance(item, Figure),
        "table": lambda item: isinstance(item, Table),
    }
    return environment.from_string(template).render(report=report)


def cell(value: Any) -> str:
    """A table cell as text.

    Numbers have four significant digits, or all digits before the decimal point if these are more. A pair (value,
    standard error) is rounded to the second digit of the error.

    Example:
        >>> from ppgen.report.page import cell
        >>> cell(12345.678), cell(0.000123456), cell((-31.4159, 0.0217)), cell(None)
        ('12346', '0.0001235', '-31.416 ± 0.022', '')
    """
    if value is None:
        return ""
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Real) for part in value):
        value, error = map(float, value)
        if math.isfinite(error) and error > 0:
            places = max(0, 1 - math.floor(math.log10(error)))
            return f"{value:.{places}f} ± {error:.{places}f}"
        return f"{cell(value)} ± {cell(error)}"
    if isinstance(value, Real) and not isinstance(value, Integral):
        value = float(value)
        return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:#.4g}"
    return str(value)


def _png(figure: Drawing) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
