"""`Schema`: what the columns of a table are, and the exact map between a frame and numbers.

A schema is inferred from a pandas frame, each column with the reason for its kind. `Schema.encode` makes one float64
row of numbers for each row of a frame, NaN where a cell is missing, and `Schema.decode` makes the frame again: types,
categories, decimals, dates, the order and the names of columns. Columns of the kind "omitted", such as keys, are in
neither.

| kind | what its numbers are |
|---|---|
| continuous, positive, bounded, count | the values themselves; durations in multiples of their unit |
| binary, categorical, ordinal | codes 0, 1, .. of the categories, in their order |
| datetime | the time since the first date of the data, in multiples of its unit, exact up to 2^53 of them |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.data.column import KINDS, Column, describe_values
from ppgen.data.column_codes import decode_column, encode_column
from ppgen.data.column_inference import infer_column
from ppgen.data.labels import row_number
from ppgen.data.marginals import marginal_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = ["Schema", "as_frame"]


@dataclass(frozen=True)
class Schema:
    """The columns of a table.

    Attributes:
        columns: all of them, in the order of the table.

    Raises:
        ValueError: if two columns have one name, or all are omitted.

    Example:
        >>> import pandas as pd
        >>> from ppgen.data import Schema
        >>> frame = pd.DataFrame({"plan": ["free", "pro", None, "free"], "paid": [0.0, 9.5, 3.25, 0.0]})
        >>> schema = Schema.infer(frame)
        >>> schema["plan"].kind, schema["plan"].categories, schema["paid"].decimals
        ('binary', ('free', 'pro'), 2)
        >>> schema.encode(frame).tolist()
        [[0.0, 0.0], [1.0, 9.5], [nan, 3.25], [0.0, 0.0]]
        >>> schema.decode(schema.encode(frame)).equals(frame)
        True
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two columns are named {twice!r}; rename one")
        if not self.kept:
            reasons = "; ".join(f"{column.name!r}: {column.reason}" for column in self.columns)
            raise ValueError(f"every column is omitted, so that there is nothing to model ({reasons or 'no columns'})")

    # From a frame

    @classmethod
    def infer(
        cls,
        frame: pd.DataFrame,
        *,
        kinds: Mapping[str, str] | None = None,
        missing: Collection[str] = (),
        name: str = "frame",
        location: Callable[[int], str] = row_number,
    ) -> Schema:
        """Infers the columns of a frame; the reasons stand in each column and in `describe`.

        Args:
            frame: the table.
            kinds: kinds of columns that are known, by name, such as ``{"zip": "categorical", "id": "omitted"}``.
            missing: texts that stand for missing cells.
            name: the source, for errors.
            location: describes where a row is in the source, for errors.

        Raises:
            TypeError: if `frame` is no pandas frame.
            ValueError: for duplicate names, kinds of columns that do not exist or that their cells do not have, and a
                cell that is not a number or a date where nearly all others are.
        """
        frame = as_frame(frame, name)
        kinds = dict(kinds or {})
        if unknown := [key for key in kinds if key not in map(str, frame.columns)]:
            raise ValueError(f"{name}: kinds names a column {unknown[0]!r} that does not exist; {_list(frame.columns)}")
        if other := [kind for kind in kinds.values() if kind not in KINDS]:
            raise ValueError(f"{name}: expected kinds to be among {', '.join(KINDS)}, got {other[0]!r}")
        schema = cls(
            tuple(
                infer_column(
                    frame.iloc[:, i], str(c), kind=kinds.get(str(c)), marks=missing, source=name, location=location
                )
                for i, c in enumerate(frame.columns)
            )
        )
        return schema.with_marginals(schema.encode(frame, name=name, location=location))

    def with_marginals(self, x: np.ndarray) -> Schema:
        """The schema with the marginal distributions of other rows, for example of the training rows alone.

        Args:
            x: encoded rows (n, number of kept columns).

        Raises:
            ValueError: if a column has no value in these rows.
        """
        found: dict[str, Any] = {}
        for j, column in enumerate(self.kept):
            values = x[:, j][~np.isnan(x[:, j])]
            if not len(values):
                raise ValueError(f"column {column.name!r} has no value in these {len(x)} rows; leave it out")
            found[column.name] = {} if column.is_coded else marginal_of(values)
        return Schema(tuple(replace(column, **found.get(column.name, {})) for column in self.columns))

    # The columns

    @property
    def kept(self) -> tuple[Column, ...]:
        """The columns that are not omitted, in the order of the encoded numbers."""
        return tuple(column for column in self.columns if column.kind != "omitted")

    @property
    def omitted(self) -> tuple[Column, ...]:
        """The columns that are left out."""
        return tuple(column for column in self.columns if column.kind == "omitted")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns that are kept."""
        return tuple(column.name for column in self.kept)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"there is no column {name!r}; {_list(column.name for column in self.columns)}")

    def __iter__(self) -> Iterator[Column]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def index(self, name: str) -> int:
        """The position of a kept column in the encoded numbers.

        Raises:
            KeyError: if there is no such column, or it is omitted.
        """
        if self[name].kind == "omitted":
            raise KeyError(f"column {name!r} is left out ({self[name].reason}); kept are {_list(self.names)}")
        return self.names.index(name)

    def with_column(self, name: str, **changes: Any) -> Schema:
        """The schema in which attributes of a column are others, for example ``kind="omitted"``.

        To change numbers to categories or back, give `kinds` to `infer`, which reads the categories from the data.
        """
        changed = replace(self[name], **({"reason": "given"} | changes))
        return Schema(tuple(changed if column.name == name else column for column in self.columns))

    def describe(self) -> str:
        """A table of the columns in words: name, kind, what is known of it, and the reason."""
        rows = [
            ("column", "kind", "values", "why"),
            *((c.name, c.kind, describe_values(c), c.reason) for c in self.columns),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]]) for row in rows
        )

    # Frames and numbers

    def encode(
        self,
        frame: pd.DataFrame,
        *,
        partial: bool = False,
        unknown: str = "error",
        name: str = "frame",
        location: Callable[[int], str] = row_number,
    ) -> np.ndarray:
        """The numbers of a frame. Columns that the schema does not keep are not read.

        Args:
            frame: the table, with the columns in any order.
            partial: whether columns may be absent, whose cells are then all missing.
            unknown: what a category that the schema does not know is: "error", or "missing".
            name: the source, for errors.
            location: describes where a row is in the source, for errors.

        Returns:
            float64 (n, number of kept columns), NaN where a cell is missing.

        Raises:
            TypeError: if `frame` is no pandas frame.
            ValueError: for an absent column, a category that the schema does not know, and a cell that is not of its
                column's kind; the message names column and row.
        """
        if unknown not in ("error", "missing"):
            raise ValueError(f"expected unknown to be 'error' or 'missing', got {unknown!r}")
        frame = as_frame(frame, name)
        found = {str(c): frame.iloc[:, i] for i, c in enumerate(frame.columns)}
        absent = [column.name for column in self.kept if column.name not in found]
        if absent and not partial:
            raise ValueError(f"{name} lacks the column {absent[0]!r} of the schema; {_list(found)}")
        x = np.full((len(frame), len(self)), np.nan)
        for j, column in enumerate(self.kept):
            if column.name in found:
                x[:, j] = encode_column(column, found[column.name], unknown=unknown, source=name, location=location)
        return x

    def tensors(self, frame: pd.DataFrame, **options: Any) -> dict[str, Tensor]:
        """The numbers of a frame by column: int64 codes of columns without missing cells that have categories,
        float64 otherwise, NaN where a cell is missing.

        Args:
            frame: the table.
            **options: those of `encode`.
        """  # noqa: D205
        import torch

        x = self.encode(frame, **options)
        columns = {}
        for j, column in enumerate(self.kept):
            numbers = torch.from_numpy(x[:, j].copy())
            columns[column.name] = numbers.long() if column.is_coded and not numbers.isnan().any() else numbers
        return columns

    def coords(self) -> dict[str, list[Any]]:
        """The categories of each column that has some, by its name, as coordinates for ArviZ."""
        return {column.name: list(column.categories or ()) for column in self.kept if column.is_coded}

    def decode(self, x: Any, *, index: Any = None) -> pd.DataFrame:
        """The frame of numbers: the inverse of `encode`.

        Numbers that no frame of this schema has are rounded: to its decimals, to whole codes, and into its bounds.

        Args:
            x: (n, number of kept columns), an array or a tensor; NaN for a missing cell.
            index: the index of the frame; 0, 1, .. if left out.

        Raises:
            ValueError: for another number of columns, and infinite numbers.
        """
        import pandas as pd

        numbers = np.asarray(x, np.float64)
        if numbers.ndim != 2 or numbers.shape[1] != len(self):
            raise ValueError(f"expected numbers of shape (n, {len(self)}), a column each, got {numbers.shape}")
        if np.isinf(numbers).any():
            row, j = np.argwhere(np.isinf(numbers))[0]
            raise ValueError(
                f"{row_number(row)}, column {self.names[j]!r}: expected finite numbers, got {numbers[row, j]}"
            )
        columns = {c.name: decode_column(c, numbers[:, j], index) for j, c in enumerate(self.kept)}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(numbers)) if index is None else index)

    # YAML and JSON

    def as_dict(self, *, marginals: bool = True) -> dict[str, Any]:
        """The schema as plain values, for YAML and JSON.

        Args:
            marginals: whether to include the marginal distributions, hundreds of numbers a column.
        """
        return {"columns": [column.as_dict(marginals=marginals) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema of plain values, as `as_dict` makes them.

        Raises:
            ValueError: for entries that are missing, unknown, or of the wrong type; the message names the column.
        """
        if not isinstance(values, Mapping) or not isinstance(columns := values.get("columns"), Sequence):
            raise ValueError("a schema has to be a mapping with the entry 'columns', a list of columns")
        known = {field.name for field in fields(Column)}
        made = []
        for i, entry in enumerate(columns):
            if not isinstance(entry, Mapping) or not {"name", "kind"} <= set(entry):
                raise ValueError(f"schema, column {i} (the first is 0): expected a mapping with a name and a kind")
            if more := sorted(set(entry) - known):
                raise ValueError(
                    f"schema, column {entry['name']!r}: there is no entry {more[0]!r}; {_list(sorted(known))}"
                )
            made.append(Column(**entry))
        return cls(tuple(made))


def as_frame(frame: Any, name: str = "frame") -> pd.DataFrame:
    """A pandas frame, or an Arrow table as one, whose names of columns are all different.

    Args:
        frame: a pandas frame or an Arrow table.
        name: the source, for errors.

    Raises:
        TypeError: for anything else.
        ValueError: if two columns have one name, or there is no row.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame) and hasattr(frame, "to_pandas"):
        frame = frame.to_pandas()
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{name}: expected a pandas frame or an Arrow table, got {type(frame).__name__}")
    names = list(map(str, frame.columns))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{name}: two columns are named {twice!r}; rename one")
    return frame


def _list(names: Any) -> str:
    return f"there are {', '.join(map(repr, map(str, names)))}"
