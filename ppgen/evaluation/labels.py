"""Whether generated rows pass for data of some label, where data have labels."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppgen.evaluation.two_sample import Rows, paired_rows

__all__ = ["Agreement", "label_agreement"]


@dataclass(frozen=True)
class Agreement:
    """`share` of rows on which two classifiers agree; `labels` (K,), and the share `drawn` (K,) of rows of each."""

    share: float
    labels: np.ndarray
    drawn: np.ndarray


def label_agreement(data: Rows, y: Rows, generated: Rows) -> Agreement:
    """How often two unlike classifiers, fitted to labeled data, give a generated row the same label.

    The classifiers are the nearest datum and a logistic regression on standardized columns. On data that neither has
    seen they mostly agree; on rows that are like no label they agree by luck. Take the figure of held-out data beside
    it. `drawn` counts the nearest datum's labels.

    Args:
        data, y: (n, *event) and (n,) labels.
        generated: (m, *event).

    Raises:
        TypeError, ValueError: as `two_sample.ks_test`; ValueError for labels that are not (n,) or are all the same.
    """
    from sklearn.linear_model import LogisticRegression  # late: it takes its time to import
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, rows = paired_rows(data, generated, names=("data", "generated"))
    labels = np.asarray(y.numpy(force=True) if isinstance(y, Tensor) else y)
    if labels.shape != (len(x),) or len(np.unique(labels)) < 2:
        raise ValueError(f"y: expected ({len(x)},) labels of at least two kinds, got {labels.shape}")
    nearest = KNeighborsClassifier(1).fit(x, labels).predict(rows)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, labels).predict(rows)
    kinds = np.unique(labels)
    return Agreement(float((nearest == linear).mean()), kinds, (nearest[:, None] == kinds).mean(0))
