"""Sparse tables in svmlight's format, a line ``label index:value index:value ...`` a row, into dense ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppgen.data.raw import Raw

SUFFIXES = (".svmlight", ".libsvm")


def read_svmlight(path: Path, features: int | None = None) -> Raw:
    """Every index from 0 on is a column, and absent values are zero; labels are named as numbers are written.

    Args:
        features: how many columns there are, the largest index and one more if left out.

    Raises:
        ValueError: for a file that scikit-learn cannot read, or an index beyond the columns.
    """
    from sklearn.datasets import load_svmlight_file  # late: it takes its time to import

    try:
        x, y = load_svmlight_file(str(path), n_features=features, zero_based=True)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable svmlight file: {error}") from error
    values, codes = np.unique(y, return_inverse=True)
    return Raw(np.asarray(x.todense()), codes.astype(np.int64), label_names=tuple(f"{value:g}" for value in values))


def widened(raws: Sequence[Raw]) -> list[Raw]:
    """Tables with the columns of the widest, zero where a table has none: what their files leave out is zero too."""
    columns = max(raw.x.shape[1] for raw in raws)
    return [raw._replace(x=np.pad(raw.x, ((0, 0), (0, columns - raw.x.shape[1])))) for raw in raws]
