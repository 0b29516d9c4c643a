"""The data of a run as batches for training and validation, checked by the model and a first run of the programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ppgen.data.streaming import Stream, StreamedArray
from ppgen.infer.distributed import Ranks
from ppgen.tracing.sites import Program
from ppgen.training.batches import Batches
from ppgen.training.conversion import as_tensors, cast_like, check_same_rows, is_hugging_face
from ppgen.training.first_run import after_first_run
from ppgen.training.held_out import FEW_ROWS, FROM_ROWS, default_share, hold_out, part_rows, rows_are_independent
from ppgen.training.iterables import IterableBatches, is_iterable
from ppgen.training.missing import check_missing
from ppgen.training.options import TrainingOptions
from ppgen.training.sources import Conversion, InMemory, OnDisk, Request

__all__ = ["AnyBatches", "Loading", "as_in_training"]

AnyBatches: TypeAlias = Batches | IterableBatches


@dataclass
class Loading:
    """How the data of a run become batches.

    Args:
        model: the model.
        guide: the guide.
        modules: the modules of both, of which the first may have a method ``check``.
        options: the options of the run.
        ranks: the processes that train together.
        size: the number of rows of a global batch, or None for all.

    Attributes:
        note: how many rows are held out by default, and otherwise why none are, in words; empty where it was not asked.
    """

    model: Program
    guide: Program
    modules: list[nn.Module]
    options: TrainingOptions
    ranks: Ranks
    size: int | None
    dtype: torch.dtype = field(init=False)
    note: str = field(default="", init=False)
    _independent: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        dtypes = [p.dtype for module in self.modules for p in module.parameters() if p.is_floating_point()]
        self.dtype = dtypes[0] if dtypes else torch.get_default_dtype()

    def __call__(self, data: Any) -> tuple[AnyBatches, AnyBatches | None]:
        """The batches for training, and those for validation or None.

        Args:
            data: the data, see `ppgen.fit`.

        Raises:
            TypeError: for data of another kind, or that are not numeric.
            ValueError: for data that are not finite, have no rows or do not fit together, and options that they do not
                allow.
        """
        stream = data if isinstance(data, Stream) else Stream(data)
        if is_iterable(stream.data):
            return self._iterable(stream)
        if self._is_read_by_batch(data):
            return self._on_disk(stream)
        return self._in_memory(stream.data)

    def _is_read_by_batch(self, data: Any) -> bool:
        if self.size is None:
            parts = data.data if isinstance(data, Stream) else data
            parts = parts if isinstance(parts, tuple | list) else (parts,)
            if isinstance(data, Stream) or any(isinstance(part, StreamedArray) for part in parts):
                raise ValueError(
                    "fit: data that are read batch by batch need batch_size=; to train on all rows in each step, read "
                    "them, x[:]"
                )
            return False
        if isinstance(data, Stream) or is_hugging_face(data):
            return True
        if isinstance(data, Dataset):
            return type(data) is not TensorDataset
        parts = data if isinstance(data, tuple | list) else (data,)
        return any(isinstance(part, StreamedArray | np.memmap) for part in parts)

    # Data in memory

    def _in_memory(self, data: Any) -> tuple[Batches, AnyBatches | None]:
        tensors = () if data is None else as_tensors(data, dtype=self.dtype, allow_nan=True)
        rows = len(tensors[0]) if tensors else 0
        validation, kept, held = self._given, None, None
        held_out: AnyBatches | None = None
        if validation is not None and not tensors:
            raise ValueError("validation: programs without data have no rows to hold out")
        check_missing(self.model, tensors, data, size=self.options.batch_size)
        if isinstance(validation, int | float):
            kept, held = hold_out(rows, validation, self.options.seed)
        self._check(tensors)
        tensors = self._first_run(tensors, self.options.batch_size)
        if validation is None:
            kept, held = self._hold_out_by_default(rows, tensors)
        tensors = self._move(tensors)
        if held is not None:
            part = self._part_rows(len(held), tensors)
            held_out = Batches(InMemory(tensors, held), size=part, ranks=self.ranks, shuffle=False)
        elif validation is not None:
            held_out = self._validation(validation, tensors)
        return Batches(InMemory(tensors, kept), size=self.size, seed=self.options.seed, ranks=self.ranks), held_out

    def _validation(self, data: Any, like: tuple[Tensor, ...]) -> AnyBatches:
        """Validation data that were given, of any kind."""
        stream = data if isinstance(data, Stream) else Stream(data)
        if is_iterable(stream.data) or (self.size is not None and self._is_read_by_batch(data)):
            convert = Conversion(self.dtype, "validation", tuple(part[:0].cpu() for part in like))
            convert.device = self._device
            missing = _MissingCheck(self.model, "validation")
            if is_iterable(stream.data):
                size, seed = self._batch_size(), self.options.seed
                kind = partial(IterableBatches, size=size, seed=seed, ranks=self.ranks, held_out=True)
                return kind(stream, convert, on_missing=missing)
            source = OnDisk(*arrays_and_rows(stream.data, self.dtype), convert, stream, on_missing=missing)
            return Batches(source, size=self.size, ranks=self.ranks, shuffle=False)
        held_out = as_in_training(as_tensors(data, dtype=self.dtype, name="validation", allow_nan=True), like)
        check_missing(self.model, held_out, data, name="validation", size=self.options.batch_size)
        self._check(held_out)
        few = all(part.is_floating_point() for part in held_out) and self._rows_are_independent(like)
        held_out = self._move(self._first_run(held_out, FEW_ROWS if few else self.options.batch_size))
        part = self._part_rows(len(held_out[0]), held_out) if held_out else None
        return Batches(InMemory(held_out), size=part, ranks=self.ranks, shuffle=False)

    # Data that are read batch by batch

    def _on_disk(self, stream: Stream) -> tuple[Batches, AnyBatches | None]:
        assert self.size is not None
        data, rows = arrays_and_rows(stream.data, self.dtype)
        validation, kept, held = self._given, None, None
        if isinstance(validation, int | float):
            kept, held = hold_out(rows, validation, self.options.seed)
        convert, missing = Conversion(self.dtype), _MissingCheck(self.model)
        source = OnDisk(data, rows if kept is None else len(kept), convert, stream, kept, missing)
        numbers = source.numbers(torch.arange(min(self.size, source.rows)))
        first = self._begin(convert, missing, source.first(Request(numbers, (0, 0, 0))), numbers.numpy())
        if validation is None:
            kept, held = self._hold_out_by_default(rows, first)
            source = source if kept is None else OnDisk(data, len(kept), convert, stream, kept, missing)
        held_out: AnyBatches | None = None
        if held is not None:
            held_source = OnDisk(data, len(held), convert, stream, held, missing)
            part = min(self._part_rows(len(held), first) or self.size, self.size)
            held_out = Batches(held_source, size=part, ranks=self.ranks, shuffle=False)
        elif validation is not None:
            assert convert.like is not None
            held_out = self._validation(validation, convert.like)
        return Batches(source, size=self.size, seed=self.options.seed, ranks=self.ranks), held_out

    def _iterable(self, stream: Stream) -> tuple[IterableBatches, AnyBatches | None]:
        options, kind = self.options, type(stream.data).__name__
        if isinstance(self._given, int | float):
            raise ValueError(
                f"fit: validation={options.validation} is a fraction of {kind}, an iterable data set, whose length is "
                "not known: give validation data"
            )
        convert, missing = Conversion(self.dtype), _MissingCheck(self.model)
        size, seed = self._batch_size(), options.seed
        batches = IterableBatches(stream, convert, size=size, seed=seed, ranks=self.ranks, on_missing=missing)
        items, start = batches.raw_first()
        first = batches.convert_items(items, start, warn=True).tensors
        self._begin(convert, missing, first, np.arange(start, start + len(items)))
        assert convert.like is not None
        validation = None if self._given is None else self._validation(self._given, convert.like)
        if validation is None and options.patience is not None and not options.converges:
            raise ValueError(
                f"fit: patience needs held-out data, and {kind} is an iterable data set: give validation data"
            )
        return batches, validation

    def _batch_size(self) -> int:
        if self.size is None:
            raise ValueError("fit: an iterable data set has no length, so that it is read in batches: give batch_size=")
        return self.size

    def _begin(
        self, convert: Conversion, missing: _MissingCheck, first: tuple[Tensor, ...], rows: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Checks a first batch, and fixes the types and shapes of all batches by it; returns it as programs take it."""
        missing(first, rows)
        self._check(first)
        first = self._first_run(first, self.options.batch_size)
        convert.like = tuple(part[:0] for part in first)
        convert.device = self._device
        return first

    # What is common

    @property
    def _given(self) -> Any:
        """The validation that was asked for; None to decide by default, which `validation=0` forbids."""
        return None if self.options.holds_nothing_out else self.options.validation

    def _hold_out_by_default(self, rows: int, batch: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
        """The rows for training and those held out, where validation was not given; both None for all rows.

        Raises:
            ValueError: if patience needs held-out rows, and there can be none.
        """
        options = self.options
        if options.score is not None or not (options.converges or options.patience is not None):
            return None, None
        if options.holds_nothing_out:
            self.note = "no rows are held out"
        elif rows < FROM_ROWS:
            self.note = f"nothing is held out of fewer than {FROM_ROWS} rows" if rows else ""
        elif not self._rows_are_independent(batch):
            self.note = "nothing is held out, since all rows count for the posterior"
        else:
            kept, held = hold_out(rows, default_share(rows), options.seed)
            self.note = f"{len(held)} of {rows} rows are held out"
            return kept, held
        if not options.converges:
            why = self.note or "programs without data have none"
            raise ValueError(f"fit: patience needs held-out data, and {why}: give validation=, or leave patience out")
        return None, None

    def _part_rows(self, rows: int, batch: tuple[Tensor, ...]) -> int | None:
        """The rows of the parts of held-out data; None for one part."""
        return part_rows(rows) if self._rows_are_independent(batch) else None

    def _rows_are_independent(self, batch: tuple[Tensor, ...]) -> bool:
        """Whether programs can be trained on some rows and evaluated on others, which runs of them show once."""
        if self._independent is None:
            self._independent = rows_are_independent(self.model, self.guide, batch)
        return self._independent

    @property
    def _device(self) -> torch.device | None:
        return None if self.options.device is None else torch.device(self.options.device)

    def _check(self, tensors: tuple[Tensor, ...]) -> None:
        if self.modules and callable(check := getattr(self.modules[0], "check", None)):
            check(*tensors)

    def _first_run(self, tensors: tuple[Tensor, ...], size: int | None) -> tuple[Tensor, ...]:
        seed = self.options.seed
        return after_first_run(self.model, self.guide, tensors, size=size, dtype=self.dtype, seed=seed)

    def _move(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tensors if self._device is None else tuple(part.to(self._device) for part in tensors)


class _MissingCheck:
    """Runs the model on the first batch with NaN in each column, since it has to leave out what is missing there.

    Args:
        model: the model.
        name: what messages call the data.
    """

    def __init__(self, model: Program, name: str = "data") -> None:
        self.model, self.name = model, name
        self.known: dict[int, Tensor] = {}

    def __call__(self, tensors: tuple[Tensor, ...], rows: np.ndarray) -> None:
        new = False
        for i, part in enumerate(tensors):
            columns = part.isnan().any(0)
            known = self.known.get(i, torch.zeros_like(columns))
            new = new or bool((columns & ~known).any())
            self.known[i] = known | columns
        if not new:
            return
        first = int(rows[torch.stack([part.flatten(1).isnan().any(1) for part in tensors]).any(0).nonzero()[0]])
        with torch.random.fork_rng():
            try:
                check_missing(self.model, tensors, tensors, name=self.name)
            except ValueError as error:
                raise ValueError(f"{error} (rows of a batch; the first with NaN is row {first} of the data)") from None


def arrays_and_rows(data: Any, dtype: torch.dtype, name: str = "data") -> tuple[Any, int]:
    """Data that are read batch by batch, with parts in memory as tensors, and the number of rows.

    Args:
        data: a data set, an array or a tuple of arrays.
        dtype: the floating type.
        name: what errors call the data.

    Raises:
        TypeError: see `as_tensors`.
        ValueError: see `as_tensors`; and for a data set without a length.
    """
    if isinstance(data, Dataset) or is_hugging_face(data):
        if not hasattr(data, "__len__") or len(data) == 0:
            raise ValueError(f"{name}: expected a Dataset with a length of at least 1, got {type(data).__name__}")
        return data, len(data)
    parts = tuple(data) if isinstance(data, tuple | list) else (data,)
    if not parts:
        raise ValueError(f"{name}: expected at least one array, got an empty tuple")
    arrays = []
    for i, part in enumerate(parts):
        label = name if len(parts) == 1 else f"{name}[{i}]"
        if not isinstance(part, StreamedArray | np.memmap):
            (part,) = as_tensors(part, dtype=dtype, name=label, allow_nan=True)
        arrays.append(part)
    check_same_rows(arrays, name)
    if not (rows := len(arrays[0])):
        raise ValueError(f"{name}: expected at least one row of values, got shape {tuple(arrays[0].shape)}")
    return tuple(arrays), rows


def as_in_training(held_out: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Validation data, after checking them against the training data; integers become floats where those are.

    Args:
        held_out: the validation data.
        tensors: the training data, or a batch of them.

    Raises:
        ValueError: if they have other parts, shapes or values that are not exact in the types of the training data.
    """
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
