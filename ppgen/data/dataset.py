"""A prepared data set: all rows, the rows of each split, and the map back to the units of the source."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ppgen.data.origin import Origin
from ppgen.data.scaler import Scaler
from ppgen.data.streaming import StreamedArray

__all__ = ["Data", "Split"]


class Split(NamedTuple):
    """The rows of one split.

    Attributes:
        x: the data (m, *event_shape); a `ppgen.data.StreamedArray` if they are streamed.
        y: the labels (m,), or None.
    """

    x: np.ndarray
    y: np.ndarray | None


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set that can be fitted.

    Attributes:
        name: the name of the data set, or of the file or folder without its path.
        x: the scaled data (n, *event_shape), float32, or int64 if form is "integer". The event shape is (features,) of
            tables and (channels, height, width) of images. A `ppgen.data.StreamedArray` if the data are streamed.
        y: int64 labels (n,), or None.
        rows: the row numbers of "train", "validation" and "test", disjoint and together all rows.
        form: a row of `ppgen.data.FORMS`.
        scaler: the map that scaled x; `scaler.inverse(x)` has the units of the source.
        columns: the names of the columns of a table, or None.
        label_names: the names of the labels, indexed by y, or None.
        levels: the number of gray levels of the source (2 if form is "binary"); None if the data have no levels.
        classes: the number of labels, the largest y plus one, or None.
        origins: where the rows come from, with their digests.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    rows: dict[str, np.ndarray]
    form: str
    scaler: Scaler
    columns: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    levels: int | None = None
    classes: int | None = None
    origins: tuple[Origin, ...] = ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a row of x."""
        return self.x.shape[1:]

    @cached_property
    def train(self) -> Split:
        """The training rows."""
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        """The validation rows."""
        return self._split("validation")

    @cached_property
    def test(self) -> Split:
        """The test rows."""
        return self._split("test")

    def _split(self, name: str) -> Split:
        rows = self.rows[name]
        x: Any = self.x.select(rows) if isinstance(self.x, StreamedArray) else self.x[rows]
        return Split(x, None if self.y is None else self.y[rows])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self.rows.items())
        return f"Data({self.name!r}, {len(self.x)} rows of {self.event_shape}, {self.form}: {sizes})"
