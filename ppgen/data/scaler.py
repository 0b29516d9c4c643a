"""An affine map of each column, x -> (x - shift)/scale, its inverse and its log determinant.

Arrays have shape (n, *event_shape); shift and scale have shape (*event_shape).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppgen.data.checks import check, name_columns


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
    def fit(cls, x: np.ndarray, *, columns: Sequence[str] | None = None) -> "Scaler":
        """The map that standardizes data: the mean and the standard deviation (dividing by n) of each column.

        A constant column keeps the scale 1, so that it becomes zero, and a UserWarning names it.

        Args:
            x: the data (n, *event_shape).
            columns: the names of columns, for errors, or None.

        Raises:
            TypeError: as `check` does.
            ValueError: as `check` does, and for columns whose standard deviation overflows.
        """
        check(x, name="Scaler.fit", columns=columns)
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is an error below
            shift, scale = np.asarray(x.mean(axis=0, dtype=np.float64)), x.std(axis=0, dtype=np.float64)
        # by rounding, the standard deviation of a constant column may differ from zero
        constant = x.min(axis=0) == x.max(axis=0)
        if constant.any():
            which = name_columns(np.argwhere(constant), columns)
            warnings.warn(f"constant in the training rows, therefore not scaled: {which}", UserWarning, stacklevel=2)
        return cls(shift, np.where(constant, 1.0, scale))

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


def _floating(x: np.ndarray) -> np.dtype:
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)


def _compact(values: np.ndarray) -> Any:
    first = values.flat[0]
    return first.item() if (values == first).all() else values.tolist()
