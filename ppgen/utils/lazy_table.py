"""Tables of named objects whose modules are imported only when an object is looked up."""

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Generic, TypeVar, cast

__all__ = ["LazyTable"]

V = TypeVar("V")


class LazyTable(MutableMapping[str, V], Generic[V]):
    """A mapping from names to objects, most of them given as ``"module:attribute"`` and imported on first lookup.

    Iteration, ``len``, ``in`` and ``repr`` import nothing. Users add rows of their own: ``table["mine"] = object``.

    Args:
        rows: The objects, or where to import them from, by name.

    Example:
        >>> from ppgen.utils.lazy_table import LazyTable
        >>> table = LazyTable({"sqrt": "math:sqrt"})
        >>> list(table)
        ['sqrt']
        >>> table["sqrt"](4.0)
        2.0
    """

    def __init__(self, rows: Mapping[str, str | V]) -> None:
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> V:
        row = self._rows[name]
        if isinstance(row, str):
            module, _, attribute = row.partition(":")
            self._rows[name] = row = cast(V, getattr(import_module(module), attribute))
        return row

    def __setitem__(self, name: str, row: V | str) -> None:
        self._rows[name] = row

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows  # the inherited method would import the row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"
