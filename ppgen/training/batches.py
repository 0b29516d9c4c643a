"""Data of many kinds as batches of tensors, drawn from (seed, epoch) so that a run can be repeated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ppgen.data.checks import check

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Batches", "as_tensors"]


def as_tensors(data: Any, *, dtype: torch.dtype | None = None, name: str = "data") -> tuple[Tensor, ...]:
    """Data as a tuple of tensors with rows first: the positional arguments of the programs.

    Args:
        data: a tensor, NumPy array, pandas frame or series, a tuple or list of those, or a torch Dataset, whose items
            are collated (it is held in memory).
        dtype: of floating data; torch's default if left out. Integers stay integers.

    Raises:
        TypeError, ValueError: for another kind, for NaN or infinite values (with counts, rows and columns), no rows,
            or parts of different length.
    """
    import pandas as pd

    dtype = dtype or torch.get_default_dtype()
    if isinstance(data, Dataset):
        if not hasattr(data, "__len__") or len(data) == 0:
            raise ValueError(f"{name}: expected a Dataset with a length of at least 1, got {type(data).__name__}")
        data = default_collate([data[i] for i in range(len(data))])
    parts = tuple(data) if isinstance(data, tuple | list) else (data,)
    if not parts:
        raise ValueError(f"{name}: expected at least one array, got an empty tuple")
    tensors = []
    for i, part in enumerate(parts):
        label = name if len(parts) == 1 else f"{name}[{i}]"
        columns = [str(c) for c in part.columns] if isinstance(part, pd.DataFrame) else None
        if isinstance(part, pd.DataFrame | pd.Series):
            part = _from_pandas(part, label)
        check(part, name=label, columns=columns)
        if isinstance(part, np.ndarray):
            # torch takes no foreign byte order and no reversed array, and warns of a read-only one
            part = np.require(part, part.dtype.newbyteorder("="), ["C", "W"])
        tensor = torch.as_tensor(part)
        if tensor.is_floating_point() and tensor.dtype != dtype:
            if tensor.dtype == torch.float64:
                warnings.warn(f"{label}: float64 cast to {dtype}, the programs' own type", stacklevel=3)
            tensor = tensor.to(dtype)
        tensors.append(tensor)
    sizes = [len(t) for t in tensors]
    if len(set(sizes)) > 1:
        raise ValueError(f"{name}: its parts have {', '.join(map(str, sizes))} rows; they must have equally many")
    return tuple(tensors)


def _from_pandas(part: pd.DataFrame | pd.Series, label: str) -> np.ndarray:
    import pandas as pd

    frame = part.to_frame() if isinstance(part, pd.Series) else part
    words = [str(c) for c, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if words:
        raise TypeError(f"{label}: columns {', '.join(map(repr, words))} are not numeric; encode or drop them")
    values = part.to_numpy()
    # columns of booleans among numbers, or with pandas' own missing values, come as objects
    return part.to_numpy(dtype=float, na_value=np.nan) if values.dtype == object else values


class Batches:
    """Mini-batches of row-aligned tensors, shuffled anew each epoch by a generator of (seed, epoch).

    Without a batch size the whole data set is the one batch, in its own order; of no tensors there is one, empty. A
    remainder of a single row is left out of its epoch, since neither batch norm nor an unbiased metric can do with one
    row; the next shuffle brings it back.

    Raises:
        ValueError: for a batch size below 1, or of no tensors. One beyond the number of rows is clamped, with a
            warning.
    """

    def __init__(self, tensors: tuple[Tensor, ...], *, size: int | None = None, seed: int = 0):
        self.tensors, self.seed, self.rows = tensors, seed, len(tensors[0]) if tensors else 1
        if size is not None and not tensors:
            raise ValueError(
                f"batch_size={size}: programs without data have no batches; an ELBO's particles are theirs"
            )
        if size is not None and size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {size}")
        if size is not None and size > self.rows:
            warnings.warn(f"batch_size {size} is more than the {self.rows} rows; it is now {self.rows}", stacklevel=3)
            size = self.rows
        self.size = self.rows if size is None else size
        self.shuffled = size is not None
        last = self.rows % self.size
        self.drops_one = last == 1 and self.size > 1
        if self.drops_one:
            warnings.warn(
                f"{self.rows} rows in batches of {self.size} leave a last batch of one row; each epoch leaves out one "
                "row, another every time",
                stacklevel=3,
            )

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil((self.rows - self.drops_one) / self.size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch."""
        if not self.shuffled:
            yield self.tensors
            return
        key = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]) >> 1)
        order = torch.randperm(self.rows, generator=generator).to(self.tensors[0].device)
        for start in range(0, self.rows - self.drops_one, self.size):
            rows = order[start : start + self.size]
            yield tuple(t[rows] for t in self.tensors)
