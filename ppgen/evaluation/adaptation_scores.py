"""Scores of a classifier in a target domain without labels, by which to choose among adapted models.

A scorer reads what a model predicts for held-out rows and returns a number that is larger for a better model. Notation:
p_i are the class probabilities (K,) of row i of the target, m their number, h its features; in the source (n rows)
labels y are known. None of the scores sees a label of the target, so each rests on an assumption, and fails where that
is wrong:

    importance_weighted        E_0 [w right], w = p_1(h) / p_0(h), in [0, 1]. It assumes that labels depend on features
                               as in the source. It cannot rank models that make no error in the source, and is noisy
                               where few rows carry the weight (Sugiyama et al. 2007,
                               https://jmlr.org/papers/v8/sugiyama07a.html)
    deep_embedded_validation   -(E_0 [w l] + eta (E_0 [w] - 1)), eta = -Cov(w l, w) / Var(w), with l the log loss: the
                               same with a control variate of known mean, in nats, mostly below 0. The assumption is the
                               same: features that are alike, with classes exchanged, have a good score (You et al.
                               2019, https://proceedings.mlr.press/v97/you19a.html)
    entropy                    -E_1 [H(p)], in [-log K, 0] nats. It assumes that errors are uncertain. A model that
                               gives all rows one label, or is sure of wrong ones, has the best score (Morerio et al.
                               2018, https://arxiv.org/abs/1711.10288)
    mutual_information         H(E_1 [p]) - E_1 [H(p)], in [0, log K] nats: InfoMax, sure of each row, and of all
                               classes about equally often. It fails where the target's classes are unbalanced, and
                               where classes are exchanged (Shi & Sha 2012, https://arxiv.org/abs/1206.6438)
    soft_neighborhood_density  E_1 [H(P_i)], P_ij = softmax_j(cos(p_i, p_j) / T) over j other than i, in
                               [0, log(m - 1)] nats: each row has many neighbors of the same prediction. Fewer predicted
                               classes have a better score, one class the best (Saito et al. 2021,
                               https://arxiv.org/abs/2108.10860)
    cluster_agreement          AMI(predicted labels, K clusters of h / |h| by k-means), the adjusted mutual information,
                               0 if independent and 1 if the same: classes are clusters of the features. It does
                               not depend on how sure predictions are, so that it compares losses of different kinds. It
                               fails where classes overlap or have several clusters, and where they are exchanged
                               (ClassAMI, Musgrave et al. 2022, https://arxiv.org/abs/2208.07360)
    circular_validation        the accuracy in the source of a model that is trained in reverse, on the target with the
                               predicted labels, in [0, 1]. Classes that are exchanged on the way there are exchanged
                               again on the way back, which it does not notice; it costs a second training (Bruzzone &
                               Marconcini 2010, https://doi.org/10.1109/TPAMI.2009.57; Ganin et al. 2016, section 5.1)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ppgen.evaluation.domains import density_ratio
from ppgen.evaluation.two_sample import flatten_sample, flatten_samples
from ppgen.models import DANN
from ppgen.nets import lookup

__all__ = ["SCORERS", "TransferPredictions", "dev_risk", "transfer_scores"]

TEMPERATURE = 0.05  # of the neighborhoods, as in the paper
ROWS_AT_ONCE = 1000  # of the matrix of neighbors


@dataclass(frozen=True, eq=False)
class TransferPredictions:
    """What a model predicts for held-out rows of a source and a target; :meth:`of` makes it from a model.

    Args:
        source: The class probabilities (n, K) in the source.
        labels: The labels (n,) of the source.
        target: The class probabilities (m, K) in the target.
        source_features: Features (n, width) of the source; scores by density ratios and clusters need features.
        target_features: Features (m, width) of the target.
        reverse: For `circular_validation`, the labels (n,) that a model trained in reverse predicts in the source.

    Raises:
        ValueError: For shapes that do not fit, rows that do not sum to one, or labels outside 0 .. K - 1.
    """

    source: np.ndarray
    labels: np.ndarray
    target: np.ndarray
    source_features: np.ndarray | None = None
    target_features: np.ndarray | None = None
    reverse: np.ndarray | None = None

    def __post_init__(self) -> None:
        p, q = self.source, self.target
        if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
            raise ValueError(f"expected probabilities (n, K) and (m, K) of source and target, got {p.shape}, {q.shape}")
        for name, rows in (("source", p), ("target", q)):
            if not (np.isfinite(rows).all() and (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3)):
                raise ValueError(f"{name}: expected probabilities, which are not negative and sum to one in each row")
        for name, given in (("labels", self.labels), ("reverse", self.reverse)):
            if given is not None and given.shape != (len(p),):
                raise ValueError(f"{name}: expected a label for each of the {len(p)} rows, got {given.shape}")
        if len(p) and not 0 <= self.labels.min() <= self.labels.max() < p.shape[1]:
            raise ValueError(f"labels: expected 0 .. {p.shape[1] - 1}, got {self.labels.min()} .. {self.labels.max()}")

    @classmethod
    def of(cls, model: DANN, x: Tensor, y: Tensor, target: Tensor, *, reverse: Tensor | None = None) -> Self:
        """What a `ppgen.models.DANN` predicts; a Bayesian one with the same draws of its weights each time.

        Args:
            model: The model.
            x: Held-out rows (n, *event_shape) of the source.
            y: Their labels (n,).
            target: Held-out rows (m, *event_shape) of the target.
            reverse: As in the class.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            p, q = model.predict_proba(x, d=0).double(), model.predict_proba(target).double()
        tensors = (p, y, q, model.features_of(x, d=0), model.features_of(target), reverse)
        return cls(*(None if part is None else part.numpy(force=True) for part in tensors))  # type: ignore[arg-type]

    def ratio(self) -> np.ndarray:
        """The density ratio w (n,) of the features at the rows of the source, with mean one.

        Raises:
            ValueError: If the features are missing.
        """
        if self.source_features is None or self.target_features is None:
            raise ValueError("scores by density ratios need source_features and target_features, got None")
        features = flatten_samples(self.source_features, self.target_features, names=("source", "target"))
        return density_ratio(*features)


