"""Data of many kinds give the same tensors, and an epoch of batches has each row once."""

import warnings
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ppgen.training.batches import Batches
from ppgen.training.conversion import as_tensors, cast_like
from ppgen.training.loading import as_in_training

VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)
LABELS = np.arange(6)


class Pairs(Dataset):
    """Items of an array and a number."""

    def __len__(self) -> int:
        return len(VALUES)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return VALUES[i], int(LABELS[i])


class Stream(IterableDataset):
    def __init__(self, length: int | None = None) -> None:
        self.length = length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError
        return self.length

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(X)


X = torch.from_numpy(VALUES)
Y = torch.from_numpy(LABELS)
KINDS: dict[str, Callable] = {
    "tensors": lambda: (X, Y),
    "list": lambda: [X, Y],
    "arrays": lambda: (VALUES, LABELS),
    "frame and series": lambda: (pd.DataFrame(VALUES, columns=["a", "b"]), pd.Series(LABELS)),
    "tensor dataset": lambda: TensorDataset(X, Y),
    "dataset": Pairs,
    "subset": lambda: Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(6)),
    "strided": lambda: (np.asfortranarray(VALUES), np.repeat(LABELS, 2)[::2]),
    "reversed": lambda: (VALUES[::-1, ::-1].copy()[::-1, ::-1], LABELS[::-1].copy()[::-1]),
    "read-only": lambda: (np.broadcast_to(VALUES, VALUES.shape), LABELS),
    "byte order": lambda: (VALUES.astype(">f4"), LABELS.astype(">i8")),
    "masked nowhere": lambda: (np.ma.masked_array(VALUES, False), np.ma.masked_array(LABELS)),
    "unsigned": lambda: (VALUES, LABELS.astype(np.uint32).astype(np.uint64)),
    "with gradients": lambda: (X.clone().requires_grad_(), Y),
    "half": lambda: (VALUES.astype(np.float16), LABELS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_tensors(kind):
    x, y = as_tensors(KINDS[kind]())
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_a_single_array_gives_a_tuple_of_one_tensor():
    for data in (X, VALUES, pd.DataFrame(VALUES), TensorDataset(X)):
        (x,) = as_tensors(data)
        assert torch.equal(x, X)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(pd.DataFrame({"a": [True, False], "b": [0.5, 2.0]}), id="booleans"),
        pytest.param(pd.DataFrame({"a": pd.array([1, 0], dtype="Int64"), "b": [0.5, 2.0]}), id="nullable"),
    ],
)
def test_a_frame_of_mixed_columns_gives_one_floating_tensor(frame):
    with pytest.warns(UserWarning, match="float64"):
        (x,) = as_tensors(frame)
    assert torch.equal(x, torch.tensor([[1.0, 0.5], [0.0, 2.0]]))


def test_float64_is_cast_with_one_warning():
    with pytest.warns(UserWarning, match=r"data\[0\]: float64 cast to torch.float32") as warned:
        x, y = as_tensors((VALUES.astype(np.float64), LABELS))
    assert len(warned) == 1
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (wide,) = as_tensors(VALUES, dtype=torch.float64)
    assert wide.dtype == torch.float64


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_masked_values_are_missing_ones(kind):
    masked = np.ma.masked_array(VALUES.astype(kind), VALUES == 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (x,) = as_tensors(masked, allow_nan=True)
    assert x.isnan().sum() == x[1, 1].isnan().sum() == 1
    assert torch.equal(x.nan_to_num(3.0), X)


def test_a_cast_that_loses_digits_is_reported_with_its_columns():
    seconds = 1.7e9 + np.arange(6.0)
    frame = pd.DataFrame({"ok": np.arange(6.0), "year": 2000 + np.arange(6.0), "time": seconds})
    with pytest.warns(UserWarning, match="rounds column 'time' by more than 1% .* subtract the mean first"):
        as_tensors(frame)
    with pytest.warns(UserWarning, match="cast to torch.float32, the dtype of the programs$"):
        as_tensors(frame.drop(columns="time"))


def test_frames_with_one_index_in_two_orders_give_a_warning():
    x, y = pd.DataFrame(VALUES, index=range(6)), pd.Series(LABELS, index=range(5, -1, -1))
    with pytest.warns(UserWarning, match=r"rows are paired by position: align them, y.loc\[x.index\]"):
        as_tensors((x, y))
    as_tensors((x, y.loc[x.index]))
    as_tensors((x, y.reset_index(drop=True)))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (2**24 + 1, torch.float32, "1 values, such as 16777217, are not exact in torch.float32"),
        (2**24, torch.float32, None),
        (2**53 + 1, torch.float64, "not exact in torch.float64"),
        (300, torch.uint8, "such as 300, are not exact in torch.uint8"),
        (0.5, torch.int64, "such as 0.5, are not exact in torch.int64"),
        (2.0, torch.bool, "not exact in torch.bool"),
        (True, torch.float32, None),
    ],
)
def test_a_cast_changes_no_value(value, dtype, message):
    part, like = torch.tensor([1, value]), torch.zeros(2, dtype=dtype)
    if message is None:
        assert torch.equal(cast_like(part, like, "x"), part.to(dtype))
        return
    with pytest.raises(ValueError, match=message):
        cast_like(part, like, "x")


