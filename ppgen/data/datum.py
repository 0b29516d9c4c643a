"""What `load` hands back: all rows, who belongs to which split, and the way back to the source's units."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ppgen.data.scaler import Scaler


class Split(NamedTuple):
    """The rows of one split: x of shape (m, *event_shape), and y of shape (m,) or None."""

    x: np.ndarray
    y: np.ndarray | None


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Data ready to fit.

    name: the name of the set, or of the file or folder without the path to it.
    x: (n, *event_shape), float32, or int64 when form is "integer"; already scaled. The event shape is
       (features,) for tables and (channels, height, width) for images.
    y: int64 (n,), or None without labels. `label_names[y]` names them where the source did.
    rows: the row numbers of "train", "validation" and "test", disjoint and together all rows.
    levels: how many values a gray level could take before x was made continuous or unit (2 when binary);
       None where x is not made of levels.
    scaler: the map that made x; `scaler.inverse(x)` has the source's units.
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

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        return self._split("validation")

    @cached_property
    def test(self) -> Split:
        return self._split("test")

    def _split(self, name: str) -> Split:
        rows = self.rows[name]
        return Split(self.x[rows], None if self.y is None else self.y[rows])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self.rows.items())
        return f"Data({self.name!r}, {len(self.x)} rows of {self.event_shape}, {self.form}: {sizes})"
