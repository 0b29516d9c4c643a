"""Data as read from a source, before `load` converts, splits and scales them."""

from typing import NamedTuple

import numpy as np

from ppgen.data.labels import encode_labels
from ppgen.data.origin import Origin
from ppgen.data.splits import SplitKeys

__all__ = ["RawData", "from_array"]


class RawData(NamedTuple):
    """Rows of a source.

    Attributes:
        x: the data (n, *event_shape) of any real dtype, or a `ppgen.data.StreamedArray` of them.
        y: int64 labels (n,), or None.
        columns: the names of the columns of a table, or None.
        label_names: the names of the labels, indexed by y, or None.
        levels: the number of gray levels, see `ppgen.data.forms`; None if the data have no levels.
        origins: where the rows come from.
        keys: the group or time of each row, by which rows are split, or None.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    levels: int | None = None
    origins: tuple[Origin, ...] = ()
    keys: SplitKeys | None = None


def from_array(x: np.ndarray, y: np.ndarray | None = None, *, name: str) -> RawData:
    """Data from arrays. Images of dtype uint8 have 256 levels, boolean images 2.

    Args:
        x: a table (n, features), gray images (n, height, width) or images (n, channels, height, width).
        y: labels (n,), or None.
        name: the source, for errors.

    Raises:
        ValueError: for another number of dimensions, channels in the last dimension, or labels that do not match x.
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
            raise ValueError(f"{name}: expected one label per row, shape {x.shape[:1]}, got labels of shape {y.shape}")
        y, label_names = encode_labels(y, name=f"{name}, labels")
    return RawData(x, y, None, label_names, levels)
