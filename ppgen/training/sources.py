"""Where the rows of batches come from: tensors in memory, or arrays and data sets that are read batch by batch.

A `Source` gives the rows of a request as the arguments of the programs. It says how many rows there are, and which of
them are read together. Those on disk are read through torch's DataLoader, by this process or by workers, and each batch
is converted and checked when it is read.
"""

from __future__ import annotations

import random
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppgen.data.checks import FiniteCheck, check
from ppgen.data.streaming import Stream, StreamedArray
from ppgen.training.conversion import as_array, as_tensor, cast_like, read_items

__all__ = [
    "Conversion",
    "Failure",
    "InMemory",
    "OnDisk",
    "OnMissing",
    "Parts",
    "Read",
    "Request",
    "Source",
    "attempt",
    "dead_workers",
    "loader_options",
    "own_random",
    "running",
]

DIGESTED_ITEMS = 1000  # of a data set, whose items may be slow to make
Parts = tuple[Tensor, ...]
OnMissing = Callable[[Parts, np.ndarray], None]


class Request(NamedTuple):
    """The rows of a batch, and the numbers that seed random choices in reading them."""

    rows: Tensor
    key: tuple[int, ...]


class Read(NamedTuple):
    """A batch as it was read, converted and checked, and whether it has NaN."""

    tensors: Parts
    missing: bool


class Source(ABC):
    """The rows of data.

    Attributes:
        rows: the number of rows.
        empty: whether there are no data, for programs without.
        blocks: the positions of the rows that are read together, or None if any row can be read by itself.
        window: how many blocks are held in memory at the same time.
        subset: the numbers of the rows in the data, by position; None for all in their order.
        most_digested: how many rows are read for a digest at most.
    """

    rows: int
    empty: bool = False
    blocks: list[Tensor] | None = None
    window: int = 1
    subset: Tensor | None = None
    most_digested: int = sys.maxsize

    def numbers(self, positions: Tensor) -> Tensor:
        """The numbers of rows in the data.

        Args:
            positions: their positions, from 0 to `rows` - 1.
        """
        return positions if self.subset is None else self.subset[positions]

    @abstractmethod
    def read(self, requests: Iterable[Request]) -> Iterator[Parts]:
        """The batches of requests, in their order.

        Args:
            requests: the requests, perhaps read ahead of the batches.
        """

    @abstractmethod
    def read_now(self, request: Request) -> Parts:
        """One batch, read by this process.

        Args:
            request: the request.
        """

    @abstractmethod
    def all_rows(self, share: slice) -> Parts:
        """All rows in their order, or a contiguous share of them, as one batch.

        Args:
            share: the positions.
        """


class InMemory(Source):
    """Tensors, which are not copied.

    Args:
        tensors: the arguments of the programs, rows first; empty for programs without data.
        subset: the numbers of the rows that count; None for all.
    """

    def __init__(self, tensors: Parts, subset: Tensor | None = None) -> None:
        self.tensors, self.empty = tensors, not tensors
        self.subset = subset.to(tensors[0].device) if subset is not None else None
        self.rows = 1 if not tensors else len(tensors[0]) if subset is None else len(subset)
        self._whole: Parts | None = tensors if subset is None else None

    def numbers(self, positions: Tensor) -> Tensor:
        """The numbers of rows in the data, on their device."""
        return super().numbers(positions.to(self.tensors[0].device))

    def read(self, requests: Iterable[Request]) -> Iterator[Parts]:
        """The batches of requests."""
        return map(self.read_now, requests)

    def read_now(self, request: Request) -> Parts:
        """One batch."""
        return tuple(part[request.rows] for part in self.tensors)

    def all_rows(self, share: slice) -> Parts:
        """All rows, or a share of them; without a subset these are the tensors themselves."""
        if self._whole is None:
            self._whole = tuple(part[self.subset] for part in self.tensors)
        return self._whole if share == slice(0, self.rows) else tuple(part[share] for part in self._whole)


