"""Rows into train, validation and test, every class in each by its share."""

import numpy as np
from numpy.random import Generator


def split_rows(
    n: int, y: np.ndarray | None, *, validation: float, test: float, rng: Generator
) -> dict[str, np.ndarray]:
    """Disjoint row numbers of "train", "validation" and "test" that cover 0 .. n - 1, in random order.

    The r-th of the c rows of a class, in random order, stands at the quantile (r + 1/2)/c of that class. Rows
    sorted by quantile, ties at random, therefore hold every class in its proportion wherever they are cut:
    the first round(test n) are the test rows, the next round(validation n) the validation rows. For classes
    of equal size every share is right to within two rows. Without labels all rows are one class.

    Raises ValueError for fractions outside [0, 1), or that leave no row to train on.
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
