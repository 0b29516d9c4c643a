"""Readers of files and folders, one for each kind of file."""

import re
from collections.abc import Callable
from pathlib import Path

from ppgen.data.arrays import read_idx, read_numpy
from ppgen.data.image_format import AS_STORED, ImageFormat
from ppgen.data.images import read_images
from ppgen.data.raw import RawData, from_array
from ppgen.data.splits import SplitBy
from ppgen.data.svmlight import read_svmlight
from ppgen.data.tables import read_csv, read_parquet

__all__ = ["KINDS", "SPARSE_TABLES", "looks_like_file", "read"]

# readers by suffix: tables have a label column, sparse tables have their number of features
TABLES: dict[str, Callable[[Path, str | None, SplitBy | None], RawData]] = {".csv": read_csv, ".parquet": read_parquet}
ARRAYS: dict[str, Callable[[Path], RawData]] = {".npy": read_numpy, ".npz": read_numpy}
SPARSE_TABLES: dict[str, Callable[[Path, int | None], RawData]] = {
    ".svmlight": read_svmlight,
    ".libsvm": read_svmlight,
}
IDX = re.compile(r"(\.idx\w*|-ubyte)(\.gz)?$", re.IGNORECASE)
FILES = ", ".join([*TABLES, *ARRAYS, *SPARSE_TABLES])
KINDS = f"a file {FILES}, IDX (.idx*, *-ubyte, or either with .gz), or a folder of images"


def looks_like_file(source: str) -> bool:
    """Whether a name that is not a known data set looks like a path."""
    return "/" in source or "\\" in source or "." in source or bool(IDX.search(source))


def read(
    path: Path,
    label: str | None,
    features: int | None = None,
    image_format: ImageFormat = AS_STORED,
    split: SplitBy | None = None,
) -> RawData:
    """Reads a file, or a folder of images.

    Args:
        path: the file or folder.
        label: the column of labels, for tables only.
        features: the number of columns, for sparse tables only.
        image_format: the format of images, for folders only: arrays are converted after they are read.
        split: the column by which rows are split, for tables only.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for another kind of file, options that it does not have, and as its reader does.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    suffix = path.suffix.lower()
    if features is not None and suffix not in SPARSE_TABLES:
        raise ValueError(
            f"features={features} is an option of sparse tables ({', '.join(SPARSE_TABLES)}), and {path} is none"
        )
    if path.is_file() and suffix in TABLES:
        return TABLES[suffix](path, label, split)
    if label is not None:
        raise ValueError(f"label={label!r} names a column of a table, and {path} is none; leave it out")
    if split is not None:
        raise ValueError(f"split={str(split)!r} names a column of a table, and {path} is none; leave it out")
    if path.is_dir():
        return read_images(path, image_format)
    if suffix in SPARSE_TABLES:
        return SPARSE_TABLES[suffix](path, features)
    if suffix in ARRAYS:
        return ARRAYS[suffix](path)
    if IDX.search(path.name):
        return from_array(read_idx(path), name=str(path))
    raise ValueError(f"{path}: expected {KINDS}")
