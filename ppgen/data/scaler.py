"""An affine map of each column, x -> (x - shift)/scale, its inverse and its log determinant.

Arrays have shape (n, *event_shape); shift and scale have shape (*event_shape).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppgen.data.checks import FiniteCheck, check, chunks, name_columns


@dataclass(frozen=True, eq=False)
class Scaler:
    """The map x -> (x - shift)/scale.

    Attributes:
        shift: float64 (*event_shape).
        scale: float64 (*event_shape), positive.

    Raises:
        ValueError: if the shapes differ, values are not finite, or scale is not positive.
    """

    shift: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=np.float64))
        if self.shift.shape != self.scale.shape:
            raise ValueError(
                f"expected shift and scale of the same shape, got {self.shift.shape} and {self.scale.shape}"
            )
        invalid = ~(np.isfinite(self.shift) & np.isfinite(self.scale) & (self.scale > 0))
        if invalid.any():
            raise ValueError(
                "expected a finite shift and a finite, positive scale, got another in "
                f"{name_columns(np.argwhere(invalid))}"
            )

    @classmethod
    def identity(cls, event_shape: tuple[int, ...]) -> "Scaler":
        """The identity map."""
        return cls(np.zeros(event_shape), np.ones(event_shape))

    @classmethod
    def fit(
        cls,
        x: Any,
        *,
        rows: np.ndarray | None = None,
        columns: Sequence[str] | None = None,
        name: str = "Scaler.fit",
    ) -> "Scaler":
        """The map that standardizes data: the mean and the standard deviation (dividing by n) of each column.

        The data are read once, in the order of their rows and in chunks, whose moments are merged (Chan et al. 1983,
        https://doi.org/10.1080/00031305.1983.10483115). A constant column keeps the scale 1, so that it becomes zero,
        and a UserWarning names it.

        Args:
            x: the data (n, *event_shape), an array or a `ppgen.data.StreamedArray`.
            rows: the numbers of the rows to use; all if left out. The other rows are checked too.
            columns: the names of columns, for errors, or None.
            name: the source, for errors.

        Raises:
            TypeError: as `check` does.
            ValueError: as `check` does, and for columns whose standard deviation overflows.
        """
        check(x[:1], name=name, columns=columns, finite=False)
        moments, finite = _Moments(), FiniteCheck(name, columns)
        used = np.full(len(x), rows is None)
        if rows is not None:
            used[rows] = True
        for start, stop in chunks(x.shape):
            chunk = x[start:stop]
            finite.add(chunk)
            if used[start:stop].any():
                moments.add(chunk[used[start:stop]])
        finite.finish()
        # by rounding, the standard deviation of a constant column may differ from zero
        constant = moments.least == moments.most
        if constant.any():
            which = name_columns(np.argwhere(constant), columns)
            warnings.warn(f"constant in the training rows, therefore not scaled: {which}", UserWarning, stacklevel=2)
        return cls(moments.mean, np.where(constant, 1.0, np.sqrt(moments.squares / moments.count)))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """(x - shift)/scale, computed in float64 and returned in the floating point type of x."""
        return ((self._columns(x) - self.shift) / self.scale).astype(_floating(x))

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """The inverse shift + scale x, computed in float64 and returned in the floating point type of x."""
        return (self._columns(x) * self.scale + self.shift).astype(_floating(x))

    def log_det(self) -> float:
        """The log determinant of the Jacobian, -Σ log scale, the same for every row, in nats.

        In the units of x, a model of the scaled data has log p(x) = log p(transform(x)) + log_det().
        """
        return -float(np.log(self.scale).sum())

    def state(self) -> dict[str, Any]:
        """The map as numbers and lists, for YAML or JSON; a constant shift or scale is one number."""
        return {
            "shape": list(self.shift.shape),
            "shift": _compact(self.shift),
            "scale": _compact(self.scale),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Scaler":
        """The scaler of a state."""
        return cls(*(np.broadcast_to(state[name], state["shape"]) for name in ("shift", "scale")))

    def _columns(self, x: np.ndarray) -> np.ndarray:
        if x.shape[1:] != self.shift.shape:
            raise ValueError(f"expected rows of shape {self.shift.shape}, got an array of shape {x.shape}")
        return x.astype(np.float64)


@dataclass
class _Moments:
    """Count, mean, sum of squared deviations and range of each column, chunk by chunk."""

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0
    least: Any = np.inf
    most: Any = -np.inf

    def add(self, x: np.ndarray) -> None:
        """Merges a chunk (n, *event_shape)."""
        with np.errstate(over="ignore", invalid="ignore"):  # the constructor of `Scaler` refuses what overflows
            mean = x.mean(axis=0, dtype=np.float64)
            squares = np.square(x - mean).sum(axis=0)
            count, shift = self.count + len(x), mean - self.mean
            self.mean = np.asarray(self.mean + shift * (len(x) / count))
            self.squares = self.squares + squares + np.square(shift) * (self.count * len(x) / count)
        self.count, self.least, self.most = count, np.minimum(self.least, x.min(0)), np.maximum(self.most, x.max(0))


def _floating(x: np.ndarray) -> np.dtype:
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)


def _compact(values: np.ndarray) -> Any:
    first = values.flat[0]
    return first.item() if (values == first).all() else values.tolist()
