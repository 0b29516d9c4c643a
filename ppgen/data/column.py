"""`Column`: what one column of a table is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["CODED", "KINDS", "Column", "describe_values"]

CODED = ("binary", "categorical", "ordinal")
KINDS = ("continuous", "positive", "bounded", "count", *CODED, "datetime", "omitted")


MARGINAL = ("frequent", "quantiles", "levels")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: its name.
        kind: a row of `KINDS`.
        dtype: the pandas type of its cells, as text; "date" for objects `datetime.date`.
        reason: why it has this kind.
        decimals: the number of decimals of its numbers, 0 for whole numbers; None if they have no grid.
        low: the lower bound of its numbers, or None.
        high: the upper bound of its numbers, or None.
        categories: the categories in the order of their codes (texts, numbers or booleans), or None.
        date_format: the format of dates that are written as text, as in `time.strftime`, or None.
        origin: the date whose number is 0, in ISO format, or None.
        unit: the unit of dates and durations: D, h, m, s, ms, us or ns; None for other columns.
        optional: whether cells of it may be missing.
        missing: how missing cells are written, the usual way first: in a file the texts that stand for them.
        frequent: encoded numbers that many rows share, see `ppgen.data.marginals`; not of categories.
        quantiles: increasing encoded numbers, the quantiles of those that are not frequent.
        levels: the part of the numbers that is below each quantile.

    Raises:
        ValueError: for an unknown kind, and for a kind without what it needs (categories, bounds, a unit).
    """

    name: str
    kind: str
    dtype: str = "float64"
    reason: str = "given"
    decimals: int | None = None
    low: float | None = None
    high: float | None = None
    categories: tuple[Any, ...] | None = None
    date_format: str | None = None
    origin: str | None = None
    unit: str | None = None
    optional: bool = False
    missing: tuple[str, ...] = ()
    frequent: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = f"column {self.name!r}"
        if not isinstance(self.name, str):
            raise ValueError(f"expected the name of a column to be text, got {self.name!r}")
        if self.kind not in KINDS:
            raise ValueError(f"{where}: expected the kind to be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("categories", "missing", *MARGINAL):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if self.kind in CODED and not self.categories:
            raise ValueError(f"{where}: a column of kind {self.kind!r} needs its categories, and there are none")
        if self.categories is not None and len(set(map(repr, self.categories))) < len(self.categories):
            raise ValueError(f"{where}: a category is named twice: {', '.join(map(repr, self.categories))}")
        if self.kind == "binary" and len(self.categories or ()) != 2:
            raise ValueError(f"{where}: expected two categories of a binary column, got {len(self.categories or ())}")
        if self.kind == "bounded" and not (self.low is not None and self.high is not None and self.low < self.high):
            raise ValueError(f"{where}: a bounded column needs low < high, got low={self.low} and high={self.high}")
        if self.kind == "datetime" and (self.unit is None or self.origin is None):
            raise ValueError(f"{where}: a column of dates needs an origin and a unit")

    @property
    def is_coded(self) -> bool:
        """Whether its numbers are codes of categories."""
        return self.kind in CODED

    def as_dict(self, *, marginals: bool = True) -> dict[str, Any]:
        """What differs from the defaults, as plain values for YAML and JSON.

        Args:
            marginals: whether to include the marginal distribution, hundreds of numbers.
        """
        default = {field.name: field.default for field in fields(self) if marginals or field.name not in MARGINAL}
        values = {name: getattr(self, name) for name in default}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v != default[k]}
        return {"name": self.name, "kind": self.kind} | plain


_UNITS = {"D": "day", "h": "hour", "m": "minute", "s": "second", "ms": "ms", "us": "µs", "ns": "ns"}


def describe_values(column: Column) -> str:
    """What is known of the values of a column, in words.

    Args:
        column: the column.
    """
    parts = []
    if column.categories is not None:
        shown = [str(c) for c in column.categories[:4]] + (["..."] if len(column.categories) > 4 else [])
        parts.append(f"{len(column.categories)}: {' < '.join(shown) if column.kind == 'ordinal' else ', '.join(shown)}")
    elif column.kind != "omitted":
        if column.unit is not None:
            parts.append(f"{column.date_format or column.dtype}, to the {_UNITS[column.unit]}")
        elif column.decimals is not None:
            parts.append("whole numbers" if column.decimals == 0 else f"{column.decimals} decimals")
        if column.low is not None or column.high is not None:
            low = "-inf" if column.low is None else f"{column.low:g}"
            parts.append(f"from {low} to {'inf' if column.high is None else f'{column.high:g}'}")
    if column.optional and column.kind != "omitted":
        marks = " ".join(repr(mark) for mark in column.missing if mark)
        parts.append(f"some missing{f' ({marks})' if marks else ''}")
    return "; ".join(parts)
