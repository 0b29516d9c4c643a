"""Tables of sections: which sections a report has, and which of them need a capability of the model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ppgen.report.page import Section

__all__ = ["Row", "build_sections"]

C = TypeVar("C", contravariant=True)


@dataclass(frozen=True)
class Row(Generic[C]):
    """One section of a report.

    Attributes:
        build: the function from the report's context to the section; None where there is nothing to show.
        needs: the protocol of `ppgen.models.protocols` that the model must satisfy; None for no condition.
    """

    build: Callable[[C], Section | None]
    needs: type | None = None


def build_sections(rows: Iterable[Row[C]], context: C, *, model: Any = None) -> list[Section]:
    """Builds the sections of a report, in the order of the rows.

    Args:
        rows: the table of sections.
        context: what the sections read.
        model: the model whose capabilities the rows may need.
    """
    built = (row.build(context) for row in rows if row.needs is None or isinstance(model, row.needs))
    return [section for section in built if section is not None]
