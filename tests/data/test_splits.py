"""Splits: disjoint, complete, seeded and stratified."""

import numpy as np
import pytest
from data_files import same

from ppgen import data
from ppgen.data.splits import split_rows


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