def transfer_scores(predictions: TransferPredictions, scorers: Sequence[str] | None = None) -> dict[str, float]:
    """Scores a model in a target domain without labels. Larger is better, and only scores of one kind compare.

    Args:
        predictions: What the model predicts for held-out rows.
        scorers: Keys of `SCORERS`; all that the predictions suffice for if left out.

    Returns:
        The scores by name.

    Raises:
        ValueError: For an unknown scorer, or predictions that lack what one needs.

    Example:
        >>> import numpy as np
        >>> from ppgen.evaluation import TransferPredictions, transfer_scores
        >>> sure, even = np.array([[1.0, 0.0], [0.0, 1.0]]), np.full((2, 2), 0.5)
        >>> transfer_scores(TransferPredictions(sure, np.array([0, 1]), sure), ["mutual_information"])
        {'mutual_information': 0.6931471805599453}
        >>> transfer_scores(TransferPredictions(sure, np.array([0, 1]), even), ["mutual_information"])
        {'mutual_information': 0.0}
    """
    if scorers is None:
        lacking = set() if predictions.source_features is not None else {"importance_weighted", DEV}
        lacking |= set() if predictions.target_features is not None else {"importance_weighted", DEV, CLUSTERS}
        lacking |= set() if predictions.reverse is not None else {"circular_validation"}
        scorers = [name for name in SCORERS if name not in lacking]
    return {name: lookup(SCORERS, name, option="scorer")(predictions) for name in scorers}


def dev_risk(losses: np.ndarray, weights: np.ndarray) -> float:
    """E [w l] with the control variate E [w] - 1, whose mean is zero: see the module.

    Args:
        losses: The losses l (n,) in the source.
        weights: The density ratios w (n,), on the scale on which their mean is one up to noise.
    """
    weighted = losses * weights
    variance = weights.var(ddof=1)
    eta = -np.cov(weighted, weights)[0, 1] / variance if variance > 0 else 0.0
    return float(weighted.mean() + eta * (weights.mean() - 1))


def _importance_weighted(p: TransferPredictions) -> float:
    weights, right = p.ratio(), p.source.argmax(1) == p.labels
    return float((weights * right).sum() / weights.sum())


def _deep_embedded_validation(p: TransferPredictions) -> float:
    chosen = np.take_along_axis(p.source, p.labels[:, None], 1)[:, 0]
    return -dev_risk(-np.log(chosen.clip(1e-15)), p.ratio())


def _entropy(p: TransferPredictions) -> float:
    return -float(_entropies(p.target).mean())


def _mutual_information(p: TransferPredictions) -> float:
    q = p.target
    return float(_entropies(q.mean(0)) - _entropies(q).mean())


def _soft_neighborhood_density(p: TransferPredictions) -> float:
    q = p.target
    if len(q) < 2:
        raise ValueError(f"soft_neighborhood_density: expected at least 2 rows of the target, got {len(q)}")
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(q), ROWS_AT_ONCE):
        near = q[start : start + ROWS_AT_ONCE] @ q.T / TEMPERATURE
        np.put_along_axis(near, np.arange(start, start + len(near))[:, None], -math.inf, 1)  # a row is no neighbor
        near = np.exp(near - near.max(1, keepdims=True))
        total += float(_entropies(near / near.sum(1, keepdims=True)).sum())
    return total / len(q)


def _cluster_agreement(p: TransferPredictions) -> float:
    from sklearn.cluster import KMeans  # late, because it is slow to import
    from sklearn.metrics import adjusted_mutual_info_score

    if p.target_features is None:
        raise ValueError(f"{CLUSTERS} needs target_features, got None")
    h = flatten_sample(p.target_features, "target_features", least=2)
    h = h / np.linalg.norm(h, axis=1, keepdims=True).clip(np.finfo(float).tiny)
    labels = p.target.argmax(1)
    if len(np.unique(labels)) == 1:
        return 0.0  # one label for all rows; if there is one cluster too, the AMI would be 1
    clusters = KMeans(min(p.target.shape[1], len(np.unique(h, axis=0))), n_init=3, random_state=0).fit_predict(h)
    return float(adjusted_mutual_info_score(labels, clusters))


def _circular_validation(p: TransferPredictions) -> float:
    if p.reverse is None:
        raise ValueError(
            "circular_validation needs reverse, the labels that a model trained on the target with predicted labels "
            "gives the source; ppgen.tuning.tune_adaptation trains it"
        )
    return float((p.reverse == p.labels).mean())


def _entropies(p: np.ndarray) -> np.ndarray:
    """-sum_k p_k log p_k of the last axis."""
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)


DEV, CLUSTERS = "deep_embedded_validation", "cluster_agreement"

SCORERS: dict[str, Callable[[TransferPredictions], float]] = {
    "importance_weighted": _importance_weighted,
    DEV: _deep_embedded_validation,
    "entropy": _entropy,
    "mutual_information": _mutual_information,
    "soft_neighborhood_density": _soft_neighborhood_density,
    CLUSTERS: _cluster_agreement,
    "circular_validation": _circular_validation,
}
