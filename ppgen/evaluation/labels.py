"""Whether generated rows are recognizable as data of some label."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppgen.evaluation.two_sample import Rows, flatten_samples

__all__ = ["Agreement", "label_agreement"]


@dataclass(frozen=True)
class Agreement:
    """The agreement of two classifiers on generated rows.

    Attributes:
        share: The share of rows on which they agree.
        labels: (K,), the labels.
        drawn: (K,), the share of rows of each label.
    """

    share: float
    labels: np.ndarray
    drawn: np.ndarray


def label_agreement(data: Rows, y: Rows, generated: Rows) -> Agreement:
    """How often two different classifiers, fitted to labeled data, assign a generated row the same label.

    The classifiers are the nearest neighbor and a logistic regression on standardized columns. They mostly agree on
    held-out data, and agree only by chance on rows that resemble no label. Compare the result with that of held-out
    data. `Agreement.drawn` counts the labels of the nearest neighbors.

    Args:
        data: Rows (n, *event).
        y: Labels (n,).
        generated: Rows (m, *event).

    Raises:
        TypeError: As `ppgen.evaluation.ks_test`.
        ValueError: As `ppgen.evaluation.ks_test`, and if the labels are not (n,) or are all equal.
    """
    from sklearn.linear_model import LogisticRegression  # late, because it is slow to import
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, rows = flatten_samples(data, generated, names=("data", "generated"))
    labels = np.asarray(y.numpy(force=True) if isinstance(y, Tensor) else y)
    if labels.shape != (len(x),) or len(np.unique(labels)) < 2:
        raise ValueError(f"y: expected ({len(x)},) labels with at least two distinct values, got {labels.shape}")
    nearest = KNeighborsClassifier(1).fit(x, labels).predict(rows)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, labels).predict(rows)
    names = np.unique(labels)
    return Agreement(float((nearest == linear).mean()), names, (nearest[:, None] == names).mean(0))
