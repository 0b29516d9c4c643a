"""What is asked before a file is read: whether it fits into memory, and into what is free of it."""

import resource

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import dump_svmlight_file

from ppgen import data
from ppgen.utils import regular_files

X = np.arange(200.0).reshape(100, 2)


def images(path):
    path.mkdir()
    for name in "ab":
        Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(path / f"{name}.png")


KINDS = {
    "x.npy": (lambda path: np.save(path, X), "stream=True"),
    "x.npz": (lambda path: np.savez(path, x=X), "written as .npy or Parquet, stream=True"),
    "x.parquet": (lambda path: pd.DataFrame(X, columns=["a", "b"]).to_parquet(path), "stream=True"),
    "x.csv": (lambda path: pd.DataFrame(X, columns=["a", "b"]).to_csv(path, index=False), "written as .npy"),
    "x.svmlight": (lambda path: dump_svmlight_file(X, X[:, 0], str(path)), "written as .npy"),
    "images": (images, "stream=True"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_larger_than_the_memory_that_is_free_is_reported_before_it_is_read(name, tmp_path, monkeypatch):
    write, remedy = KINDS[name]
    write(tmp_path / name)
    monkeypatch.setattr(regular_files, "free_memory", lambda: 700)
    with pytest.warns(UserWarning, match=rf"{name}: it has . kB of data, and 700 bytes of memory are free, .*{remedy}"):
        data.load(tmp_path / name)


def test_a_stream_is_not_reported(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(regular_files, "free_memory", lambda: 700)
    assert len(data.load(tmp_path / "x.npy", stream=True).x) == 100


def test_free_memory_is_what_limits_leave(tmp_path, monkeypatch):
    assert 0 < regular_files.free_memory() <= regular_files.memory()
    for name, text in {"max": "50000", "current": "30000", "stat": "anon 9\ninactive_file 7000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(regular_files, "CGROUP", tmp_path)
    assert (regular_files.memory(), regular_files.free_memory()) == (50_000, 27_000)  # pages of files are given up
    (tmp_path / "memory.max").write_text("max\n")
    assert regular_files.memory() > 50_000
    limits = {resource.RLIMIT_AS: 2**62, resource.RLIMIT_DATA: 2**20}  # less than any process has
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert regular_files.free_memory() == 0