@dataclass
class Conversion:
    """The conversion of raw parts of a batch to tensors, with the checks of `as_tensors`.

    Args:
        dtype: the floating type.
        name: what errors call the data.
        like: a batch, empty of rows, of the types and shapes that all batches have; None before the first one.
        device: where batches go, or None.
    """

    dtype: torch.dtype
    name: str = "data"
    like: Parts | None = None
    device: torch.device | None = None

    def __call__(self, data: Any, rows: np.ndarray, *, warn: bool = False) -> Read:
        """Converts and checks a batch.

        Args:
            data: an array or a tensor, or a tuple of them.
            rows: the numbers of its rows, for errors.
            warn: whether to warn of what a cast loses.

        Raises:
            TypeError: see `as_tensors`.
            ValueError: see `as_tensors`; and for rows of other shapes or types than those before.
        """
        parts = tuple(data) if isinstance(data, tuple | list) else (data,)
        if self.like is not None and len(parts) != len(self.like):
            raise ValueError(f"{self.name}: row {rows[0]} has {len(parts)} parts, but the first rows {len(self.like)}")
        tensors, missing = [], False
        for i, part in enumerate(parts):
            label = self.name if len(parts) == 1 else f"{self.name}[{i}]"
            array, columns = as_array(part, label)
            check(array, name=label, columns=columns, finite=False)
            finite = FiniteCheck(label, columns, allow_nan=True, of=" of a batch")
            missing = finite.add(array, rows) or missing
            finite.finish()
            tensor = as_tensor(array, self.dtype, label, columns, warn=warn)
            if self.like is not None:
                tensor = self._like_first(tensor, self.like[i], label, rows)
            tensors.append(tensor)
        return Read(tuple(tensors), missing)

    def _like_first(self, tensor: Tensor, like: Tensor, label: str, rows: np.ndarray) -> Tensor:
        if tensor.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"{label}: expected rows of shape {tuple(like.shape[1:])}, as the first ones have, got "
                f"{tuple(tensor.shape[1:])} in the batch of row {rows[0]}"
            )
        return cast_like(tensor, like, f"{label}, the batch of row {rows[0]}")


@dataclass
class _Arrays:
    """Arrays, of which some are on disk."""

    parts: tuple[Any, ...]

    def __call__(self, rows: np.ndarray) -> tuple[Any, ...]:
        return tuple(part[torch.from_numpy(rows)] if isinstance(part, Tensor) else part[rows] for part in self.parts)


@dataclass
class _Items:
    """Items of a data set, whose random choices depend on the request alone."""

    data: Any

    def __call__(self, rows: np.ndarray) -> Any:
        return read_items(self.data, rows)


@dataclass
class Failure:
    """An error while a batch was read, which a worker hands over."""

    error: Exception
    text: str


def attempt(read: Callable[[], Any]) -> Any:
    """What a function returns, or the failure.

    Args:
        read: the function.
    """
    try:
        return read()
    except Exception as error:  # whatever a data set raises
        return Failure(error, traceback.format_exc())


