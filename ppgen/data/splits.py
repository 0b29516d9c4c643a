"""Stratified splits of rows into train, validation and test."""

import numpy as np
from numpy.random import Generator

__all__ = ["split_rows"]


def split_rows(
    n: int, y: np.ndarray | None, *, validation: float, test: float, rng: Generator
) -> dict[str, np.ndarray]:
    """Splits the row numbers 0 .. n - 1 at random, each class by its share.

    The r-th of the c rows of a class, in random order, has the quantile (r + 1/2)/c in that class. The rows are sorted
    by quantile, with ties in random order, so that every interval of them has each class in its proportion. The first
    round(test n) rows are the test rows, the next round(validation n) the validation rows. For classes of equal size
    every share is correct to within two rows. Without labels all rows are one class.

    Args:
        n: the number of rows.
        y: the labels (n,), or None.
        validation: the fraction of validation rows.
        test: the fraction of test rows.
        rng: the random generator.

    Returns:
        The row numbers of "train", "validation" and "test", disjoint and together all rows, in random order.

    Raises:
        ValueError: for fractions outside [0, 1), or that leave no training row.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(
            f"expected fractions validation and test, each at least 0 and together below 1, got {validation} and {test}"
        )
    shuffled = rng.permutation(n)
    classes = np.zeros(n, np.int64) if y is None else y[shuffled]
    by_class = shuffled[np.argsort(classes, kind="stable")]
    counts = np.unique(classes, return_counts=True)[1]
    quantile = np.concatenate([(np.arange(c) + 0.5) / c for c in counts])
    order = by_class[np.lexsort((rng.random(n), quantile))]

    cut = round(test * n)
    test_rows, validation_rows, train_rows = np.split(order, [cut, cut + round(validation * n)])
    if not len(train_rows):
        raise ValueError(f"validation={validation} and test={test} leave none of {n} rows to train on")
    return {"train": train_rows, "validation": validation_rows, "test": test_rows}