def nan_frame() -> pd.DataFrame:
    return pd.DataFrame({"a": [1.0, np.nan, np.inf], "b": [1.0, 2.0, np.nan]})


BAD: dict[str, tuple[Callable, type[Exception], str]] = {
    "nan": (
        lambda: np.array([[1.0, np.nan], [np.inf, 2.0], [0.0, 0.0]]),
        ValueError,
        r"data: 2 of 6 values, in 2 of 3 rows \(the first is row 0\), columns 0, 1.*\(1 NaN, 1 infinite\)",
    ),
    "nan in a frame": (nan_frame, ValueError, r"columns 'a', 'b', are not finite \(2 NaN, 1 infinite\)"),
    "missing in a frame": (lambda: pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), ValueError, "1 NaN"),
    "nan in the second": (lambda: (X, Y / 0), ValueError, r"data\[1\]: 6 of 6 values"),
    "empty": (lambda: VALUES[:0], ValueError, r"at least one row of values, got shape \(0, 2\)"),
    "no columns": (lambda: VALUES[:, :0], ValueError, "at least one row of values"),
    "a number": (lambda: torch.tensor(1.0), ValueError, r"got shape \(\)"),
    "nothing": (lambda: (), ValueError, "at least one array, got an empty tuple"),
    "unequal": (lambda: (X, Y[:4]), ValueError, "its arrays have 6, 4 rows"),
    "words": (
        lambda: pd.DataFrame({"a": ["u", "v"], "b": [1, 2], "c": pd.to_datetime(["2020", "2021"])}),
        TypeError,
        "columns 'a', 'c' are not numeric; encode or drop them",
    ),
    "text": (lambda: np.array(["u"]), TypeError, "expected real numbers, got dtype <U1"),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), TypeError, "expected real numbers"),
    "none": (lambda: None, TypeError, "got NoneType"),
    "numbers": (lambda: [1.0, 2.0], TypeError, r"data\[0\]: expected a NumPy array or a torch tensor, got float"),
    "objects": (
        lambda: np.array([1, 2], dtype=object),
        TypeError,
        r"dtype object, an array of Python objects: x.astype",
    ),
    "numbers as text": (lambda: np.array(["0", "1"]), TypeError, r"dtype <U1, text: x.astype\(float\) for numbers"),
    "times": (lambda: np.array(["2020-01-01"], dtype="datetime64[D]"), TypeError, r"times: \(x - x.min\(\)\) / np"),
    "categories": (lambda: pd.Series(pd.Categorical([1, 2])), TypeError, r"not numeric; .* \.cat\.codes"),
    "masked": (lambda: np.ma.masked_array([1.0, 2.0], [False, True]), ValueError, r"1 of 2 values, .* \(1 NaN"),
    "masked integers": (lambda: np.ma.masked_array([1, 2], [False, True]), ValueError, r"1 of 2 values, .* \(1 NaN"),
    "missing booleans": (lambda: pd.Series(pd.array([True, None], dtype="boolean")), ValueError, "1 NaN"),
    "too large": (
        lambda: pd.DataFrame({"a": [1.0, 2.0], "b": [1e300, 1.0]}),
        ValueError,
        r"1 of 4 values, .* \(the first is row 0\), column 'b', are beyond the range of torch.float32",
    ),
    "too large integers": (lambda: np.array([2**64 - 1], np.uint64), ValueError, r"at least 2\^63 are beyond"),
    "sparse": (lambda: (X, torch.eye(6).to_sparse()), TypeError, r"data\[1\]: expected a dense .* x.to_dense\(\)"),
    "a sparse matrix": (lambda: csr_matrix(VALUES), TypeError, r"got csr_matrix: x.toarray\(\)"),
    "a loader": (lambda: DataLoader(TensorDataset(X)), TypeError, "got DataLoader: give its dataset, and batch_size="),
    "a dictionary": (lambda: {"x": X}, TypeError, "got dict: give a tuple"),
    "a stream with a length": (
        lambda: Stream(6),
        ValueError,
        r"got Stream, a stream: .*default_collate\(list\(data\)\)",
    ),
    "empty dataset": (lambda: Subset(TensorDataset(X), []), ValueError, "length of at least 1, got Subset"),
    "stream": (Stream, ValueError, "length of at least 1, got Stream"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_data_are_an_error_that_names_the_place(case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        as_tensors(make())


def test_the_error_names_the_argument():
    with pytest.raises(ValueError, match=r"^validation: "):
        as_tensors(VALUES[:0], name="validation")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (X, "validation: expected 2 arrays, as in the data, got 1"),
        ((X, Y, Y), "expected 2 arrays, as in the data, got 3"),
        ((X[:, :1], Y), r"validation\[0\]: expected rows of shape \(2,\), as in the data, got \(1,\)"),
        ((X, Y + 0.5), r"validation\[1\]: 6 values, such as 0.5, are not exact in torch.int64"),
    ],
)
def test_validation_data_that_differ_from_the_data_are_an_error(validation, message):
    with pytest.raises(ValueError, match=message):
        as_in_training(as_tensors(validation, name="validation"), (X, Y))


