"""`IterableBatches`: batches of a data set that can only be read from its beginning, such as a stream of records."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, default_collate

from ppgen.data.digest import digest_of_rows
from ppgen.data.streaming import Stream
from ppgen.infer.distributed import Ranks, shares
from ppgen.training.conversion import is_hugging_face
from ppgen.training.sources import (
    Conversion,
    Failure,
    OnMissing,
    Parts,
    Read,
    attempt,
    loader_options,
    own_random,
    running,
)
from ppgen.utils.user_warnings import warn_user

__all__ = ["IterableBatches", "is_iterable"]

COUNTED = 1_000_000  # items, after which a warning says that they are being counted


class _Arrival(NamedTuple):
    """A batch, its epoch, the number of its first item, and the position after it as JSON, or None."""

    read: Read
    epoch: int
    start: int
    position: str | None


class IterableBatches:
    """Batches of an iterable data set, which is read from its beginning in each epoch; see `ppgen.training.batches`.

    Its number of rows is not known. Rows come in the order of the data set, or are drawn from a buffer that is kept
    full, by a generator seeded with (seed, epoch). Several ranks read the same batches and take their shares. A data
    set with a method ``set_epoch`` is told the epoch. One with ``state_dict`` and ``load_state_dict`` continues where
    it was; others are read again up to there.

    Args:
        stream: the data set, and how to read it.
        convert: converts the raw parts of a batch.
        size: the number of rows of a batch.
        seed: the seed of the buffer.
        ranks: the ranks that share each batch; one if left out.
        held_out: whether these are validation data: in their order, and a last batch of one row joins the one before
            instead of being left out.
        on_missing: called with a batch that has NaN, and the numbers of its rows.
    """

    def __init__(
        self,
        stream: Stream,
        convert: Conversion,
        *,
        size: int,
        seed: int = 0,
        ranks: Ranks | None = None,
        held_out: bool = False,
        on_missing: OnMissing | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {size}")
        self.stream, self.convert, self.size, self.seed = stream, convert, size, seed
        self.ranks = Ranks(alone=True) if ranks is None else ranks
        self.buffer = 0 if held_out else stream.buffer
        self.held_out, self.on_missing = held_out, on_missing
        self.shuffled = not held_out
        self.data = stream.data
        if is_hugging_face(self.data) and getattr(self.data, "_formatting", None) is None:
            self.data = self.data.with_format("numpy")
        self.rows: int | None = None
        self.position: dict[str, Any] | None = None
        self._whole = size
        self._first: Parts | None = None

    def __len__(self) -> int:
        """The number of batches in an epoch, for which the data set may have to be read once."""
        if self.rows is None:
            try:
                self.rows = len(self.data)
            except TypeError:
                self.rows = self._count()
        single = self.size > 1 and self.rows % self.size == 1
        return max(1, math.ceil((self.rows - single) / self.size))

    @property
    def known_length(self) -> int:
        """The number of batches in an epoch if that was counted, else 0."""
        return 0 if self.rows is None else len(self)

    def global_rows(self, step: int) -> int:
        """The number of rows of the global batch that was given last.

        Args:
            step: its number.
        """
        return self._whole

    def epoch(self, number: int, *, whole: bool = False) -> Iterator[Parts]:
        """The batches of one epoch, of each the share of this rank.

        Args:
            number: the number of the epoch, counted from 0.
            whole: whether to give global batches instead.
        """
        for arrival in self._arrivals(number, number + 1):
            yield self._arrived(arrival, whole)

    def steps(self, taken: int, total: int, position: Any = None) -> Generator[tuple[int, Parts], None, None]:
        """Epoch and batch of each step that is left.

        Args:
            taken: the number of steps that were taken.
            total: the number of steps.
            position: what `position` was after them, or None to read the steps that were taken again.
        """
        first, skipped = (0, taken) if position is None else (position["epoch"], 0)
        arrivals = self._arrivals(first, None, skipped, position)
        for _, arrival in zip(range(total - taken), arrivals, strict=False):
            batch = self._arrived(arrival, False)
            self.position = None if arrival.position is None else json.loads(arrival.position)
            yield arrival.epoch, batch

    def first(self, *, whole: bool = False) -> Parts:
        """The first batch, read by this process.

        Args:
            whole: whether to give the global batch.
        """
        if self._first is None:
            arrival = next(iter(_Reader(self, 0, 1, 0, None)))
            self._first = self._arrived(arrival, True)
        return self._first if whole else self._share(self._first)

    def raw_first(self) -> tuple[list[Any], int]:
        """The items of the first batch before their conversion, and the number of the first one."""
        with own_random((self.seed, 0, 0)):
            for start, items in self.grouped(0, 0):
                return items, start
        raise self.no_rows(0)

    def convert_items(self, items: list[Any], start: int, *, warn: bool = False) -> Read:
        """Converts the items of a batch.

        Args:
            items: the items.
            start: the number of the first one.
            warn: whether to warn of what a cast loses.
        """
        return self.convert(default_collate(items), np.arange(start, start + len(items)), warn=warn)

    def sample(self, rows: int) -> Parts:
        """The first rows, by which data are recognized.

        Args:
            rows: the number of rows.
        """
        return tuple(part[:rows] for part in self.first(whole=True))

    def digest(self) -> str:
        """The digest of the first batch; the rest is read once in each epoch."""
        return digest_of_rows(*self.first(whole=True))

    def describe(self, *, device: bool = True) -> list[str]:
        """Type and shape of each part of the data.

        Args:
            device: whether to name the device too.
        """
        how = f"{type(self.stream.data).__name__} of unknown length, buffer {self.buffer}"
        parts = self.first(whole=True)
        on = [f" on {part.device.type}" if device else "" for part in parts]
        return [f"{p.dtype} rows of {tuple(p.shape[1:])}{where}, {how}" for p, where in zip(parts, on, strict=True)]

    def _arrivals(self, first: int, end: int | None, skipped: int = 0, position: Any = None) -> Iterator[_Arrival]:
        reader = _Reader(self, first, end, skipped, position)
        workers = min(1, self.stream.workers)  # each worker would read the whole data set
        options = loader_options(self.stream, workers, self.convert.device)
        return running(DataLoader(reader, batch_size=None, **options))

    def _arrived(self, arrival: _Arrival | Failure, whole: bool) -> Parts:
        if isinstance(arrival, Failure):
            raise arrival.error
        tensors, missing = arrival.read
        self._whole = len(tensors[0])
        if missing and self.on_missing is not None:
            self.on_missing(tensors, np.arange(arrival.start, arrival.start + self._whole))
        device = self.convert.device
        tensors = tensors if whole else self._share(tensors)
        return tensors if device is None else tuple(part.to(device, non_blocking=part.is_pinned()) for part in tensors)

    def _share(self, tensors: Parts) -> Parts:
        """The rows of a global batch that this rank takes."""
        if self.ranks.size == 1:
            return tensors
        single = self.shuffled and self.size == self.ranks.size
        share = slice(*shares(len(tensors[0]), self.ranks.size, single=single)[self.ranks.rank])
        return tuple(part[share] for part in tensors)

    def _count(self) -> int:
        """The number of items of the first epoch. Whether a data set ends is not known before it does."""
        rows = 0
        with own_random((self.seed, 0, 0)):
            for rows, _ in enumerate(self._items(0), start=1):
                if rows == COUNTED:
                    kind = type(self.stream.data).__name__
                    warn_user(
                        f"fit: epochs= counts the items of {kind} first, {rows:,} so far: if it has no end, or to "
                        "count none, stop the run and give steps="
                    )
        return rows

    def _items(self, epoch: int) -> Iterator[Any]:
        """The items of an epoch in the order of the data set."""
        if callable(set_epoch := getattr(self.data, "set_epoch", None)):
            set_epoch(epoch)
        if is_hugging_face(self.data):
            return (tuple(item.values()) for item in self.data)
        return iter(self.data)

    def grouped(self, epoch: int, start: int) -> Iterator[tuple[int, list[Any]]]:
        """The items of each batch, with the number of the first one.

        Args:
            epoch: the number of the epoch.
            start: the number of the first item.
        """
        group: list[Any] = []
        previous: tuple[int, list[Any]] | None = None  # held back for one row that may follow
        for item in self._shuffled(self._items(epoch), epoch):
            group.append(item)
            if len(group) < self.size:
                continue
            if previous is not None:
                yield previous
                previous = None
            if self.held_out:
                previous = start, group
            else:
                yield start, group
            start, group = start + len(group), []
        if previous is not None:
            if len(group) == 1:
                previous[1].extend(group)
                group = []
            yield previous
        if len(group) > 1 or (group and (self.size == 1 or self.held_out)):
            yield start, group

    def _shuffled(self, items: Iterator[Any], epoch: int) -> Iterator[Any]:
        """Items drawn from a buffer that is kept full."""
        if not self.buffer:
            yield from items
            return
        rng = np.random.default_rng([self.seed, epoch])
        buffer: list[Any] = []
        for item in items:
            if len(buffer) < self.buffer:
                buffer.append(item)
                continue
            chosen = int(rng.integers(len(buffer)))
            yield buffer[chosen]
            buffer[chosen] = item
        yield from (buffer[i] for i in rng.permutation(len(buffer)))

    def no_rows(self, epoch: int) -> ValueError:
        """The error of a data set that is empty, or cannot be iterated again.

        Args:
            epoch: the number of the epoch.
        """
        return ValueError(
            f"{self.convert.name}: {type(self.stream.data).__name__} gave no rows in epoch {epoch}; an iterable data "
            "set has to begin again each time that it is iterated"
        )


class _Reader(IterableDataset):
    """Reads epochs one after the other, in a worker or here."""

    def __init__(self, batches: IterableBatches, first: int, end: int | None, skipped: int, position: Any) -> None:
        self.batches, self.first, self.end, self.skipped, self.position = batches, first, end, skipped, position

    def __iter__(self) -> Iterator[_Arrival | Failure]:
        batches, data, skipped = self.batches, self.batches.data, self.skipped
        stateful = all(callable(getattr(data, name, None)) for name in ("state_dict", "load_state_dict"))
        for epoch in count(self.first) if self.end is None else range(self.first, self.end):
            start = 0
            if self.position is not None and epoch == self.position["epoch"]:
                start = self.position["row"]
                data.load_state_dict(self.position["state"])
            end, groups = start, batches.grouped(epoch, start)
            while True:
                with own_random((batches.seed, epoch, end)):
                    found = attempt(partial(next, groups, None))
                    if found is None:
                        break
                    if not isinstance(found, Failure):
                        first, items = found
                        end = first + len(items)
                        if skipped:
                            skipped -= 1
                            continue
                        found = attempt(partial(batches.convert_items, items, first))
                if isinstance(found, Failure):
                    yield found
                    return
                state = _state(data, epoch, end) if stateful and not batches.buffer else None
                yield _Arrival(found, epoch, first, state)
            if not end:
                yield Failure(batches.no_rows(epoch), "")
                return


def is_iterable(data: Any) -> bool:
    """Whether data can only be read from their beginning.

    Args:
        data: the data.
    """
    return isinstance(data, IterableDataset) or (is_hugging_face(data) and not hasattr(data, "__len__"))


def _state(data: Any, epoch: int, row: int) -> str | None:
    """The position of a data set as JSON; None if its state is not plain."""
    try:
        return json.dumps({"epoch": epoch, "row": row, "state": data.state_dict()})
    except TypeError:
        return None
