"""Sparse tables in svmlight's format, a line ``label index:value index:value ...`` a row, into dense ones."""

from pathlib import Path
from typing import Any

import numpy as np

from .raw import Raw

SUFFIXES = (".svmlight", ".libsvm")


def read_svmlight(path: Path, features: int | None = None) -> Raw:
    """Every index from 0 on is a column, and absent values are zero; labels are named as numbers are written.

    Args:
        features: how many columns there are, the largest index and one more if left out.

    Raises:
        ValueError: for a file that scikit-learn cannot read, or an index beyond the columns.
    """
    x, y = _sparse(path, features)
    values, codes = np.unique(y, return_inverse=True)
    return Raw(np.asarray(x.todense()), codes.astype(np.int64), label_names=tuple(f"{value:g}" for value in values))


def width(path: Path) -> int:
    """The largest index of a file and one more. Raises as `read_svmlight`."""
    return _sparse(path, None)[0].shape[1]


def _sparse(path: Path, features: int | None) -> Any:
    """A sparse matrix and the labels' numbers."""
    from sklearn.datasets import load_svmlight_file  # late: it takes its time to import

    try:
        return load_svmlight_file(str(path), n_features=features, zero_based=True)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable svmlight file: {error}") from error
