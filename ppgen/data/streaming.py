"""`StreamedArray`: rows that stay in their file until they are asked for, and `Stream`: how `fit` reads such data.

An array x of shape (n, *event_shape) is a function from row numbers to rows. A split of it reads x[rows[i]] in the
place of row i, and a conversion reads f(x[i], i), so that a chain of both holds nothing but the chain itself.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["STREAMABLE", "TO_STREAM", "RowNoise", "Stream", "StreamedArray"]

# what to do with data that are larger than memory
STREAMABLE = "stream=True (on the command line, --data.stream true) leaves its rows on disk"
TO_STREAM = f"written as .npy or Parquet, {STREAMABLE}"


class StreamedArray(ABC):
    """An array (n, *event_shape) on disk. Indexing it by a number, a slice or an array of numbers reads those rows.

    Attributes:
        shape: the shape of the array.
        dtype: its type.
        window: how many blocks (see `block_of`) are held in memory at the same time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    window: int = 1

    @abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, in their order.

        Args:
            rows: row numbers (m,) from 0 to n - 1.
        """

    def block_of(self, rows: np.ndarray) -> np.ndarray | None:
        """The numbers (m,) of the blocks that rows are in, which can be read only as a whole; None without blocks.

        Args:
            rows: row numbers (m,).
        """
        return None

    def select(self, rows: np.ndarray) -> StreamedArray:
        """The array x[rows], of which nothing is read yet.

        Args:
            rows: row numbers (m,).
        """
        return _Selected(self, np.asarray(rows))

    def map(self, convert: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> StreamedArray:
        """The array of converted rows, of which only the first one is read yet.

        Args:
            convert: maps rows (m, *event_shape) and their numbers (m,) to rows.
        """
        return _Mapped(self, convert)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):
            return self[index[0]][(slice(None), *index[1:])]
        if isinstance(index, slice):
            return self.read(np.arange(*index.indices(len(self))))
        if np.ndim(index) == 0:
            return self[np.array([operator.index(index)])][0]
        rows = np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"expected row numbers below {len(self)}, got {rows.min()} to {rows.max()}")
        return self.read(np.where(rows < 0, rows + len(self), rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class _Selected(StreamedArray):
    """x[rows]."""

    def __init__(self, parent: StreamedArray, rows: np.ndarray) -> None:
        self.parent, self.rows = parent, rows
        self.shape, self.dtype, self.window = (len(rows), *parent.shape[1:]), parent.dtype, parent.window

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.parent.read(self.rows[rows])

    def block_of(self, rows: np.ndarray) -> np.ndarray | None:
        return self.parent.block_of(self.rows[rows])


class _Mapped(StreamedArray):
    """f(x[i], i)."""

    def __init__(self, parent: StreamedArray, convert: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.parent, self.convert, self.window = parent, convert, parent.window
        first = self.read(np.arange(1))
        self.shape, self.dtype = (len(parent), *first.shape[1:]), first.dtype

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.convert(self.parent.read(rows), rows)

    def block_of(self, rows: np.ndarray) -> np.ndarray | None:
        return self.parent.block_of(rows)


class RowNoise:
    """Uniform random numbers of any rows of an array: those that one call of NumPy gives for the whole array.

    PCG64 can be advanced to any position, and gives two numbers of 32 bits for each of its own 64.

    Args:
        generator: the generator, which has drawn nothing yet.
        rows: row numbers (m,).
    """

    def __init__(self, generator: np.random.Generator, rows: np.ndarray) -> None:
        assert isinstance(generator.bit_generator, np.random.PCG64)
        self._state, self._rows = generator.bit_generator.state, rows

    def random(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Numbers in [0, 1), float32.

        Args:
            shape: (m, *event_shape).
            dtype: float32.
        """
        assert dtype == np.float32
        noise, size = np.empty(shape, np.float32), math.prod(shape[1:])
        bits = np.random.PCG64(0)
        generator = np.random.Generator(bits)
        starts = np.flatnonzero(np.diff(self._rows, prepend=-2) != 1)  # of runs of consecutive rows
        for start, stop in pairwise([*starts, len(self._rows)]):
            position = int(self._rows[start]) * size
            bits.state = self._state
            bits.advance(position // 2)
            if position % 2:
                generator.random(dtype=np.float32)
            generator.random(out=noise[start:stop], dtype=np.float32)
        return noise


@dataclass(frozen=True)
class Stream:
    """Data that `ppgen.fit` reads batch by batch, with how to read them.

    Data that are in memory or memory-mapped, and data sets, need no `Stream`: `fit` takes them as they are.

    Args:
        data: what `fit` takes: a torch Dataset, a Hugging Face data set, arrays or a tuple of them.
        workers: the number of processes that read and convert batches; 0 for none. Results do not depend on it. Data
            without row numbers (iterable data sets) are read by at most one.
        prefetch: how many batches each worker reads ahead.
        buffer: for iterable data sets, the number of items from which the next one is drawn at random; 0 keeps their
            order. Data with row numbers are shuffled without it.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> import torch
        >>> import ppgen
        >>> items = torch.utils.data.TensorDataset(torch.randn(20, 3))
        >>> stream = ppgen.data.Stream(items, workers=0)
        >>> vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
        >>> fit = ppgen.fit(vae.model, vae.guide, stream, steps=3, batch_size=10, compile=False, progress=False)
        >>> fit.history["loss"].shape
        (3,)
    """

    data: Any
    workers: int = 0
    prefetch: int = 2
    buffer: int = 0

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("prefetch", 1), ("buffer", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"Stream: {name} must be an integer of at least {least}, got {value!r}")
