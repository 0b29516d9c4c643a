"""Mini-batches that depend on the seed and the number of the epoch alone, of data in memory or on disk."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from ppgen.data.digest import RowDigest
from ppgen.infer.distributed import Ranks, shares
from ppgen.training.sources import InMemory, Parts, Request, Source
from ppgen.utils.user_warnings import warn_user

__all__ = ["Batches"]

DIGESTED_ROWS = 10_000  # rows whose bytes are digested at a time
# of data on disk, a digest takes this many runs of consecutive rows, which are in few row groups of a file
RUNS = 8
DIGESTED_BYTES = 2**25  # that the runs have together


class Batches:
    """Mini-batches of tensors with aligned rows, shuffled in each epoch by a generator seeded with (seed, epoch).

    Without a batch size the whole data set is one batch, in its own order; programs without data have one empty batch.
    A last batch of a single row is left out of its epoch, since neither batch norm nor an unbiased metric is defined
    for one row; another row is left out in the next epoch. Batches in the order of the data have all rows: there such a
    row joins the batch before it. Data in blocks, such as a Parquet file's row groups, are shuffled by blocks, and rows
    among as many blocks as the source holds in memory.

    These are *global* batches. Several ranks make the same ones, and each takes its contiguous share of the rows.

    Args:
        source: the data, or tensors with rows first.
        size: the number of rows of a batch, or None. A size beyond the number of rows is reduced, with a warning.
        seed: the seed of the shuffles.
        ranks: the ranks that share each batch; one if left out.
        shuffle: whether to shuffle, if there is a batch size.

    Raises:
        ValueError: for a batch size below 1, or for one without data.
    """

    def __init__(
        self,
        source: Source | Parts,
        *,
        size: int | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
        shuffle: bool = True,
    ) -> None:
        self.source: Source = InMemory(source) if isinstance(source, tuple) else source
        self.seed, self.rows = seed, self.source.rows
        if size is not None and self.source.empty:
            raise ValueError(
                f"batch_size={size}: programs without data have no batches; set the particles of the ELBO instead"
            )
        if size is not None and size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {size}")
        if size is not None and size > self.rows:
            if shuffle:
                warn_user(f"batch_size {size} is more than the {self.rows} rows; it is reduced to {self.rows}")
            size = self.rows
        self.size = self.rows if size is None else size
        self.shuffled = shuffle and size is not None
        self.ranks = Ranks(alone=True) if ranks is None else ranks
        single = self.size > 1 and self.rows % self.size == 1
        self.drops_one, self.joins_one = single and self.shuffled, single and not self.shuffled
        if self.drops_one:
            warn_user(
                f"{self.rows} rows in batches of {self.size} leave a last batch of one row; each epoch leaves out one "
                "row, chosen at random"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil((self.rows - self.drops_one - self.joins_one) / self.size)

    @property
    def known_length(self) -> int:
        """The number of batches in an epoch."""
        return len(self)

    @property
    def position(self) -> None:
        """What a checkpoint has to hold besides the number of steps to continue from there: nothing."""
        return None

    def global_rows(self, step: int) -> int:
        """The number of rows of a global batch.

        Args:
            step: the number of the batch, counted from 0 through all epochs.
        """
        start, stop = self._bounds(step % len(self))
        return stop - start

    def epoch(self, number: int, *, whole: bool = False) -> Iterator[Parts]:
        """The batches of one epoch, of each the share of this rank.

        Args:
            number: the number of the epoch, counted from 0.
            whole: whether to give global batches instead.
        """
        if self.size == self.rows and not self.shuffled:
            yield self.source.all_rows(self._share(self.rows, whole))
        else:
            yield from self.source.read(self._requests(number, whole))

    def steps(self, taken: int, total: int, position: object = None) -> Generator[tuple[int, Parts], None, None]:
        """Epoch and batch of each step that is left. Batches of the steps before are not read.

        Args:
            taken: the number of steps that were taken.
            total: the number of steps.
            position: see `position`.
        """
        first, within = divmod(taken, len(self))
        if self.size == self.rows and not self.shuffled:
            batches: Iterator[Parts] = (batch for epoch in count(first) for batch in self.epoch(epoch))
        else:  # one stream of requests, so that workers read ahead into the next epoch
            requests = (request for epoch in count(first) for request in self._requests(epoch, False))
            batches = self.source.read(islice(requests, within, within + total - taken))
        for step, batch in zip(range(taken, total), batches, strict=False):
            yield step // len(self), batch

    def first(self, *, whole: bool = False) -> Parts:
        """The first batch of the first epoch, read by this process.

        Args:
            whole: whether to give the global batch.
        """
        if self.size == self.rows and not self.shuffled:
            return next(self.epoch(0, whole=whole))
        return self.source.read_now(next(self._requests(0, whole)))

    def sample(self, rows: int) -> Parts:
        """About so many rows at regular distances, by which data are recognized.

        Args:
            rows: the number of rows.
        """
        if self.source.empty:
            return ()
        numbers = torch.arange(0, self.rows, max(1, self.rows // rows))[:rows]
        return self.source.read_now(Request(self.source.numbers(numbers), (0, 0, 0)))

    def digest(self) -> str | None:
        """The digest of all rows in their order, or of those rows of large data on disk that are quick to read."""
        if self.source.empty:
            return None
        digest = RowDigest()
        for rows in self._digested_rows().split(DIGESTED_ROWS):
            digest.add(*self.source.read_now(Request(self.source.numbers(rows), (0, 0, 0))))
        return digest.hexdigest()

    def _digested_rows(self) -> Tensor:
        """The positions of the rows of the digest."""
        rows = torch.arange(self.rows)
        if isinstance(self.source, InMemory):
            return rows
        row_bytes = sum(part.nbytes for part in self.sample(1))
        length = max(1, min(self.source.most_digested, DIGESTED_BYTES // row_bytes) // RUNS)
        if RUNS * length >= self.rows:
            return rows
        starts = torch.arange(RUNS) * (self.rows - length) // (RUNS - 1)  # with the first and the last row
        in_file_order = self.source.numbers(rows).argsort()
        return in_file_order[(starts[:, None] + torch.arange(length)).flatten()]

    def describe(self, *, device: bool = True) -> list[str]:
        """Type and shape of each part of the data.

        Args:
            device: whether to name the device too.
        """
        if self.source.empty:
            return []
        parts = self.source.read_now(Request(self.source.numbers(torch.arange(1)), (0, 0, 0)))
        on = [f" on {part.device.type}" if device else "" for part in parts]
        return [f"{p.dtype} {(self.rows, *p.shape[1:])}{where}" for p, where in zip(parts, on, strict=True)]

    def _requests(self, number: int, whole: bool) -> Iterator[Request]:
        """The rows of each batch of an epoch."""
        order = self.source.numbers(self._order(number))
        for i in range(len(self)):
            start, stop = self._bounds(i)
            yield Request(order[start:stop][self._share(stop - start, whole)], (self.seed, number, start))

    def _order(self, number: int) -> Tensor:
        """The positions of all rows in the order of an epoch."""
        if not self.shuffled:
            return torch.arange(self.rows) if self.source.blocks is None else torch.cat(self.source.blocks)
        key = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]) >> 1)
        if self.source.blocks is None:
            return torch.randperm(self.rows, generator=generator)
        parts, blocks, window = [], self.source.blocks, self.source.window
        order = torch.randperm(len(blocks), generator=generator).tolist()
        for start in range(0, len(blocks), window):
            rows = torch.cat([blocks[b] for b in order[start : start + window]])
            parts.append(rows[torch.randperm(len(rows), generator=generator)])
        return torch.cat(parts)

    def _bounds(self, i: int) -> tuple[int, int]:
        """Where a batch begins and ends in the order of its epoch."""
        last = self.rows - self.drops_one
        stop = (i + 1) * self.size
        return i * self.size, last if stop + self.joins_one >= last else stop

    def _share(self, rows: int, whole: bool) -> slice:
        """The rows of a global batch that this rank takes."""
        if whole or self.ranks.size == 1 or self.source.empty:
            return slice(0, rows)
        single = self.shuffled and self.size == self.ranks.size
        return slice(*shares(rows, self.ranks.size, single=single)[self.ranks.rank])
