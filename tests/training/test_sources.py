"""Data that are read batch by batch give the batches, and the fits, of the same data in memory."""

import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from support import gaussian_pair
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, get_worker_info

import ppgen
from ppgen.data import Stream
from ppgen.training import batches
from ppgen.training.callbacks import TrainingStep
from ppgen.training.sources import Conversion, OnDisk, own_random

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 23)


class Items(Dataset):
    """Map-style items of arrays, counted."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays, self.read = arrays, []

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, i: int) -> Any:
        self.read.append(i)
        item = tuple(array[i] for array in self.arrays)
        return item if len(item) > 1 else item[0]


class Records(IterableDataset):
    """An iterable data set that begins again."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __iter__(self) -> Iterator[Any]:
        for item in zip(*self.arrays, strict=True):
            yield item if len(item) > 1 else item[0]


class Stateful(Records):
    """One that can continue, and counts what it reads."""

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__(*arrays)
        self.at, self.start, self.read = 0, 0, 0

    def __iter__(self) -> Iterator[Any]:
        start, self.start = self.start, 0
        for i in range(start, len(self.arrays[0])):
            self.at, self.read = i + 1, self.read + 1
            yield self.arrays[0][i]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["at"]


class Normal(torch.nn.Module):
    """x ~ N(loc, 1), and the batches that it was run on in training."""

    def __init__(self, columns: int = 3) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(columns))
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def model(self, x: torch.Tensor, *rest: torch.Tensor) -> None:
        pyro.module("normal", self)
        if torch.is_grad_enabled():
            self.seen.append((x.clone(), *(part.clone() for part in rest)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, *rest: torch.Tensor) -> None:
        pass


def run(data: Any, **options: Any) -> tuple[Normal, ppgen.Fit]:
    """A fit, whose programs remember their batches."""
    program = Normal()
    options = {"steps": 12, "batch_size": 5, "compile": False, "progress": False} | options
    fit = ppgen.fit(program.model, program.guide, data, **options)
    return program, fit


def assert_same(one: tuple[Normal, ppgen.Fit], other: tuple[Normal, ppgen.Fit]) -> None:
    """Both saw the same batches and learned the same."""
    assert len(one[0].seen) == len(other[0].seen)
    for batch, expected in zip(one[0].seen, other[0].seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    assert np.array_equal(one[1].history["loss"], other[1].history["loss"])
    assert np.array_equal(one[1].chains[0].validation["step"], other[1].chains[0].validation["step"])


def mapped(folder: Path, array: np.ndarray, name: str = "x") -> np.ndarray:
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def loaded(folder: Path, array: np.ndarray) -> Any:
    np.save(folder / "x.npy", array)
    return ppgen.data.load(folder / "x.npy", stream=True, scale="none", validation=0, test=0).x


KINDS: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "mapped": (lambda f: mapped(f, X), X),
    "mapped and in memory": (lambda f: (mapped(f, X), Y), (X, Y)),
    "both mapped": (lambda f: (mapped(f, X), mapped(f, Y, "y")), (X, Y)),
    "mapped in another byte order": (lambda f: mapped(f, X.astype(">f4")), X),
    "a part of a mapped array": (lambda f: mapped(f, np.pad(X, ((2, 1), (0, 1))))[2:-1, :3], X),
    "a data set": (lambda f: Items(X, Y), (X, Y)),
    "one part": (lambda f: Items(X), X),
    "a subset": (lambda f: Subset(Items(X, Y), range(23)), (X, Y)),
    "tensors": (lambda f: Stream((torch.from_numpy(X), torch.from_numpy(Y))), (X, Y)),
    "a frame": (lambda f: Stream(pd.DataFrame(X)), X),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("validation", [None, 0.26, 0.35])
def test_every_kind_of_data_gives_the_batches_of_data_in_memory(kind, validation, tmp_path):
    make, whole = KINDS[kind]
    options = {"validation": validation, "seed": 3}
    streamed, memory = run(make(tmp_path), **options), run(whole, **options)
    assert_same(streamed, memory)
    if validation is not None:
        # the mean over batches of a loss per datum is that over all rows
        losses = [fit.chains[0].validation["loss"] for _, fit in (streamed, memory)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


def test_rows_of_a_file_give_the_batches_of_its_array(tmp_path):
    rows = loaded(tmp_path, X)
    order = np.argsort([int(np.flatnonzero((rows[i] == X).all(1))[0]) for i in range(len(X))])
    assert np.array_equal(order, np.arange(len(X)))
    assert_same(run(rows), run(X))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_do_not_depend_on_workers(workers, tmp_path):
    """Also with random choices of a data set, in each of three libraries."""

    class Augmented(Items):
        def __getitem__(self, i: int) -> np.ndarray:
            noise = torch.rand(3).numpy() + np.random.rand(3) + random.random()  # noqa: NPY002
            return (super().__getitem__(i) + noise).astype(np.float32)

    state = random.getstate()
    options = {"steps": 9, "validation": 0.35}
    with own_random((1,)):
        alone = run(Augmented(X), **options)
    assert random.getstate() == state
    assert_same(run(Stream(Augmented(X), workers=workers), **options), alone)
    first, second = alone[0].seen[0][0], alone[0].seen[4][0]
    assert not torch.equal(first.sort(0).values, second.sort(0).values)  # another epoch draws others


def test_reading_leaves_the_random_stream_of_training_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run(Items(X))
    assert torch.equal(torch.get_rng_state(), state)


def test_float64_is_converted_batch_by_batch_with_one_warning(tmp_path):
    wide = mapped(tmp_path, X.astype(np.float64))
    with pytest.warns(UserWarning, match="data: float64 cast to torch.float32") as warned:
        streamed = run(wide)
    assert len([w for w in warned if "float64" in str(w.message)]) == 1
    assert_same(streamed, run(X))


def test_arrays_in_memory_and_mapped_ones_are_not_copied(tmp_path):
    program = Normal()
    seen: list[int] = []

    def model(x: torch.Tensor) -> None:
        seen.append(x.data_ptr())
        program.model(x)

    x = X.copy()
    options = {"steps": 2, "compile": False, "progress": False}
    ppgen.fit(model, program.guide, x, **options)
    assert set(seen) == {x.ctypes.data}
    x.flags.writeable = False
    ppgen.fit(model, program.guide, x, **options)
    assert set(seen) == {x.ctypes.data}
    file = mapped(tmp_path, X)
    assert_same(run(file, batch_size=None), run(X, batch_size=None))


def test_a_program_that_writes_to_mapped_data_changes_neither_file_nor_process(tmp_path):
    def model(x: torch.Tensor) -> None:
        x.mul_(1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1), obs=x)

    file = mapped(tmp_path, X)
    ppgen.fit(model, lambda x: None, file, steps=2, compile=False, progress=False)
    assert np.array_equal(np.load(tmp_path / "x.npy"), X)


def test_a_resumed_run_reads_only_the_rows_that_are_left(tmp_path):
    def stop(step: TrainingStep) -> None:
        if step.number == 7:
            step.stop("enough")

    expected = run(Items(X, Y))
    stopped, left = Items(X, Y), Items(X, Y)
    before = run(stopped, callbacks=[stop], checkpoint=tmp_path / "run.safetensors")
    after = run(left, checkpoint=tmp_path / "run.safetensors")
    assert np.array_equal(after[1].history["loss"], expected[1].history["loss"])
    assert torch.equal(after[0].loc, expected[0].loc)
    assert len(after[0].seen) + len(before[0].seen) == len(expected[0].seen)
    # five batches, those that are checked first, samples, and the digest
    assert len(left.read) < len(X) + 5 * 5 + 2 * 8 + 5 + len(X)


def test_parquet_is_shuffled_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("ppgen.data.streamed_files.CACHE_BYTES", 2 * 4 * 8 * 3)  # two row groups of four rows
    pd.DataFrame(X.astype(np.float64), columns=list("abc")).to_parquet(tmp_path / "x.parquet", row_group_size=4)
    options = {"scale": "none", "validation": 0.0, "test": 0.0, "stream": True}
    data = ppgen.data.load(tmp_path / "x.parquet", **options)
    program, _ = run(data.train.x, steps=6, batch_size=8)
    rows = [[int(np.flatnonzero((row.numpy() == X).all(1))[0]) for row in batch[0]] for batch in program.seen[-6:]]
    for epoch in (rows[:3], rows[3:]):
        assert sorted(chain(*epoch)) == list(range(23))
    full = [batch for batch in rows if len(batch) == 8]
    assert all(len({row // 4 for row in batch}) <= 4 for batch in full)
    assert rows[:3] != rows[3:]
    held_out = run(data.train.x, steps=3, validation=data.test.x if len(data.test.x) else X)
    assert len(held_out[1].chains[0].validation["loss"])


# Data that can only be read from their beginning.


def batches_in_order(x: np.ndarray, steps: int, size: int = 5) -> list[np.ndarray]:
    epoch = [x[i : i + size] for i in range(0, len(x), size)]
    return (epoch * steps)[:steps]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_data_set_is_read_in_its_order(workers):
    program, fit = run(Stream(Records(X, Y), workers=workers))
    for (x, y), expected, labels in zip(
        program.seen[-12:], batches_in_order(X, 12), batches_in_order(Y, 12), strict=True
    ):
        assert np.array_equal(x.numpy(), expected)
        assert np.array_equal(y.numpy(), labels)
    assert fit.history["loss"].shape == (12,)


def test_a_buffer_shuffles_by_seed_and_epoch():
    def rows(seed: int, workers: int = 0) -> list[list[int]]:
        program, _ = run(Stream(Records(X), buffer=7, workers=workers), seed=seed, steps=10)
        return [[int(np.flatnonzero((row.numpy() == X).all(1))[0]) for row in b[0]] for b in program.seen[-10:]]

    first = rows(0)
    assert rows(0, workers=1) == first
    epochs = [list(chain(*first[:5])), list(chain(*first[5:]))]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(23))
    assert rows(1) != first


@pytest.mark.parametrize("buffer", [0, 6])
@pytest.mark.parametrize("kind", [Records, Stateful])
def test_an_iterable_run_resumes_in_mid_epoch(kind, buffer, tmp_path):
    def stop(step: TrainingStep) -> None:
        if step.number == 8:
            step.stop("enough")

    def stream(data: Records) -> Stream:
        return Stream(data, buffer=buffer)

    expected = run(stream(kind(X)))
    run(stream(kind(X)), callbacks=[stop], checkpoint=tmp_path / "run.safetensors")
    data = kind(X)
    after = run(stream(data), checkpoint=tmp_path / "run.safetensors")
    assert torch.equal(after[0].loc, expected[0].loc)
    assert np.array_equal(after[1].history["loss"], expected[1].history["loss"])
    for (x,), (y,) in zip(after[0].seen[-4:], expected[0].seen[-4:], strict=True):
        assert torch.equal(x, y)
    if kind is Stateful and not buffer:
        assert data.read < 2 * len(X)  # the first batch, and what was left: nothing is replayed


@pytest.mark.parametrize("kind", ["mapped", "items", "records"])
def test_a_value_on_disk_that_changed_is_noticed_when_a_run_continues(kind, tmp_path):
    make = {"mapped": lambda x: mapped(tmp_path, x), "items": Items, "records": Records}[kind]
    changed = X.copy()
    changed[3, 1] *= 1 + 1e-5
    options = {"checkpoint": tmp_path / "run", "steps": 3}
    run(make(X), **options, callbacks=[lambda step: step.stop("enough")])
    with pytest.raises(ValueError, match="data: other rows, or in another order"):
        run(make(changed), **options)
    run(make(X), **options)


def test_the_digest_of_large_data_on_disk_takes_runs_of_rows(monkeypatch):
    monkeypatch.setattr(batches, "DIGESTED_BYTES", 16 * X[0].nbytes)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    order = torch.from_numpy(np.random.default_rng(1).permutation(50)[:45])
    digests, read = [], []
    for row in (None, sorted(order.tolist())[1], sorted(order.tolist())[3]):
        items = Items(x.copy())
        if row is not None:
            items.arrays[0][row] += 1
        source = OnDisk(items, 45, Conversion(torch.float32), Stream(items), order)
        digests.append(batches.Batches(source, size=5).digest())
        read = items.read[1:]  # the first shows how many bytes a row has
    positions = [sorted(order.tolist()).index(row) for row in read]  # in the order of the file
    assert positions == [0, 1, 6, 7, 12, 13, 18, 19, 24, 25, 30, 31, 36, 37, 43, 44]
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]  # a row between the runs


def test_epochs_of_an_iterable_data_set_are_counted():
    _, fit = run(Records(X), steps=None, epochs=2)
    assert len(fit.history["loss"]) == 10
    _, fit = run(Records(X[:21]), steps=None, epochs=2)
    assert len(fit.history["loss"]) == 8  # a last batch of one row is left out


def test_an_iterable_data_set_without_an_end_is_reported_while_it_is_counted(monkeypatch):
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            return cycle(X)

    monkeypatch.setattr("ppgen.training.iterables.COUNTED", 1000)
    with pytest.raises(UserWarning, match=r"epochs= counts the items of Endless first, 1,000 so far: .* give steps="):
        run(Endless(), steps=None, epochs=2)  # warnings are errors here, which ends the counting
    assert len(run(Endless(), steps=3)[1].history["loss"]) == 3


@pytest.mark.slow
def test_compiled_steps_take_streamed_batches(tmp_path, builds):
    """With a last batch of another shape in each epoch, which is compiled too."""
    losses = []
    for data in (X, mapped(tmp_path, X), Items(X)):
        torch.manual_seed(0)
        pair = gaussian_pair()
        fit = ppgen.fit(pair.model, pair.guide, data, steps=25, batch_size=5, compile=True, progress=False)
        losses.append(fit.history["loss"])
        assert "compiled at step" in fit.chains[0].compiled
    assert np.array_equal(losses[0], losses[1])
    assert np.array_equal(losses[0], losses[2])
    assert len(builds) == 2


def test_validation_is_streamed():
    losses = []
    for validation in (X, Items(X), Records(X), Stream(Items(X), workers=1)):
        _, fit = run(Records(X), validation=validation)
        losses.append(fit.chains[0].validation["loss"])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)


class Once(IterableDataset):
    def __init__(self) -> None:
        self.items = iter(X)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.items


class Broken(Items):
    def __getitem__(self, i: int) -> Any:
        if i == 9:
            raise OSError("disk")
        return super().__getitem__(i)


class Dies(Items):
    def __getitem__(self, i: int) -> Any:
        if get_worker_info() is not None:
            import os

            os._exit(3)
        return super().__getitem__(i)


def with_value(value: float, row: int = 17) -> np.ndarray:
    x = X.copy()
    x[row, 1] = value
    return x


BAD: dict[str, tuple[Callable[[Path], Any], dict, type[Exception], str]] = {
    "infinite": (
        lambda f: mapped(f, with_value(np.inf)),
        {},
        ValueError,
        r"data: 1 of \d+ values, in 1 of \d rows of a batch \(the first is row 17\), column 1, are not finite",
    ),
    "infinite in an item": (
        lambda f: Items(with_value(np.inf), Y),
        {},
        ValueError,
        r"data\[0\]: .* is row 17\), column 1",
    ),
    "infinite in a worker": (
        lambda f: Stream(Items(with_value(np.inf)), workers=1),
        {},
        ValueError,
        r"data: 1 of .* is row 17\)",
    ),
    "NaN": (lambda f: Items(with_value(np.nan)), {}, ValueError, "first with NaN is row 17 of the data"),
    "infinite in a stream": (lambda f: Records(with_value(np.inf)), {}, ValueError, "the first is row 17"),
    "no rows": (lambda f: Items(X[:0]), {}, ValueError, "expected a Dataset with a length of at least 1, got Items"),
    "unequal": (lambda f: (mapped(f, X), Y[:3]), {}, ValueError, "its arrays have 23, 3 rows"),
    "text": (lambda f: Items(np.array(["a"] * 9)), {}, TypeError, "expected"),
    "an error of the data set": (lambda f: Broken(X), {}, OSError, "disk"),
    "patience": (lambda f: Records(X), {"patience": 2}, ValueError, "Records is an iterable data set: give validation"),
    "no batch size": (lambda f: Records(X), {"batch_size": None}, ValueError, "give batch_size="),
    "a fraction": (lambda f: Records(X), {"validation": 0.1}, ValueError, "a fraction of Records"),
    "once": (lambda f: Once(), {}, ValueError, "gave no rows in epoch"),
    "empty": (lambda f: Records(X[:0]), {}, ValueError, "Records gave no rows in epoch 0"),
    "streams without batches": (lambda f: loaded(f, X), {"batch_size": None}, ValueError, "need batch_size="),
    "a dead worker": (lambda f: Stream(Dies(X), workers=1), {}, RuntimeError, "a worker that reads the data died"),
    "shapes": (
        lambda f: Records([*X[:10], *X[:, :2]]),
        {},
        ValueError,
        r"expected rows of shape \(3,\), as the first ones have, got \(2,\) in the batch of row 10",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_row_and_the_remedy(case, tmp_path):
    make, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        run(make(tmp_path), **options)


def test_missing_values_are_welcome_if_the_model_leaves_them_out():
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.plate("columns", 3), pyro.poutine.mask(mask=~x.T.isnan()):
            pass
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).mask(~x.isnan()).to_event(1), obs=x.nan_to_num())

    losses = []
    for data in (with_value(np.nan), Items(with_value(np.nan))):
        pyro.clear_param_store()
        fit = ppgen.fit(model, lambda x: None, data, steps=12, batch_size=5, compile=False, progress=False)
        losses.append(fit.history["loss"])
    assert np.array_equal(*losses)


def test_integers_become_floats_in_every_batch_where_programs_need_them():
    class Rotated(Normal):
        def model(self, x: torch.Tensor, *rest: torch.Tensor) -> None:
            super().model(x @ torch.eye(3))

    data, losses = np.arange(69).reshape(23, 3), []
    for make in (lambda: data, lambda: Items(data)):
        program = Rotated()
        with pytest.warns(UserWarning, match="torch.int64 cast to torch.float32, without"):
            fit = ppgen.fit(program.model, program.guide, make(), steps=12, batch_size=5, compile=False, progress=False)
        losses.append(fit.history["loss"])
    assert np.array_equal(*losses)


def test_workers_end_with_the_run():
    import multiprocessing

    run(Stream(Items(X), workers=2))
    assert not multiprocessing.active_children()

    def interrupt(step: TrainingStep) -> None:
        raise KeyboardInterrupt

    _, fit = run(Stream(Items(X), workers=2), callbacks=[interrupt])
    assert fit.chains[0].interrupted
    assert not multiprocessing.active_children()


# A Hugging Face data set, as far as `fit` knows it; tests/training/test_hugging_face.py has the real one.


def test_columns_of_a_hugging_face_data_set_are_the_arguments(monkeypatch):
    class HFDataset:
        def __init__(self) -> None:
            self.format = {"type": None}

        def with_format(self, kind: str) -> "HFDataset":
            assert kind == "numpy"
            return self

        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, rows: list[int]) -> dict[str, np.ndarray]:
            return {"x": X[rows], "y": Y[rows]}

    module = types.SimpleNamespace(Dataset=HFDataset, IterableDataset=type("HFIterable", (), {}))
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert_same(run(HFDataset()), run((X, Y)))


def test_data_sets_without_a_batch_size_are_held_in_memory():
    items = Items(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(run(items, batch_size=None), run(X, batch_size=None))
    assert sorted(items.read) == list(range(23))
    assert_same(run(TensorDataset(torch.from_numpy(X))), run(X))
