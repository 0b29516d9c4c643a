"""Splits: disjoint, complete, seeded and stratified, by group and by time."""

import numpy as np
import pandas as pd
import pytest
from data_files import same
from hypothesis import given
from hypothesis import strategies as st

from ppgen import data
from ppgen.data.splits import SplitKeys, split_rows


@pytest.mark.parametrize(
    "y",
    [
        None,
        np.repeat(np.arange(7), 30),
        np.array([0] * 200 + [1] * 8 + [2, 2]),
        np.arange(210),
        np.zeros(210, np.int64),
    ],
)
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.0, 0.0), (0.25, 0.0), (0.0, 0.33)])
def test_splits_are_disjoint_complete_seeded_and_stratified(y, validation, test):
    def split(seed):
        return split_rows(210, y, validation=validation, test=test, rng=np.random.default_rng(seed))

    rows, again, other = split(0), split(0), split(1)
    assert same(np.sort(np.concatenate(list(rows.values()))), np.arange(210))
    assert [len(rows[part]) for part in ("validation", "test")] == [
        round(validation * 210),
        round(test * 210),
    ]
    assert all(same(rows[part], again[part]) for part in rows)
    assert not same(rows["train"], other["train"])
    if y is not None and len(set(y)) < 210:
        for part in rows:
            share = len(rows[part]) / 210
            for label, count in zip(*np.unique(y, return_counts=True), strict=True):
                assert abs((y[rows[part]] == label).sum() - share * count) < 2
                assert part != "train" or (y[rows[part]] == label).any()


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.2, 1.0), (float("nan"), 0.1)])
def test_fractions_out_of_range_are_refused(validation, test):
    with pytest.raises(ValueError, match="expected fractions validation and test"):
        data.load("moons", size=10, validation=validation, test=test)


def test_a_split_without_training_rows_is_refused():
    with pytest.raises(ValueError, match="leave none of 2 rows to train on"):
        data.load("moons", size=2, validation=0.49, test=0.5)


def table(tmp_path, suffix, **columns):
    frame = pd.DataFrame(columns)
    path = tmp_path / f"table{suffix}"
    (frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, row_group_size=64))
    return str(path)


GROUPS = st.lists(st.integers(1, 12), min_size=6, max_size=40).filter(lambda sizes: max(sizes) < sum(sizes) / 4)


@given(GROUPS, st.integers(0, 5))
def test_groups_are_never_divided_and_shares_are_as_close_as_groups_allow(sizes, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n, keys = len(groups), SplitKeys("group", groups)
    rows = split_rows(n, None, validation=0.2, test=0.2, rng=np.random.default_rng(seed), keys=keys)
    assert same(np.sort(np.concatenate(list(rows.values()))), np.arange(n))
    found = {part: set(groups[part_rows]) for part, part_rows in rows.items()}
    assert sum(map(len, found.values())) == len(sizes)
    for part, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert abs(len(rows[part]) - share * n) <= 2 * max(sizes)


@given(st.lists(st.integers(0, 30), min_size=20, max_size=80), st.integers(0, 5))
def test_later_splits_have_later_times_and_no_time_is_in_two_of_them(times, seed):
    times = np.array([*times, *range(31)])  # with no time that has most rows
    n, keys = len(times), SplitKeys("time", times)
    rows = split_rows(n, None, validation=0.1, test=0.2, rng=np.random.default_rng(seed), keys=keys)
    assert same(np.sort(np.concatenate(list(rows.values()))), np.arange(n))
    train, validation, test = (times[part] for part in rows.values())
    assert test.min() > max(validation.max(initial=-1), train.max())
    assert validation.min(initial=99) > train.max()
    assert round(0.2 * n) <= len(test) < round(0.2 * n) + np.bincount(times).max()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_table_is_split_by_a_column_of_text_which_is_not_part_of_x(tmp_path, suffix, stream):
    if stream and suffix == ".csv":
        return
    customer = np.array([f"00{i % 17}" for i in range(200)])
    path = table(tmp_path, suffix, customer=customer, age=np.arange(200.0))
    found = data.load(path, split="group:customer", scale="none", stream=stream)
    assert found.columns == ("age",)
    parts = [set(customer[found.rows[part]]) for part in ("train", "validation", "test")]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts)) == 17
    assert same(found.train.x[:][:, 0], found.rows["train"].astype(np.float32))


@pytest.mark.parametrize(
    "dates",
    [
        pd.date_range("2023-12-25", periods=100),
        pd.date_range("2023-12-25", periods=100).strftime("%Y-%m-%d"),
        np.arange(100) - 50,
        [f"2023-12-{1 + i // 8:02d}T{i % 8:02d}:30" for i in range(100)],
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_split_by_time(tmp_path, dates, suffix):
    order = np.random.default_rng(0).permutation(100)
    path = table(tmp_path, suffix, when=np.asarray(dates)[order], step=order)
    found = data.load(path, split="time:when", scale="none")
    steps = [np.sort(getattr(found, part).x[:, 0]) for part in ("train", "validation", "test")]
    assert same(np.concatenate(steps), np.arange(100, dtype=np.float32))
    assert [len(part) for part in steps] == [70, 10, 20]


WRONG_SPLITS = {
    "kind": ("customer", "expected split to be random, group:COLUMN or time:COLUMN, got 'customer'"),
    "no column": ("group:", "expected split to be random"),
    "unknown": ("group:client", "has no column 'client' to split by, only 'customer', 'when', 'x'"),
    "few groups": ("group:two", "leave none of 2 groups of 30 rows for (validation|test)"),
    "missing": ("time:when", r"column 'when', line 4: .* needs the time of each row, and 1 of 30 are missing"),
    "no time": ("time:customer", r"column 'customer', line 2: expected a time to split by, .* got 'c0'"),
    "one time": ("time:one", "leave none of 1 times of 30 rows for"),
}


@pytest.mark.parametrize("case", WRONG_SPLITS)
def test_what_a_table_cannot_be_split_by_is_named(tmp_path, case):
    split, message = WRONG_SPLITS[case]
    when = ["2024-01-01", "2024-01-02", "", *["2024-01-04"] * 27]
    columns = {"customer": [f"c{i}" for i in range(30)], "when": when, "x": np.arange(30)}
    if split.endswith(("two", "one")):
        columns = {"two": np.arange(30) % 2, "one": 1, "x": np.arange(30)}
    with pytest.raises(ValueError, match=message):
        data.load(table(tmp_path, ".csv", **columns), split=split)


def test_a_source_without_columns_is_not_split_by_one():
    with pytest.raises(ValueError, match="split='group:a' names a column of a table, and 'moons' is none"):
        data.load("moons", split="group:a")


def test_labels_are_not_what_rows_are_split_by(tmp_path):
    path = table(tmp_path, ".csv", y=np.arange(30), x=np.arange(30))
    with pytest.raises(ValueError, match="cannot be both the labels and what rows are split by"):
        data.load(path, label="y", split="group:y")
