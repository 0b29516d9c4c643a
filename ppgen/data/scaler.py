"""An affine map of each column, x -> (x - shift)/scale, its inverse and its log-determinant.

Arrays are rows first, (n, *event_shape); shift and scale have the event shape.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppgen.data.checks import check, name_columns


@dataclass(frozen=True, eq=False)
class Scaler:
    """x -> (x - shift)/scale, with shift and scale float64 of the event's shape.

    Raises ValueError unless the two have one shape, are finite, and scale is positive.
    """

    shift: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=np.float64))
        if self.shift.shape != self.scale.shape:
            raise ValueError(f"expected shift and scale of one shape, got {self.shift.shape} and {self.scale.shape}")
        bad = ~(np.isfinite(self.shift) & np.isfinite(self.scale) & (self.scale > 0))
        if bad.any():
            raise ValueError(
                f"expected a finite shift and a finite, positive scale, got another in {name_columns(np.argwhere(bad))}"
            )

    @classmethod
    def identity(cls, event_shape: tuple[int, ...]) -> "Scaler":
        """The map that leaves everything as it is."""
        return cls(np.zeros(event_shape), np.ones(event_shape))

    @classmethod
    def fit(cls, x: np.ndarray, *, columns: Sequence[str] | None = None) -> "Scaler":
        """Shift and scale are each column's mean and standard deviation (dividing by n).

        A constant column keeps scale 1, so that it becomes zero, and a UserWarning names it. Raises as
        `check`, and ValueError for columns too large for a standard deviation.
        """
        check(x, name="Scaler.fit", columns=columns)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            shift, scale = np.asarray(x.mean(axis=0, dtype=np.float64)), x.std(axis=0, dtype=np.float64)
        constant = x.min(axis=0) == x.max(axis=0)  # the rounded deviation of a constant need not be zero
        if constant.any():
            which = name_columns(np.argwhere(constant), columns)
            warnings.warn(f"constant over the rows fitted, so not scaled: {which}", UserWarning, stacklevel=2)
        return cls(shift, np.where(constant, 1.0, scale))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """(x - shift)/scale, in float64, returned in the floating type of `x`."""
        return ((self._columns(x) - self.shift) / self.scale).astype(_floating(x))

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """shift + scale x, in float64, returned in the floating type of `x`."""
        return (self._columns(x) * self.scale + self.shift).astype(_floating(x))

    def log_det(self) -> float:
        """log |d transform/dx| = -Σ log scale, the same for every row, in nats.

        A model of the scaled data has log p(x) = log p(transform(x)) + log_det() in the units of x.
        """
        return -float(np.log(self.scale).sum())

    def state(self) -> dict[str, Any]:
        """Numbers and lists only, for YAML or JSON; one number stands for a constant shift or scale."""
        return {
            "shape": list(self.shift.shape),
            "shift": _compact(self.shift),
            "scale": _compact(self.scale),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Scaler":
        """The scaler that `state` describes."""
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
