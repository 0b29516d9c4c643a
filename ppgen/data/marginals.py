"""The marginal distribution of a column of numbers: values that are frequent, and quantiles of the others."""

from typing import Any

import numpy as np

__all__ = ["marginal_of"]

FREQUENT_SHARE, FREQUENT_ROWS = 0.005, 5  # a value is frequent from so large a part and so many of the rows on
QUANTILES = 201
LEAST_REST = 20  # fewer values that are not frequent have no quantiles of their own


def marginal_of(values: np.ndarray) -> dict[str, tuple[float, ...]]:
    """The frequent values and the quantiles of numbers.

    Args:
        values: numbers (n,), none missing.

    Returns:
        "frequent": values of at least 0.5 % and at least 5 of the rows; "quantiles": increasing values, the least and
        the largest among them; "levels": the part of the rows that is below each, increasing and inside (0, 1).
    """
    distinct, counts = np.unique(values, return_counts=True)
    frequent = distinct[counts >= max(FREQUENT_ROWS, FREQUENT_SHARE * len(values))]
    rest = values[~np.isin(values, frequent)]
    quantiles, levels = _quantiles(rest if len(rest) >= LEAST_REST else values)
    plain: Any = (frequent, quantiles, levels)
    return dict(zip(("frequent", "quantiles", "levels"), (tuple(part.tolist()) for part in plain), strict=True))


def _quantiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 1:  # the map to levels needs a slope
        return distinct[0] + np.array([-0.5, 0.5]), np.array([0.25, 0.75])
    below = (np.cumsum(counts) - counts / 2) / n  # in the middle of ties
    tails = np.array([0.0005, 0.001, 0.002, 0.005])
    levels = np.unique(np.concatenate([tails, np.linspace(0.01, 0.99, QUANTILES), 1 - tails]))
    chosen = np.unique(
        np.concatenate([[0], np.searchsorted(below, levels).clip(0, len(distinct) - 1), [len(distinct) - 1]])
    )
    return distinct[chosen], below[chosen]