def test_validation_data_have_the_types_of_the_data():
    held_out = as_in_training((X.round().long(), Y.float()), (X, Y))
    assert [part.dtype for part in held_out] == [torch.float32, torch.int64]


# Batches.


def rows(batches: Batches, epoch: int) -> list[list[int]]:
    return [y.tolist() for _, y in batches.epoch(epoch)]


@pytest.mark.parametrize(("n", "size"), [(6, 1), (6, 2), (6, 4), (6, 6), (1, 1), (11, 4)])
def test_an_epoch_has_each_row_once_in_aligned_batches(n, size):
    x, y = torch.arange(n) * 10.0, torch.arange(n)
    batches = Batches((x, y), size=size, seed=3)
    for epoch in range(3):
        seen = rows(batches, epoch)
        assert len(seen) == len(batches)
        assert [len(batch) for batch in seen[:-1]] == [size] * (len(seen) - 1)
        assert sorted(chain(*seen)) == list(range(n))
        assert all(torch.equal(a, b * 10.0) for a, b in batches.epoch(epoch))


def test_batches_depend_only_on_seed_and_epoch():
    def epoch(seed: int, number: int) -> list[list[int]]:
        return rows(Batches((X, Y), size=2, seed=seed), number)

    first = epoch(0, 0)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert epoch(0, 0) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    orders = [tuple(chain(*epoch(seed, number))) for seed in range(3) for number in range(3)]
    assert len(set(orders)) == 9  # 9 of 720 orders coincide with chance 1/20; these seeds do not


def test_without_a_size_there_is_one_batch_in_the_order_of_the_data():
    batches = Batches((X, Y))
    assert len(batches) == 1
    assert rows(batches, 0) == rows(batches, 1) == [list(range(6))]


def test_a_last_batch_of_one_row_is_left_out_and_the_row_changes():
    with pytest.warns(UserWarning, match="6 rows in batches of 5 leave a last batch of one row"):
        batches = Batches((X, Y), size=5)
    assert len(batches) == 1
    left_out = set()
    for epoch in range(30):  # a row is never left out with chance (5/6)^30 = 0.4 %; with this seed all are
        (batch,) = rows(batches, epoch)
        assert len(set(batch)) == 5
        left_out |= set(range(6)) - set(batch)
    assert left_out == set(range(6))


def test_a_size_beyond_the_rows_is_reduced_with_a_warning():
    with pytest.warns(UserWarning, match="batch_size 100 is more than the 6 rows; it is reduced to 6"):
        batches = Batches((X, Y), size=100)
    assert batches.size == 6
    assert [len(batch) for batch in rows(batches, 0)] == [6]


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one_is_an_error(size):
    with pytest.raises(ValueError, match=f"batch_size: expected at least 1, got {size}"):
        Batches((X, Y), size=size)
