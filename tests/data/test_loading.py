"""`load`: scale, splits, sizes, images of another side, and errors."""

from typing import Any

import numpy as np
import pytest
from data_files import NAMES, TABLE, frame, same

from ppgen import data


def test_values_too_large_for_float32_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,1e60\n5,2e60\n")
    with pytest.raises(ValueError, match=r"t\.csv in float32: 2 of 6 values, .* column 'b', are not finite"):
        data.load(tmp_path / "t.csv", scale="none")
    assert np.isfinite(data.load(tmp_path / "t.csv", validation=0, test=0).x).all()


def test_the_standard_scale_uses_training_rows_only(tmp_path):
    x = np.random.default_rng(0).normal(1.7e9, 100, (200, 2))
    np.save(tmp_path / "t.npy", x)
    d = data.load(tmp_path / "t.npy")
    assert np.allclose(d.train.x.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(d.train.x.std(axis=0), 1, atol=1e-6)
    assert abs(d.x.mean(axis=0)).min() > 1e-3
    assert np.allclose(d.scaler.inverse(d.x.astype(np.float64)), x, rtol=0, atol=1e-4)
    assert same(data.load("moons").x, data.moons(5000)[0])
    assert data.load("moons", scale="standard").train.x.std() == pytest.approx(1)
    assert data.load("digits", scale="standard").train.x.std(axis=0) == pytest.approx(1, abs=1e-5)


def test_a_constant_column_is_named_in_a_warning(tmp_path):
    frame(NAMES).assign(v=3).to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match="not scaled: column 'v'"):
        d = data.load(tmp_path / "t.csv", label="kind")
    assert (d.x[:, 1] == 0).all()


def test_splits_have_their_sizes_and_all_classes():
    d: Any = data.load("digits", size=500, validation=0.2, test=0.1, seed=2)
    assert [len(part.x) for part in (d.train, d.validation, d.test)] == [350, 100, 50]
    for part in ("train", "validation", "test"):
        assert same(getattr(d, part).x, d.x[d.rows[part]])
        assert same(getattr(d, part).y, d.y[d.rows[part]])
        assert set(getattr(d, part).y.tolist()) == set(range(10))
    assert repr(d) == ("Data('digits', 500 rows of (1, 8, 8), continuous: train 350, validation 100, test 50)")


def test_size_keeps_rows_with_their_labels(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.arange(300.0).reshape(100, 3), y=np.arange(100) % 7)
    d = data.load(tmp_path / "t.npz", size=20, scale="none", seed=1)
    rows = (d.x[:, 0] / 3).astype(int)
    assert len(set(rows)) == 20
    assert same(d.y, rows % 7)
    other = data.load(tmp_path / "t.npz", size=20, scale="none", seed=2)
    assert set(other.x[:, 0]) != set(d.x[:, 0])
    assert len(data.load("rings", size=123).x) == 123


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mooons", {}, r"no data set 'mooons', perhaps 'moons'\..*moons, rings.*openml:NAME, a file \.csv"),
        ("qqqq", {}, r"no data set 'qqqq'\. Expected"),
        ("moons", {"form": "text"}, "form to be one of auto, levels, continuous, integer, binary, unit, got 'text'"),
        ("moons", {"scale": "minmax"}, "scale to be one of auto, none, standard, got 'minmax'"),
        ("moons", {"size": 0}, "size to be at least one row, got 0"),
        ("digits", {"size": 1798}, "size=1798 asks for more rows than digits has, 1797"),
        ("digits", {"label": "y"}, "label='y' names a column of a table, and 'digits' is none"),
        ("digits", {"form": "integer", "scale": "standard"}, "would undo form='integer'"),
        ("moons", {"side": 32}, r"side=32 is an option of images, and moons has rows of shape \(2,\)"),
        ("digits", {"side": 7}, "side=7 is less than the 8 x 8 pixels of digits"),
        ("digits", {"side": 16}, "the 8 x 8 pixels of digits do not fill half of side=16"),
        ("moons", {"form": "binary"}, "moons: form='binary' expects every value to be 0 or 1"),
    ],
)
def test_bad_options_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(source, **options)


def test_side_pads_images_evenly():
    plain, wide = data.load("digits", form="integer"), data.load("digits", form="integer", side=11)
    assert same(wide.x[:, :, 1:9, 1:9], plain.x)
    assert wide.event_shape == (1, 11, 11)
    assert wide.x.sum() == plain.x.sum()


@pytest.mark.parametrize("source", ["nothing.csv", "some/folder", "train-images-idx3-ubyte"])
def test_a_missing_file_is_an_error(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or folder {source}"):
        data.load(source)


def test_a_source_of_another_type_is_refused():
    array: Any = np.zeros((3, 2))
    with pytest.raises(TypeError, match="name of a data set or a path, got ndarray"):
        data.load(array)


def test_a_label_column_needs_a_table(tmp_path):
    np.save(tmp_path / "t.npy", TABLE)
    with pytest.raises(ValueError, match=r"label='y' names a column of a table, and .*t\.npy is none"):
        data.load(tmp_path / "t.npy", label="y")
