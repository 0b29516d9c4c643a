"""A path, whatever it holds, into raw data: one reader for each kind of file."""

import re
from pathlib import Path

from ppgen.data.arrays import read_idx, read_numpy
from ppgen.data.images import read_images
from ppgen.data.raw import Raw, from_array
from ppgen.data.svmlight import SUFFIXES, read_svmlight
from ppgen.data.tables import read_csv, read_parquet

TABLES = {".csv": read_csv, ".parquet": read_parquet}
ARRAYS = {".npy": read_numpy, ".npz": read_numpy}
IDX = re.compile(r"(\.idx\w*|-ubyte)(\.gz)?$", re.IGNORECASE)
FILES = ", ".join([*TABLES, *ARRAYS, *SUFFIXES])
KINDS = f"a file {FILES}, IDX (.idx*, *-ubyte, or either with .gz), or a folder of images"


def looks_like_file(source: str) -> bool:
    """Whether a name that is no data set was meant as a path."""
    return "/" in source or "\\" in source or "." in source or bool(IDX.search(source))


def read(path: Path, label: str | None, features: int | None = None) -> Raw:
    """What the path holds. Raises FileNotFoundError, ValueError for a kind of file not listed in `KINDS`, and
    what the reader raises; `label` is for tables only, `features` for sparse ones."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    suffix = path.suffix.lower()
    if features is not None and suffix not in SUFFIXES:
        raise ValueError(f"features={features} is of sparse tables ({', '.join(SUFFIXES)}), and {path} is none")
    if path.is_file() and suffix in TABLES:
        return TABLES[suffix](path, label)
    if label is not None:
        raise ValueError(f"label={label!r} names a column of a table, and {path} is none; leave it out")
    if path.is_dir():
        return read_images(path)
    if suffix in SUFFIXES:
        return read_svmlight(path, features)
    if suffix in ARRAYS:
        return ARRAYS[suffix](path)
    if IDX.search(path.name):
        return from_array(read_idx(path), name=str(path))
    raise ValueError(f"{path}: expected {KINDS}")
