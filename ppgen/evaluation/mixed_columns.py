"""Columns of several frames as numbers on common scales, whatever their types: what distances and classifiers see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppgen.data.schema import Column, Schema, as_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MixedColumns"]


@dataclass(frozen=True)
class MixedColumns:
    """Rows of several frames as float64 numbers.

    Attributes:
        names: the columns.
        categories: the categories of each column, as text, in the order of their codes; None for numbers and dates.
        rows: the numbers (n, number of columns) of each frame, codes of categories, and NaN for missing cells.
    """

    names: tuple[str, ...]
    categories: tuple[tuple[str, ...] | None, ...]
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, frames: Sequence[pd.DataFrame], names: Sequence[str], schema: Schema | None = None) -> MixedColumns:
        """The columns of frames.

        Args:
            frames: the frames, the first of which says what the columns are.
            names: what errors call the frames.
            schema: what the columns are, if that is known. Columns that it omits are left out.

        Raises:
            ValueError: if a frame lacks a column, or has text in a column of numbers; the message names it, and the
                row.
        """
        frames = [as_frame(frame, name) for frame, name in zip(frames, names, strict=True)]
        schema = Schema.infer(frames[0], name=names[0]) if schema is None else schema
        columns = [_joint(column, frames, names) for column in schema]
        categories, numbers = zip(*columns, strict=True)
        ends = np.cumsum([len(frame) for frame in frames])[:-1]
        return cls(schema.names, categories, tuple(np.split(np.column_stack(numbers), ends)))

    @property
    def is_category(self) -> np.ndarray:
        """Which columns have categories, booleans."""
        return np.array([found is not None for found in self.categories])

    def embedded(self) -> tuple[np.ndarray, ...]:
        """Each frame in coordinates whose distances count columns alike.

        Numbers are divided by the standard deviation in the first frame; categories are indicators times sqrt(1/2), so
        that two different ones have the distance 1. A missing number is the mean, and has the distance 1 from others.
        """
        parts: list[list[np.ndarray]] = [[] for _ in self.rows]
        for j, categories in enumerate(self.categories):
            first = self.rows[0][:, j]
            mean, spread = (np.nanmean(first), np.nanstd(first)) if not np.isnan(first).all() else (0.0, 0.0)
            some_missing = any(np.isnan(x[:, j]).any() for x in self.rows)
            for x, embedded in zip(self.rows, parts, strict=True):
                values, missing = x[:, j], np.isnan(x[:, j])
                if categories is not None:
                    codes = np.where(missing, len(categories), values).astype(np.int64)
                    embedded.append(np.eye(len(categories) + 1)[codes] * np.sqrt(0.5))
                    continue
                embedded.append(np.where(missing, 0.0, (values - mean) / (spread or 1.0))[:, None])
                if some_missing:
                    embedded.append(missing[:, None].astype(np.float64))
        return tuple(np.concatenate(embedded, axis=1) for embedded in parts)


def _joint(
    column: Column, frames: Sequence[pd.DataFrame], names: Sequence[str]
) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """The categories, or None, and the numbers of a column in all frames, one after another."""
    import pandas as pd

    for frame, name in zip(frames, names, strict=True):
        if column.name not in map(str, frame.columns):
            raise ValueError(
                f"{name}: there is no column {column.name!r}; there are {', '.join(map(str, frame.columns))}"
            )
    series = [frame.loc[:, [str(c) == column.name for c in frame.columns]].iloc[:, 0] for frame in frames]
    if column.is_coded:
        known = [str(category) for category in column.categories or ()]
        cells = pd.concat([_as_text(one) for one in series], ignore_index=True)
        more = sorted(set(cells.dropna()) - set(known))
        codes = pd.Categorical(cells, categories=[*known, *more]).codes.astype(np.float64)
        return (*known, *more), np.where(codes < 0, np.nan, codes)
    if column.unit is not None:
        return None, np.concatenate([Schema((column,)).encode(one.to_frame(column.name))[:, 0] for one in series])
    return None, np.concatenate([_numbers(one, name) for one, name in zip(series, names, strict=True)])


def _as_text(cells: pd.Series) -> pd.Series:
    """Categories as text, where 1, 1.0 and True are the same as in another frame that has missing cells."""
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce") if pd.api.types.is_numeric_dtype(cells.dtype) else None
    if numbers is not None and not pd.api.types.is_bool_dtype(cells.dtype) and (numbers.dropna() % 1 == 0).all():
        return numbers.astype("Int64").astype("string").astype(object)
    return cells.astype(object).where(cells.notna(), None).map(str, na_action="ignore")


def _numbers(cells: pd.Series, name: str) -> np.ndarray:
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if (wrong := np.flatnonzero(np.isinf(numbers) | (np.isnan(numbers) & cells.notna().to_numpy()))).size:
        raise ValueError(
            f"{name}, row {wrong[0]} (the first is 0), column {cells.name!r}: expected a finite number, got "
            f"{cells.iloc[wrong[0]]!r}"
        )
    return numbers
