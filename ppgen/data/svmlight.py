"""Sparse tables in the svmlight format, with rows ``label index:value index:value ...``, read as dense ones."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppgen.data.raw import RawData
from ppgen.data.streaming import TO_STREAM
from ppgen.utils.regular_files import check_regular, check_size

__all__ = ["pad_columns", "read_svmlight"]


def read_svmlight(path: Path, features: int | None = None) -> RawData:
    """Reads a table. Every index from 0 on is a column, and absent values are zero; label names are written as numbers.

    Args:
        path: the file.
        features: the number of columns; None for the largest index plus one.

    Raises:
        ValueError: for a file that scikit-learn cannot read, or an index beyond the columns.
    """
    from sklearn.datasets import load_svmlight_file  # slow to import

    check_regular(path)
    try:
        x, y = load_svmlight_file(str(path), n_features=features, zero_based=True)
    except (ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is not a readable svmlight file: {error}") from error
    check_size(path, 8 * math.prod(x.shape), remedy=TO_STREAM)
    values, codes = np.unique(y, return_inverse=True)
    return RawData(np.asarray(x.todense()), codes.astype(np.int64), label_names=tuple(f"{value:g}" for value in values))


def pad_columns(raws: Sequence[RawData]) -> list[RawData]:
    """Pads tables with zeros to the columns of the widest, because values that a sparse file omits are zero."""
    columns = max(raw.x.shape[1] for raw in raws)
    return [raw._replace(x=np.pad(raw.x, ((0, 0), (0, columns - raw.x.shape[1])))) for raw in raws]
