"""Data as a source holds them, before `load` gives them their form."""

from typing import NamedTuple

import numpy as np

from ppgen.data.labels import encode


class Raw(NamedTuple):
    """x: (n, *event_shape) of any real type, y: int64 (n,) or None; `levels` as in `forms`."""

    x: np.ndarray
    y: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    levels: int | None = None


def from_array(x: np.ndarray, y: np.ndarray | None = None, *, name: str) -> Raw:
    """Tables (n, features), gray images (n, height, width) and images (n, channels, height, width).

    Images of 8 unsigned bits have 256 levels, boolean images 2. Raises ValueError for another rank, for
    channels that come last, and for labels that do not match the rows.
    """
    if x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{name}: expected a table (n, features), gray images (n, height, width) or images "
            f"(n, channels, height, width), got an array of shape {x.shape}"
        )
    if x.ndim == 4 and x.shape[1] not in (1, 3, 4) and x.shape[3] in (1, 3, 4):
        raise ValueError(
            f"{name}: expected images (n, channels, height, width), got shape {x.shape}, whose channels seem "
            f"to come last; save x.transpose(0, 3, 1, 2)"
        )
    levels = {"uint8": 256, "bool": 2}.get(x.dtype.name) if x.ndim > 2 else None
    if x.dtype == bool:
        x = x.astype(np.uint8)
    if x.ndim == 3:
        x = x[:, None]
    label_names = None
    if y is not None:
        if y.shape != x.shape[:1]:
            raise ValueError(f"{name}: expected one label a row, shape {x.shape[:1]}, got labels of shape {y.shape}")
        y, label_names = encode(y, name=f"{name}, labels")
    return Raw(x, y, None, label_names, levels)
