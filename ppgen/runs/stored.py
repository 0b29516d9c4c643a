"""What the record of a run folder has to hold: the schema of its metadata, and the tensors of each data set.

A digest tells that a file is as it was written, not that ppgen wrote it. So the record is checked here once, when it is
read, as `ppgen.training.stored` does with fits and checkpoints. A new entry of the metadata joins the schema.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppgen.data import FORMS
from ppgen.utils.schema import NATURAL, TEXT, Kind, check_entries, optional

__all__ = ["ORIGIN", "SPLITS", "check_part", "check_record"]

SPLITS = ("train", "validation", "test")
MOST_LEVELS = 2**16  # gray levels; images have at most 8 bits

WHOLE = Kind("a whole number of at most 64 bits", lambda v: type(v) is int and abs(v) <= 2**64)
ORIGIN = {"source": TEXT, "path": optional(TEXT), "rows": NATURAL, "dtype": TEXT, "digest": TEXT}
PART = {
    "name": TEXT,
    "form": Kind(f"one of {', '.join(FORMS)}", lambda v: isinstance(v, str) and v in FORMS),
    "columns": optional([TEXT]),
    "label_names": optional([TEXT]),
    "levels": optional(
        Kind(f"a number of levels from 2 to {MOST_LEVELS}", lambda v: NATURAL.test(v) and 2 <= v <= MOST_LEVELS)
    ),
    "classes": optional(WHOLE),
    "kept": Kind(
        f"{len(SPLITS)} numbers of rows, the first at least 1",
        lambda v: isinstance(v, list) and len(v) == len(SPLITS) and all(map(NATURAL.test, v)) and v[0] > 0,
    ),
    "origins": [ORIGIN],
}
RECORD = {"parts": {str: PART}, "seed": WHOLE, "threads": NATURAL, "versions": {str: TEXT}}


def check_record(metadata: Mapping[str, Any]) -> None:
    """Checks the metadata of a record of the format of this version.

    Args:
        metadata: the metadata.

    Raises:
        ValueError: if an entry is missing, or is not what it has to be; the message names it.
    """
    check_entries(metadata, RECORD)


def check_part(arrays: Mapping[str, NDArray], about: Mapping[str, Any]) -> None:
    """Checks the arrays of a data set, whose metadata `check_record` has checked.

    Args:
        arrays: the kept rows "x" and labels "y", "shift" and "scale", and the row numbers "splits/train" and so on.
        about: the metadata of the data set.

    Raises:
        ValueError: if an array is missing, or does not fit to the others; the message names it.
    """
    if "y" in arrays and about["classes"] is None:
        raise ValueError("classes: expected the number of classes, since there are labels y, got None")
    names = ["x", "shift", "scale", *(["y"] if about["classes"] is not None else []), *(f"splits/{s}" for s in SPLITS)]
    if wrong := [name for name in names if name not in arrays] or [name for name in arrays if name not in names]:
        raise ValueError(f"{wrong[0]}: the tensor {'is missing' if wrong[0] in names else 'belongs to nothing'}")
    x, n = arrays["x"], sum(about["kept"])
    dtype = np.dtype(np.int64 if about["form"] == "integer" else np.float32)
    if x.dtype != dtype or x.ndim < 2 or len(x) != n or not x.size:
        raise ValueError(f"x: expected {n} kept rows of {dtype}, got {_about(x)}")
    if not np.isfinite(x).all():
        raise ValueError("x: expected finite numbers")
    if dtype.kind == "i" and about["levels"] is not None and not ((x >= 0) & (x < about["levels"])).all():
        raise ValueError(f"x: expected gray levels 0 .. {about['levels'] - 1}, got {x.min()} to {x.max()}")
    for name in ("shift", "scale"):
        if arrays[name].dtype != np.float64 or arrays[name].shape != x.shape[1:]:
            raise ValueError(
                f"{name}: expected float64 {x.shape[1:]}, a number for each column, got {_about(arrays[name])}"
            )
    if (columns := about["columns"]) is not None and (len(columns),) != x.shape[1:]:
        raise ValueError(f"columns: expected as many names as a row has numbers, {x.shape[1:]}, got {len(columns)}")
    if not about["origins"]:
        raise ValueError("origins: expected at least one, got none")
    if (classes := about["classes"]) is not None:
        _check_labels(arrays["y"], n, classes, about["label_names"])
    _check_splits([arrays[f"splits/{split}"] for split in SPLITS], about["kept"])


def _check_labels(y: NDArray, n: int, classes: int, names: list[str] | None) -> None:
    if y.dtype != np.int64 or y.shape != (n,) or y.max() >= classes:
        raise ValueError(f"y: expected {n} labels below the number of classes, {classes}, got {_about(y)}")
    if names is not None and classes > len(names):
        raise ValueError(f"classes: expected at most {len(names)}, the number of label_names, got {classes}")


def _check_splits(splits: list[NDArray], kept: list[int]) -> None:
    """The splits are disjoint and together all rows."""
    for name, rows, count in zip(SPLITS, splits, kept, strict=True):
        if rows.dtype != np.int64 or rows.ndim != 1 or len(rows) < count:
            raise ValueError(f"splits/{name}: expected at least {count} row numbers, got {_about(rows)}")
    seen = np.zeros(sum(map(len, splits)), bool)
    for name, rows in zip(SPLITS, splits, strict=True):
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(seen)):
            raise ValueError(
                f"splits/{name}: expected row numbers 0 .. {len(seen) - 1}, got {rows.min()} to {rows.max()}"
            )
        seen[rows] = True
    if not seen.all():
        raise ValueError(f"splits: expected each of {len(seen)} rows once")


def _about(array: NDArray) -> str:
    return f"{array.dtype} {array.shape}"
