"""Data of many kinds as tensors, the validation split, and mini-batches that depend on the seed and the epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ppgen.data.checks import check
from ppgen.infer.distributed import Ranks, shares
from ppgen.training.conversion import as_array, as_tensor, cast_like, check_order_of_rows, collate
from ppgen.utils.user_warnings import warn_user

__all__ = ["Batches", "as_tensors", "hold_out"]


def as_tensors(
    data: Any, *, dtype: torch.dtype | None = None, name: str = "data", allow_nan: bool = False
) -> tuple[Tensor, ...]:
    """Converts data to a tuple of tensors with rows first, which are the positional arguments of the programs.

    Args:
        data: a tensor, a NumPy array, perhaps masked, a pandas frame or series, a tuple or list of those, or a torch
            Dataset, whose items are collated and held in memory.
        dtype: the type of floating data; torch's default if left out. Integers stay integers.
        name: what error messages call the data.
        allow_nan: whether NaN, a missing value, is allowed; see `ppgen.training.missing.check_missing`.

    Raises:
        TypeError: for data of another kind or columns that are not numeric.
        ValueError: for NaN, masked or infinite values (with counts, rows and columns), values beyond the range of the
            type, no rows, or arrays of different lengths.
    """
    dtype = dtype or torch.get_default_dtype()
    if isinstance(data, Dataset):
        data = collate(data, name)
    parts = tuple(data) if isinstance(data, tuple | list) else (data,)
    if not parts:
        raise ValueError(f"{name}: expected at least one array, got an empty tuple")
    check_order_of_rows(parts, name)
    tensors = []
    for i, part in enumerate(parts):
        label = name if len(parts) == 1 else f"{name}[{i}]"
        array, columns = as_array(part, label)
        check(array, name=label, columns=columns, allow_nan=allow_nan)
        tensors.append(as_tensor(array, dtype, label, columns))
    sizes = [len(t) for t in tensors]
    if len(set(sizes)) > 1:
        raise ValueError(f"{name}: its arrays have {', '.join(map(str, sizes))} rows; they must have the same number")
    return tuple(tensors)


def hold_out(
    data: Any, validation: Any, *, seed: int = 0, dtype: torch.dtype | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """Splits data into training and validation tensors, in which missing values are NaN.

    Args:
        data: the data, see `as_tensors`, or None for programs without data.
        validation: the fraction of the rows to hold out, the held-out data themselves, or None.
        seed: the seed of a random split.
        dtype: the type of floating data; see `as_tensors`.

    Returns:
        The training tensors, and the validation tensors or None.

    Raises:
        TypeError: see `as_tensors`.
        ValueError: see `as_tensors`; and if either part would be empty.
    """
    tensors = () if data is None else as_tensors(data, dtype=dtype, allow_nan=True)
    if validation is None:
        return tensors, None
    if not tensors:
        raise ValueError("validation: programs without data have no rows to hold out")
    if not isinstance(validation, int | float):
        held_out = as_tensors(validation, dtype=dtype, name="validation", allow_nan=True)
        return tensors, _as_in_training(held_out, tensors)
    rows, held = len(tensors[0]), round(validation * len(tensors[0]))
    if not 0 < held < rows:
        raise ValueError(
            f"validation={validation} of {rows} rows leaves {rows - held} for training and {held} for validation; give "
            "data, or a fraction between 0 and 1"
        )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).to(tensors[0].device)
    return tuple(t[order[held:]] for t in tensors), tuple(t[order[:held]] for t in tensors)


def _as_in_training(held_out: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Validation data, after checking them against the training data; integers become floats where those are."""
    if len(held_out) != len(tensors):
        raise ValueError(f"validation: expected {len(tensors)} arrays, as in the data, got {len(held_out)}")
    converted = []
    for i, (part, like) in enumerate(zip(held_out, tensors, strict=True)):
        label = "validation" if len(tensors) == 1 else f"validation[{i}]"
        if part.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"{label}: expected rows of shape {tuple(like.shape[1:])}, as in the data, got {tuple(part.shape[1:])}"
            )
        converted.append(cast_like(part, like, label))
    return tuple(converted)


class Batches:
    """Mini-batches of tensors with aligned rows, shuffled in each epoch by a generator seeded with (seed, epoch).

    Without a batch size the whole data set is one batch, in its own order; programs without data have one empty batch.
    A last batch of a single row is left out of its epoch, since neither batch norm nor an unbiased metric is defined
    for one row; another row is left out in the next epoch.

    These are *global* batches. Several ranks make the same ones, and each takes its contiguous share of the rows.

    Args:
        tensors: the data, rows first.
        size: the number of rows of a batch, or None. A size beyond the number of rows is reduced, with a warning.
        seed: the seed of the shuffles.
        ranks: the ranks that share each batch; one if left out.

    Raises:
        ValueError: for a batch size below 1, or for one without data.
    """

    def __init__(
        self, tensors: tuple[Tensor, ...], *, size: int | None = None, seed: int = 0, ranks: Ranks | None = None
    ) -> None:
        self.tensors, self.seed, self.rows = tensors, seed, len(tensors[0]) if tensors else 1
        if size is not None and not tensors:
            raise ValueError(
                f"batch_size={size}: programs without data have no batches; set the particles of the ELBO instead"
            )
        if size is not None and size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {size}")
        if size is not None and size > self.rows:
            warn_user(f"batch_size {size} is more than the {self.rows} rows; it is reduced to {self.rows}")
            size = self.rows
        self.size = self.rows if size is None else size
        self.shuffled = size is not None
        self.ranks = Ranks(alone=True) if ranks is None else ranks
        self.drops_one = self.size > 1 and self.rows % self.size == 1
        if self.drops_one:
            warn_user(
                f"{self.rows} rows in batches of {self.size} leave a last batch of one row; each epoch leaves out one "
                "row, chosen at random"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil((self.rows - self.drops_one) / self.size)

    def global_rows(self, step: int) -> int:
        """The number of rows of a global batch.

        Args:
            step: the number of the batch, counted from 0 through all epochs.
        """
        return min(self.size, self.rows - self.drops_one - step % len(self) * self.size)

    def epoch(self, number: int, *, whole: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch, of each the share of this rank.

        Args:
            number: the number of the epoch, counted from 0.
            whole: whether to give global batches instead.
        """
        if not self.shuffled:
            share = self._share(self.rows, whole)
            yield self.tensors if share == slice(0, self.rows) else tuple(t[share] for t in self.tensors)
            return
        key = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]) >> 1)
        order = torch.randperm(self.rows, generator=generator).to(self.tensors[0].device)
        for start in range(0, self.rows - self.drops_one, self.size):
            rows = order[start : start + self.size]
            rows = rows[self._share(len(rows), whole)]
            yield tuple(t[rows] for t in self.tensors)

    def _share(self, rows: int, whole: bool) -> slice:
        """The rows of a global batch that this rank takes."""
        if whole or self.ranks.size == 1 or not self.tensors:
            return slice(0, rows)
        return slice(*shares(rows, self.ranks.size, single=self.size == self.ranks.size)[self.ranks.rank])