@dataclass
class OnDisk(Source):
    """Arrays on disk or a map-style data set, whose rows are read batch by batch.

    Args:
        data: a data set, or a tuple of arrays.
        rows: the number of rows.
        convert: converts the raw parts of a batch.
        stream: how to read them.
        subset: the numbers of the rows that count; None for all.
        on_missing: called with a batch that has NaN, and the numbers of its rows.
    """

    data: Any
    rows: int
    convert: Conversion
    stream: Stream
    subset: Tensor | None = None
    on_missing: OnMissing | None = None
    empty: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        arrays = isinstance(self.data, tuple)
        self._raw: Callable[[np.ndarray], Any] = _Arrays(self.data) if arrays else _Items(self.data)
        self._random = not arrays
        self.most_digested = sys.maxsize if arrays else DIGESTED_ITEMS
        self.blocks, self.window = self._find_blocks()

    def read(self, requests: Iterable[Request]) -> Iterator[Parts]:
        """The batches of requests, read ahead by workers if there are some."""
        asked: list[Request] = []

        def remembered() -> Iterator[Request]:
            for request in requests:
                asked.append(request)
                yield request

        loader: DataLoader = DataLoader(
            self,  # type: ignore[arg-type]
            batch_sampler=remembered(),  # type: ignore[arg-type]
            **loader_options(self.stream, self.stream.workers, self.convert.device),
        )
        for read in running(loader):
            yield self._arrived(read, asked.pop(0))

    def read_now(self, request: Request) -> Parts:
        """One batch, read by this process."""
        return self._arrived(self._read(request), request)

    def first(self, request: Request) -> Parts:
        """A first batch, with warnings of what its conversion loses.

        Args:
            request: the request.
        """
        rows = request.rows.numpy()
        with own_random(request.key):
            return self.convert(self._raw(rows), rows, warn=True).tensors

    def all_rows(self, share: slice) -> Parts:
        """All rows, which are read at once."""
        rows = self.numbers(torch.arange(self.rows))[share]
        return self.read_now(Request(rows, (0, 0, 0)))

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, request: Request) -> Read | Failure:
        """What DataLoader calls, in a worker or here."""
        return attempt(lambda: self._read(request))

    def _read(self, request: Request) -> Read:
        rows = request.rows.numpy()
        if not len(rows):  # the share of a rank that has none
            assert self.convert.like is not None
            return Read(self.convert.like, False)
        if not self._random:
            return self.convert(self._raw(rows), rows)
        with own_random(request.key):
            return self.convert(self._raw(rows), rows)

    def _arrived(self, read: Read, request: Request) -> Parts:
        """A batch after the checks that need the programs, on its device."""
        if read.missing and self.on_missing is not None:
            self.on_missing(read.tensors, request.rows.numpy())
        if (device := self.convert.device) is None:
            return read.tensors
        return tuple(part.to(device, non_blocking=part.is_pinned()) for part in read.tensors)

    def _find_blocks(self) -> tuple[list[Tensor] | None, int]:
        """The positions of the rows of each block, in the order of the file, for the first part that has blocks."""
        for part in self.data if isinstance(self.data, tuple) else ():
            if not isinstance(part, StreamedArray):
                continue
            numbers = np.arange(self.rows) if self.subset is None else self.subset.numpy()
            if (ids := part.block_of(numbers)) is not None:
                order = np.lexsort((numbers, ids))
                ends = np.flatnonzero(np.diff(ids[order])) + 1
                return [torch.from_numpy(block) for block in np.split(order, ends)], part.window
        return None, 1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"on_missing": None, "subset": None, "blocks": None}  # which no worker needs


def loader_options(stream: Stream, workers: int, device: torch.device | None) -> dict[str, Any]:
    """The arguments of DataLoader.

    Args:
        stream: how to read.
        workers: the number of workers.
        device: where batches go.
    """
    ahead = {"prefetch_factor": stream.prefetch, "worker_init_fn": _begin_worker} if workers else {}
    pinned = device is not None and device.type == "cuda"
    # without a generator of its own, a loader draws from the random stream of training
    own = {"generator": torch.Generator(), "collate_fn": _unchanged}
    return {"num_workers": workers, "pin_memory": pinned, **ahead, **own}


def running(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives. Its workers end with the iteration, and their errors are raised here.

    Args:
        loader: the loader.

    Raises:
        RuntimeError: if a worker died.
    """
    with dead_workers():
        batches = iter(loader)
        try:
            for read in batches:
                if isinstance(read, Failure):
                    if loader.num_workers:
                        read.error.add_note(f"(in a worker; its traceback is)\n{read.text}")
                    raise read.error
                yield read
        finally:
            del batches  # whose end is the end of the workers


@contextmanager
def dead_workers() -> Iterator[None]:
    """Explains the errors that torch raises, at any place, when a worker has died."""
    reason = ""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
    if reason:  # outside of the handler, whose error holds the workers that are left
        raise RuntimeError(
            f"a worker that reads the data died: {reason}. The system ends processes when memory is short: give fewer "
            "workers, ppgen.data.Stream(data, workers=1), or none, so that errors are seen in this process"
        )


@contextmanager
def own_random(key: tuple[int, ...]) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python inside ``with`` depend on a key alone; the streams outside go on after.

    Args:
        key: numbers of at least 0.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    seeds = np.random.SeedSequence(list(key)).generate_state(3, np.uint32).tolist()
    torch.random.default_generator.manual_seed(seeds[0])
    np.random.seed(seeds[1])  # noqa: NPY002
    random.seed(seeds[2])
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def _begin_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the training loop ends its workers


def _unchanged(batch: Any) -> Any:
    return batch
