"""Rows that stay in their file have the values that they have in memory, for every kind of file and every form."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_files import CLASSES, COLOR, GRAY, NAMES, TABLE, class_folders, frame, same, save_images

from ppgen import data
from ppgen.data import streamed_files
from ppgen.data.streaming import RowNoise


def npy(array: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "x.npy", array)
        return folder / "x.npy"

    return write


def parquet(table: pd.DataFrame, rows: int = 5) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table.to_parquet(folder / "x.parquet", row_group_size=rows)
        return folder / "x.parquet"

    return write


def images(folder: Path) -> Path:
    save_images(folder / "images", COLOR)
    return folder / "images"


def classes(folder: Path) -> Path:
    class_folders(folder / "classes")
    return folder / "classes"


NUMBERS = pd.DataFrame({"u": [1.0, None, 3.0], "v": [1, 2, 3]})
KINDS: dict[str, tuple[Callable[[Path], Path], dict]] = {
    "float table": (npy(TABLE), {}),
    "table in Fortran order": (npy(np.asfortranarray(TABLE)), {}),
    "integer table": (npy(TABLE.astype(np.int32)), {"form": "integer"}),
    "binary table": (npy((TABLE > 0).astype(np.int8)), {"form": "binary"}),
    "unit table": (npy(np.abs(TABLE) / 10), {"form": "unit"}),
    "unscaled table": (npy(TABLE), {"scale": "none"}),
    "big-endian table": (npy(TABLE.astype(">f4")), {}),
    "gray images": (npy(GRAY), {}),
    "boolean images": (npy(GRAY > 99), {"form": "binary"}),
    "levels": (npy(GRAY), {"form": "levels"}),
    "padded images": (npy(GRAY), {"side": 6}),
    "scaled images": (npy(GRAY), {"scale": "standard"}),
    "float images": (npy(GRAY / 255.0), {"form": "unit"}),
    "parquet": (parquet(frame(NAMES).drop(columns="kind")), {}),
    "parquet with labels": (parquet(frame(NAMES)), {"label": "kind"}),
    "parquet of mixed columns": (parquet(pd.DataFrame({"a": [1, 2, 3] * 2, "b": ["4", "5.5", "6"] * 2}), 2), {}),
    "parquet with an index": (parquet(pd.DataFrame(TABLE, columns=list("abc"), index=np.arange(12)[::-1])), {}),
    "images": (images, {}),
    "unit images": (images, {"form": "unit"}),
    "classes of images": (classes, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, 3])
def test_streamed_rows_equal_those_in_memory(kind, size, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_files, "CACHE_BYTES", 100)  # one row group at a time
    write, options = KINDS[kind]
    path = write(tmp_path)
    options = {"validation": 0.2, "test": 0.3, "seed": 4, "size": size} | options
    if size is not None:
        options |= {"validation": 0.0, "test": 0.0}
    whole, streamed = data.load(path, **options), data.load(path, stream=True, **options)
    assert isinstance(streamed.x, data.StreamedArray)
    for name in ("form", "columns", "label_names", "levels", "event_shape"):
        assert getattr(streamed, name) == getattr(whole, name)
    assert streamed.scaler.state() == whole.scaler.state()
    assert streamed.x.dtype == whole.x.dtype
    assert streamed.x.shape == whole.x.shape
    assert same(np.asarray(streamed.x), whole.x)
    for i in range(len(whole.x)):
        assert same(streamed.x[i], whole.x[i])
    for name in whole.rows:
        assert same(streamed.rows[name], whole.rows[name])
        assert same(getattr(streamed, name).x[:], getattr(whole, name).x)
        if whole.y is not None:
            assert same(getattr(streamed, name).y, getattr(whole, name).y)
    rows = np.random.default_rng(0).integers(-len(whole.x), len(whole.x), 20)
    assert same(streamed.x[rows], whole.x[rows])
    assert same(streamed.x[1:3, 0], whole.x[1:3, 0])
    chosen = whole.x.reshape(len(whole.x), -1)[:, 0] > 0
    assert same(streamed.x[chosen], whole.x[chosen])
    assert same(pickle.loads(pickle.dumps(streamed.train.x))[:], whole.train.x)  # as a spawned worker gets it


def test_labels_of_a_stream_are_those_in_memory(tmp_path):
    streamed = data.load(parquet(frame(NAMES))(tmp_path), stream=True, label="kind")
    assert streamed.label_names == CLASSES
    assert len(streamed.x.shape) == 2


@pytest.mark.parametrize("shape", [(7,), (3, 5), (50, 3), (11, 1, 2, 2)])
def test_noise_of_any_rows_is_that_of_the_whole_array(shape):
    whole = np.random.default_rng(3).random(shape, dtype=np.float32)
    for rows in (np.arange(shape[0]), np.arange(shape[0])[::-1], np.array([2, 0, 1, 1, 2, 0])):
        noise = RowNoise(np.random.default_rng(3), rows).random((len(rows), *shape[1:]))
        assert same(noise, whole[rows])


def test_a_scaler_reads_in_chunks_what_it_reads_at_once(monkeypatch):
    x = np.random.default_rng(0).normal(3, 2, (101, 3))
    rows = np.random.default_rng(1).permutation(101)[:60]
    scaler = data.Scaler.fit(x, rows=rows)
    assert np.allclose(scaler.shift, x[rows].mean(0), rtol=1e-14)
    assert np.allclose(scaler.scale, x[rows].std(0), rtol=1e-14)
    monkeypatch.setattr("ppgen.data.checks.CHUNK", 7)
    chunked = data.Scaler.fit(x, rows=rows)
    assert np.allclose(chunked.shift, scaler.shift, rtol=1e-14)
    assert np.allclose(chunked.scale, scaler.scale, rtol=1e-14)
    offset = data.Scaler.fit(x + 1e9)
    assert np.allclose(offset.scale, x.std(0), rtol=1e-6)


def test_reading_a_mapped_file_maps_it(tmp_path):
    rows = streamed_files.MappedFile(npy(TABLE)(tmp_path))
    assert isinstance(rows._array, np.memmap)


ROW = r"1 of 36 values, in 1 of 12 rows \(the first is row 7\), column"


def invalid(value: float) -> np.ndarray:
    x = TABLE.copy()
    x[7, 1] = value
    return x


BAD: dict[str, tuple[Callable[[Path], Path], dict, str]] = {
    "NaN, when a scaler is fitted": (npy(invalid(np.nan)), {}, rf"x.npy: {ROW} 1, are not finite \(1 NaN"),
    "infinite in Parquet": (
        parquet(pd.DataFrame(invalid(np.inf), columns=list("abc"))),
        {},
        rf"x.parquet: {ROW} 'b', are not finite \(0 NaN, 1 infinite\)",
    ),
    "missing in Parquet": (
        parquet(NUMBERS, 1),
        {},
        r"1 of 6 values, in 1 of 3 rows \(the first is row 1\), column 'u'",
    ),
    "text": (
        parquet(pd.DataFrame({"a": ["1", "2", "x"]}), 2),
        {},
        r"row 2 \(the first is 0\), column 'a': expected a number, got 'x'",
    ),
    "another form": (npy(invalid(0.25).round(2)), {"form": "binary"}, r"row 0: form='binary' expects"),
    "one row of another form": (
        npy(np.where(invalid(0.25) == 0.25, 0.25, 1)),
        {"form": "integer"},
        r"x.npy, row 7: form='integer' expects every value to be an integer",
    ),
    "no label": (parquet(frame(NAMES)), {"label": "y"}, "has no column 'y' for labels, only 'u', 'v', 'w', 'kind'"),
    "channels last": (npy(np.zeros((2, 5, 5, 3))), {}, "channels seem to come last"),
    "objects": (npy(np.array(["a"])), {}, "expected real numbers"),
    "label of an array": (npy(TABLE), {"label": "y"}, "names a column of a table"),
    "features": (npy(TABLE), {"features": 3}, "an option of sparse tables"),
    "a toy data set": (lambda folder: "moons", {}, "stream=True reads files and folders of images, and 'moons' is"),
    "text file": (lambda folder: _written(folder / "x.csv"), {}, r"stream=True reads files .npy and .parquet"),
    "damaged": (lambda folder: _written(folder / "x.npy"), {}, "not a readable file of a NumPy array"),
    "damaged Parquet": (lambda folder: _written(folder / "x.parquet"), {}, "not a readable Parquet file"),
    "no rows": (parquet(pd.DataFrame({"a": np.zeros(0)})), {}, "expected at least one row of values"),
}


def _written(path: Path) -> Path:
    path.write_text("a,b\n1,2\n")
    return path


@pytest.mark.parametrize("case", BAD)
def test_errors_of_streams_name_the_row(case, tmp_path):
    write, options, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        np.asarray(data.load(write(tmp_path), stream=True, **options).x)


def test_a_row_that_is_wrong_is_noticed_when_it_is_read(tmp_path):
    streamed = data.load(npy(invalid(np.nan))(tmp_path), stream=True, scale="none")
    assert np.isfinite(streamed.x[:7]).all()
    with pytest.raises(ValueError, match=r"in 1 of 2 rows read together \(the first is row 7\), column 1, are not fin"):
        streamed.x[[6, 7]]
    save_images(tmp_path / "images", COLOR)
    save_images(tmp_path / "images" / "..", COLOR[:1, :, :2])
    (tmp_path / "0.png").rename(tmp_path / "images" / "9.png")
    images = data.load(tmp_path / "images", stream=True)
    with pytest.raises(ValueError, match=r"expected images of one size, .*9.png"):
        images.x[6]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*x.npy"):
        data.load(tmp_path / "x.npy", stream=True)


def test_row_numbers_out_of_range_are_an_error(tmp_path):
    streamed = data.load(npy(TABLE)(tmp_path), stream=True)
    for rows in (12, [0, -13]):
        with pytest.raises(IndexError, match="expected row numbers below 12"):
            streamed.x[rows]


def test_a_huge_row_group_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_files, "CACHE_BYTES", 10)
    path = parquet(frame(NAMES).drop(columns="kind"), 12)(tmp_path)
    with pytest.warns(UserWarning, match="its largest row group has 12 rows, .* row_group_size=100_000"):
        data.load(path, stream=True)


@pytest.mark.parametrize("options", [{"workers": -1}, {"prefetch": 0}, {"buffer": 0.5}])
def test_options_of_a_stream_are_checked(options):
    with pytest.raises(ValueError, match=f"Stream: {next(iter(options))} must be an integer of at least"):
        data.Stream(TABLE, **options)
