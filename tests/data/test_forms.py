"""Forms of gray levels and of tables."""

import types
from typing import Any

import numpy as np
import pytest
from data_files import same
from scipy import stats
from sklearn import datasets

from ppgen import data
from ppgen.data import forms


def test_forms_of_gray_levels():
    k = datasets.load_digits().images[:, None]
    assert same(data.load("digits", form="integer").x, k)
    assert same(data.load("digits", form="unit").x, (k / 16).astype(np.float32))
    assert same(data.load("digits", form="binary").x, k > 8)
    d = data.load("digits")
    assert (d.x.dtype, d.levels, d.form, d.event_shape) == (np.float32, 17, "continuous", (1, 8, 8))
    assert d.x.min() >= 0
    assert d.x.max() < 1
    u = d.x.astype(np.float64) * 17 - k
    assert same(np.floor(u), np.zeros_like(u))
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4  # level 1e-4
    assert same(d.x, data.load("digits").x)
    assert not same(d.x, data.load("digits", seed=1).x)
    assert data.load("digits", form="binary").levels == 2


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantization_stays_within_the_level(levels):
    almost_one: Any = types.SimpleNamespace(
        random=lambda shape, dtype: np.full(shape, np.nextafter(dtype(1), dtype(0)))
    )
    k = np.arange(levels, dtype=np.uint8)[:, None]
    x = forms.continuous(k, levels, almost_one)
    assert same(np.floor(x.astype(np.float64) * levels), k)


@pytest.mark.parametrize(
    ("form", "good", "bad", "message"),
    [
        ("integer", [[-2.0, 3.0]], [[1.0, 0.5], [2.0, 0.5]], "be an integer; 2 of 4 values, in 2 of 2 rows"),
        ("integer", [[2.0**62, 0]], [[1e30, 0.0]], "be an integer; 1 of 2 values"),
        ("binary", [[0.0, 1.0]], [[0.0, 2.0], [1.0, 1.0]], r"be 0 or 1; 1 of 4 values.*column 1, are not"),
        ("unit", [[0.0, 0.3]], [[0.0, 1.1]], r"be in \[0, 1\]; 1 of 2 values"),
    ],
)
def test_forms_of_tables(form, good, bad, message, tmp_path):
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "bad.npy", bad)
    d = data.load(tmp_path / "good.npy", form=form)
    assert same(d.x, np.asarray(good, np.float32))
    assert d.x.dtype == (np.int64 if form == "integer" else np.float32)
    assert d.levels == (2 if form == "binary" else None)
    assert d.scaler.log_det() == 0
    with pytest.raises(ValueError, match=rf"bad\.npy: form='{form}' expects every value to {message}"):
        data.load(tmp_path / "bad.npy", form=form)


def test_integer_columns_of_a_table_are_not_dequantized(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(20, dtype=np.uint8).reshape(10, 2))
    d = data.load(tmp_path / "t.npy", scale="none")
    assert same(d.x, np.arange(20).reshape(10, 2))
    assert d.levels is None
