"""A report and the one HTML page that it becomes.

The page holds everything it shows: its style, and each figure as a base64 data URI. It runs no script, and its
content security policy forbids it to load anything.
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

from ppgen.utils.files import write_whole

__all__ = ["Figure", "Listing", "Report", "Section", "Table", "write_report"]

DPI = 160

# The first bytes of the pictures that a page can hold, and their media types.
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"<svg": "image/svg+xml", b"<?xml": "image/svg+xml"}


@dataclass(frozen=True)
class Figure:
    """A matplotlib figure, or the bytes of a PNG, JPEG or SVG picture.

    Attributes:
        alt: what the picture shows, for those who cannot see it.
    """

    picture: Drawing | bytes
    caption: str
    alt: str

    @property
    def uri(self) -> str:
        """The picture as a data URI. Raises ValueError for bytes of another kind."""
        data = self.picture if isinstance(self.picture, bytes) else _png(self.picture)
        kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), None)
        if kind is None:
            raise ValueError(f"expected the bytes of a PNG, JPEG or SVG picture, got {data[:12]!r}: {self.caption}")
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Table:
    """Rows of cells: text, numbers, or a pair (value, standard error). Raises ValueError for rows of unequal length."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"expected rows of {len(self.header)} cells, as the header, got {list(row)}")


@dataclass(frozen=True)
class Listing:
    """Text that keeps its lines, such as a configuration."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a text whose paragraphs a blank line parts, and what follows them."""

    title: str
    text: str = ""
    items: Sequence[Figure | Table | Listing] = ()


@dataclass(frozen=True)
class Report:
    """A page: its title, a line below it, and its sections."""

    title: str
    subtitle: str = ""
    sections: Sequence[Section] = field(default_factory=list)


def write_report(path: str | os.PathLike, report: Report) -> Path:
    """Writes a report as one HTML file, whole or not at all; makes the folder if it is missing. Returns the path.

    Raises:
        ValueError: if a figure's bytes are no picture. OSError: if the file cannot be written.
    """
    return write_whole(path, render(report))


def render(report: Report) -> str:
    """The page as text. All text of the report is escaped."""
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
    """A table's cell as text.

    Numbers have four significant digits, or all before the point; a pair (value, standard error) is rounded to
    the error's second digit.

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
