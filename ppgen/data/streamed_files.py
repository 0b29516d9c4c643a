"""Files and folders whose rows are read when they are asked for: .npy, .parquet and folders of images."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.arrays import map_numpy
from ppgen.data.checks import check
from ppgen.data.image_format import AS_STORED, ImageFormat
from ppgen.data.images import list_images, read_pixels
from ppgen.data.labels import encode_labels, row_number
from ppgen.data.raw import RawData, from_array
from ppgen.data.splits import SplitBy, SplitKeys
from ppgen.data.streaming import StreamedArray
from ppgen.data.tables import check_label, check_split, from_frame, readable_parquet
from ppgen.utils.regular_files import check_regular, check_size
from ppgen.utils.user_warnings import warn_user

__all__ = ["CACHE_BYTES", "open_stream"]

SMALLER_GROUPS = "write the file with smaller row groups, frame.to_parquet(path, row_group_size=100_000)"
CACHE_BYTES = 2**26  # of a Parquet file's row groups that are held in memory, unless one alone is larger


def open_stream(
    path: Path, label: str | None, image_format: ImageFormat = AS_STORED, split: SplitBy | None = None
) -> RawData:
    """Opens a file or a folder of images; x is a `StreamedArray`, and only labels are read.

    Args:
        path: a file .npy or .parquet, or a folder of images.
        label: the column of labels, for Parquet files only.
        image_format: the format of images, for folders only: arrays are converted when they are read.
        split: the column by which rows are split, for Parquet files only.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for another kind of file, and as the reader of the whole file does.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _open_parquet(path, label, split)
    if label is not None:
        raise ValueError(f"label={label!r} names a column of a table, and {path} is none; leave it out")
    if split is not None:
        raise ValueError(f"split={str(split)!r} names a column of a table, and {path} is none; leave it out")
    if path.is_dir():
        files, y, names = list_images(path)
        images: Any = ImageFiles(files, image_format)
        return RawData(images, y, None, names, 256)
    if path.suffix.lower() == ".npy":
        rows: Any = MappedFile(path)
        return RawData(rows, None, levels=rows.levels)
    raise ValueError(
        f"stream=True reads files .npy and .parquet and folders of images row by row, and {path} is none: leave it out "
        "to read the whole file, or write it as one of those"
    )


class MappedFile(StreamedArray):
    """The array of a .npy file, memory-mapped; see `ppgen.data.raw.from_array`.

    Args:
        path: the file.

    Raises:
        ValueError: for a file that NumPy cannot map, and data that are not real numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()
        check(self._array, name=str(path), finite=False)
        first = from_array(self._array[:1], name=str(path))
        self.shape, self.dtype, self.levels = (len(self._array), *first.x.shape[1:]), first.x.dtype, first.levels

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers."""
        return from_array(np.asarray(self._array[rows]), name=str(self.path)).x

    def _open(self) -> None:
        self._array = map_numpy(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}  # a mapped array would be pickled whole

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class ImageFiles(StreamedArray):
    """Images uint8 (n, channels, height, width), all of the size of the first one.

    Args:
        files: their files.
        image_format: the format to which each image is brought.
    """

    def __init__(self, files: list[Path], image_format: ImageFormat) -> None:
        self.files, self.image_format, first = files, image_format, read_pixels(files[0], image_format)
        self.shape, self.dtype = (len(files), *first.shape), first.dtype

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images of these numbers."""
        x = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, row in enumerate(rows):
            x[i] = read_pixels(self.files[row], self.image_format, like=(self.files[0], self.shape[1:]))
        return x


class ParquetRows(StreamedArray):
    """The columns of a Parquet file as float64 (n, features), decoded one row group at a time.

    The row groups that were read last are kept, `window` of them, so that rows of few groups are quick to read in any
    order.

    Args:
        path: the file.
        label: the column of labels, which is left out, or None.
        split: the column by which rows are split, which is left out, or None.
    """

    def __init__(self, path: Path, label: str | None, split: SplitBy | None = None) -> None:
        self.path, self.label, self.split = path, label, split
        self.left_out = [c for c in (label, split and split.column) if c is not None]
        self._open()
        with readable_parquet(path):
            metadata = self._file.metadata
            sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        if min(sizes, default=0) < 0 or not sum(sizes):
            raise ValueError(f"{path}: expected at least one row of values, got none")
        check_size(path, 8 * max(sizes) * metadata.num_columns, remedy=SMALLER_GROUPS)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        first = self._frame(0)
        names = [str(c) for c in first.columns]
        check_label(names, label, str(path))
        check_split(names, split, label, str(path))
        self.columns = tuple(name for name in names if name not in self.left_out)
        x = self._group(0)
        self.shape, self.dtype = (int(self.starts[-1]), x.shape[1]), x.dtype
        largest = max(sizes) * x.shape[1] * x.itemsize
        self.window = max(1, CACHE_BYTES // largest)
        if largest > 8 * CACHE_BYTES:
            warn_user(
                f"{path}: its largest row group has {max(sizes)} rows, {largest / 2**20:.0f} MiB, and is read whole: "
                f"{SMALLER_GROUPS}"
            )

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers."""
        x, groups = np.empty((len(rows), len(self.columns))), self.block_of(rows)
        for g in np.unique(groups):
            here = groups == g
            x[here] = self._group(int(g))[rows[here] - self.starts[g]]
        return x

    def labels(self) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """The labels of all rows, and their names."""
        return encode_labels(self._column(self.label), name=f"{self.path}, column {self.label!r}")

    def keys(self) -> SplitKeys | None:
        """The group or time of all rows, or None."""
        split = self.split
        return None if split is None else split.keys(self._column(split.column), name=str(self.path))

    def _column(self, name: str | None) -> Any:
        """A column of all rows."""
        check_size(self.path, 8 * len(self))
        with readable_parquet(self.path):
            return self._file.read(columns=[name], use_threads=False).to_pandas()[name]

    def block_of(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the row groups of rows."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _group(self, g: int) -> np.ndarray:
        if self._process != os.getpid():  # a reader is not shared with a forked process
            self._open()
        if g not in self._cache:
            start = int(self.starts[g])
            frame = self._frame(g).drop(columns=self.left_out)
            raw = from_frame(frame, name=str(self.path), label=None, location=lambda row: row_number(start + row))
            while len(self._cache) >= self.window:
                self._cache.popitem(last=False)
            self._cache[g] = raw.x
        self._cache.move_to_end(g)
        return self._cache[g]

    def _frame(self, g: int) -> Any:
        with readable_parquet(self.path):
            frame = self._file.read_row_group(g, use_threads=False).to_pandas()
        if len(frame) != (claimed := self.starts[g + 1] - self.starts[g]):
            raise ValueError(f"{self.path}: row group {g} claims {claimed} rows, and has {len(frame)}")
        return frame

    def _open(self) -> None:
        check_regular(self.path)
        with readable_parquet(self.path):
            from pyarrow import parquet

            self._file = parquet.ParquetFile(self.path)
        self._process, self._cache = os.getpid(), OrderedDict[int, np.ndarray]()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_file", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _open_parquet(path: Path, label: str | None, split: SplitBy | None) -> RawData:
    rows: Any = ParquetRows(path, label, split)
    y, names = (None, None) if label is None else rows.labels()
    return RawData(rows, y, rows.columns, names, keys=rows.keys())
