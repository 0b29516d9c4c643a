"""Two-sample tests of P = Q, from n rows x of the distribution P and m rows y of the distribution Q.

A row is an event, flattened to d numbers. There are N = n + m pooled rows. A test has a statistic T, which is large if
the distributions differ, and a p-value that controls the level, P(p <= a) <= a for every a if P = Q, for all n and m.
It is exact in one of two ways. Either the labels of the pooled rows are permuted, which does not change the
distribution of T if P = Q. With B permutations and their statistics T_b,

    p = (1 + #{b: T_b >= T}) / (1 + B),

which is at least 1 / (1 + B) (Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585). Or the distribution of T
under P = Q is known. All tests accept NumPy arrays and torch tensors and compute in double precision; none uses the
global random state.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ppgen.metrics.checks import check_integer
from ppgen.metrics.kernel import MMD, EnergyDistance, PairMetric
from ppgen.metrics.metric import squared_distances
from ppgen.metrics.pairs import PairBlock
from ppgen.nets import lookup

__all__ = ["TwoSample", "classifier_test", "energy_test", "ks_test", "mmd_test"]

Rows: TypeAlias = np.ndarray | Tensor

MAX_ENTRIES = 2**22  # of a matrix of distances, in memory at a time
MAX_MEDIAN_ROWS = 2000  # from which a median distance is computed


@dataclass(frozen=True)
class TwoSample:
    """The result of a two-sample test.

    Attributes:
        name: The name of the test.
        statistic: T.
        p_value: p.
        null: The statistics T_b (B,) of the permutations, or None if the distribution of T is known.
    """

    name: str
    statistic: float
    p_value: float
    null: np.ndarray | None = None


def ks_test(x: Rows, y: Rows, *, projections: int = 100, permutations: int = 499, seed: int = 0) -> TwoSample:
    """Kolmogorov-Smirnov test: T = max_t |F_n(t) - G_m(t)|, the distance of the empirical distribution functions.

    If d = 1 this is `scipy.stats.ks_2samp`, whose p-value is exact up to 10,000 rows of a sample and asymptotic beyond;
    there are no permutations. Otherwise the columns are divided by their pooled standard deviations, T is the mean over
    random directions u, uniform on the sphere, of the distance between the distribution functions of u.x and u.y, and
    the p-value comes from permutations. Constant columns are ignored.

    Args:
        x: Rows (n, *event).
        y: Rows (m, *event).
        projections: The number of directions.
        permutations: B.
        seed: The seed of the directions and permutations.

    Raises:
        TypeError: If a sample is not an array of real numbers.
        ValueError: If there are fewer than two rows, events differ in shape, values are not finite, or counts are below
            1.
    """
    x, y = flatten_samples(x, y)
    check_integer("projections", projections)
    check_integer("permutations", permutations)
    if x.shape[1] == 1:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "ks_2samp: Exact calculation", RuntimeWarning
            )  # falls back to asymptotics
            result = stats.ks_2samp(x[:, 0], y[:, 0])
        return TwoSample("Kolmogorov-Smirnov", float(result.statistic), float(result.pvalue))
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    labels = permute_labels(len(x), len(y), permutations, rng)
    projected = _standardized(np.concatenate([x, y])) @ directions
    statistics = np.mean([_ks_statistics(column, labels) for column in projected.T], axis=0)
    return permutation_result("sliced Kolmogorov-Smirnov", statistics)


def mmd_test(
    x: Rows,
    y: Rows,
    *,
    kernel: str | Callable[[Tensor], Tensor] = MMD.kernel,
    bandwidth: str | float = MMD.bandwidth,
    scales: Sequence[float] = (1.0,),
    permutations: int = 499,
    seed: int = 0,
) -> TwoSample:
    """Maximum mean discrepancy: T = MMD_u^2, the unbiased estimate, with a p-value from permutations.

    Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html. One kernel at the median bandwidth is best for
    means that differ; smaller bandwidths detect differences of spread and fine structure better, and
    ``scales=(.5, 1, 2, 4)`` is a compromise.

    Args:
        x: Rows (n, *event).
        y: Rows (m, *event).
        kernel: As in `ppgen.metrics.MMD`.
        bandwidth: As in `ppgen.metrics.MMD`. The median is over all pairs of up to 2000 of the pooled rows, from either
            sample.
        scales: As in `ppgen.metrics.MMD`.
        permutations: B.
        seed: The seed of the permutations.

    Raises:
        TypeError: If a sample is not an array of real numbers.
        ValueError: As `ks_test`, and as `ppgen.metrics.MMD`.

    Example:
        >>> import numpy as np
        >>> from ppgen import evaluation
        >>> x, y = np.random.default_rng(0).standard_normal((2, 50, 3))
        >>> evaluation.mmd_test(x, y + 1, permutations=99).p_value
        0.01
    """
    return _pair_test(MMD(kernel=kernel, bandwidth=bandwidth, scales=scales), x, y, permutations, seed)


def energy_test(x: Rows, y: Rows, *, exponent: float = 1.0, permutations: int = 499, seed: int = 0) -> TwoSample:
    """Energy distance: T = 2 E|X - Y|^b - E|X - X'|^b - E|Y - Y'|^b, unbiased, with a p-value from permutations.

    Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018. The result depends on the units of the columns:
    standardize columns that have different units.

    Args:
        x: Rows (n, *event).
        y: Rows (m, *event).
        exponent: b, between 0 and 2, both excluded.
        permutations: B.
        seed: The seed of the permutations.

    Raises:
        TypeError: If a sample is not an array of real numbers.
        ValueError: As `ks_test`, and if the exponent is out of range.
    """
    return _pair_test(EnergyDistance(exponent=exponent), x, y, permutations, seed)


def classifier_test(x: Rows, y: Rows, *, classifier: Any = "logistic", folds: int = 5, seed: int = 0) -> TwoSample:
    """Classifier two-sample test: T is the accuracy of a classifier of x against y on held-out rows.

    Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545. In ordinary cross-validation each fold's classifier is
    fitted on the labels of the other folds, so the errors of folds are dependent and the binomial p-value is too small.
    Here the samples are split at random into folds, and fold f = 2, 3, ... is scored by a classifier fitted on the
    folds before it alone. Of its n_f + m_f rows, the m_f with the highest scores are classified as y, with ties broken
    at random. If P = Q, the number of correct ones among them is then hypergeometric for any classifier, independently
    over folds, and p is the exact tail probability of their sum. T is the balanced accuracy, the mean of the shares of
    x and of y that are classified correctly; its expectation under P = Q is 0.5 for all sizes.

    Args:
        x: Rows (n, *event).
        y: Rows (m, *event).
        classifier: "logistic" (linear: detects means), "knn" (with the square root of the number of training rows as
            the number of neighbors) or "mlp" (one hidden layer of width 32), each after standardization, which leaves
            constant columns at zero. Or a scikit-learn classifier with `predict_proba` or `decision_function`, of which
            a clone is fitted to the flattened rows.
        folds: The number of folds; two are one split into halves.
        seed: The seed of the folds, the ties and the network's weights.

    Raises:
        TypeError: If a sample is not an array of real numbers, or the classifier has no scores.
        ValueError: As `ks_test`, if the classifier is unknown, or if a sample has fewer rows than there are folds.

    Example:
        >>> import numpy as np
        >>> from ppgen import evaluation
        >>> x, y = np.random.default_rng(0).standard_normal((2, 50, 3))
        >>> test = evaluation.classifier_test(x, y + 3)
        >>> test.statistic > 0.9, test.p_value < 0.01
        (True, True)
    """
    x, y = flatten_samples(x, y)
    check_integer("folds", folds, 2)
    if min(len(x), len(y)) < folds:
        raise ValueError(
            f"classifier_test: expected at least one row of each sample in each of {folds} folds, got {len(x)} and "
            f"{len(y)} rows; use fewer folds"
        )
    rng = np.random.default_rng(seed)
    parts = [np.array_split(rng.permutation(sample), folds) for sample in (x, y)]
    correct, total, distribution = 0, 0, np.ones(1)
    for fold in range(1, folds):
        training = [np.concatenate(part[:fold]) for part in parts]
        held_out = np.concatenate([part[fold] for part in parts])
        scores = _scores(classifier, training[0], training[1], held_out, seed)
        n, m = (len(part[fold]) for part in parts)
        highest = np.lexsort((rng.random(n + m), -scores))[:m]
        correct += int((highest >= n).sum())
        total += m
        distribution = np.convolve(distribution, stats.hypergeom.pmf(np.arange(m + 1), n + m, m, m))
    of_x = sum(len(part) for part in parts[0][1:])
    accuracy = (correct / total + (of_x - total + correct) / of_x) / 2
    kind = classifier if isinstance(classifier, str) else type(classifier).__name__
    return TwoSample(f"classifier ({kind})", accuracy, min(1.0, float(distribution[correct:].sum())))


def flatten_samples(
    x: Rows, y: Rows, *, names: tuple[str, str] = ("x", "y"), least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Both samples as rows in double precision, (n, d) and (m, d).

    Args:
        x: Rows (n, *event).
        y: Rows (m, *event).
        names: The names of the samples, for error messages.
        least: The smallest number of rows allowed.

    Raises:
        TypeError: As `ks_test`.
        ValueError: As `ks_test`.
    """
    flat = [flatten_sample(sample, name, least=least) for sample, name in zip((x, y), names, strict=True)]
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{names[0]} and {names[1]}: expected events of the same shape, got {tuple(x.shape[1:])} and "
            f"{tuple(y.shape[1:])}; reshape one of them"
        )
    return flat[0], flat[1]


def flatten_sample(sample: Rows, name: str, *, least: int) -> np.ndarray:
    """A sample as rows in double precision, (n, d).

    Args:
        sample: Rows (n, *event).
        name: The name of the sample, for error messages.
        least: The smallest number of rows allowed.

    Raises:
        TypeError: As `ks_test`.
        ValueError: As `ks_test`.
    """
    if not isinstance(sample, np.ndarray | Tensor):
        raise TypeError(f"{name}: expected a NumPy array or a torch tensor, got {type(sample).__name__}")
    real = not sample.is_complex() if isinstance(sample, Tensor) else sample.dtype.kind in "biuf"
    if not real:
        raise TypeError(f"{name}: expected real numbers, got dtype {sample.dtype}")
    values = sample.double().numpy(force=True) if isinstance(sample, Tensor) else sample
    if values.ndim == 0 or len(values) < least or values.size == 0:
        raise ValueError(f"{name}: expected (n, *event) with at least {least} rows, got shape {values.shape}")
    flat = values.reshape(len(values), -1).astype(np.float64)
    if bad := int((~np.isfinite(flat)).any(axis=1).sum()):
        raise ValueError(f"{name}: {bad} of {len(values)} rows have values that are not finite; drop or impute them")
    return flat


def permute_labels(n: int, m: int, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Which of the N pooled rows belong to the first sample, (N, 1 + B): first the true labels, then permutations.

    Args:
        n: The number of rows of the first sample.
        m: The number of rows of the second sample.
        permutations: B.
        rng: The generator of the permutations.
    """
    labels = np.tile(np.arange(n + m) < n, (1 + permutations, 1))
    labels[1:] = rng.permuted(labels[1:], axis=1)
    return np.ascontiguousarray(labels.T)


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of x (n, d) from y (m, d) in blocks of rows of x, so that the whole matrix is never in memory.

    Args:
        x: Rows (n, d).
        y: Rows (m, d).

    Yields:
        The rows of the block, and their squared distances from all of y.
    """
    size = max(1, MAX_ENTRIES // len(y))
    for start in range(0, len(x), size):
        block = slice(start, min(start + size, len(x)))
        yield block, squared_distances(x[block], y)


def permutation_result(name: str, statistics: np.ndarray) -> TwoSample:
    """The result of a permutation test.

    Args:
        name: The name of the test.
        statistics: (1 + B,) of the true labels first, then of the permutations.
    """
    statistic, null = float(statistics[0]), statistics[1:]
    tolerance = 1e-9 * np.abs(statistics).max()  # statistics that differ by rounding count as ties
    return TwoSample(name, statistic, float(1 + (null >= statistic - tolerance).sum()) / (1 + len(null)), null)


def _pair_test(metric: PairMetric, x: Rows, y: Rows, permutations: int, seed: int) -> TwoSample:
    """The quadratic form of a pair metric for all permutations at once.

    With a (N,) the indicator of the first sample and K the similarities with a diagonal of zeros, all three sums over
    pairs follow from the matrix product K a: the pairs within x from a.Ka, the others from the row sums of K.
    """
    x, y = flatten_samples(x, y)
    check_integer("permutations", permutations)
    rng, n, m = np.random.default_rng(seed), len(x), len(y)
    pooled = torch.as_tensor(np.concatenate([x, y]))
    subset = pooled[rng.permutation(n + m)[:MAX_MEDIAN_ROWS]]
    equal = subset.new_ones(len(subset))
    unit = metric.unit([PairBlock(subset, subset, equal, equal, 0)])
    a = torch.as_tensor(permute_labels(n, m, permutations, rng), dtype=torch.float64)
    within_x, from_x, total = torch.zeros(a.shape[1], dtype=a.dtype), torch.zeros(a.shape[1], dtype=a.dtype), 0.0
    for block, d2 in distance_blocks(pooled, pooled):
        k = metric.similarity(d2 / unit)
        k.diagonal(block.start).zero_()
        within_x += (a[block] * (k @ a)).sum(0)
        from_x += k.sum(1) @ a[block]
        total += float(k.sum())
    between = from_x - within_x
    within_y = total - from_x - between
    statistics = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
    return permutation_result(metric.name, statistics.numpy())


def _ks_statistics(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The Kolmogorov-Smirnov statistic of values (N,) for each column of labels (N, 1 + B)."""
    order = np.argsort(values)
    # a step is where a run of equal values ends; the projections of equal rows may differ by a rounding error
    ends = np.append(np.diff(values[order]) > 1e-9, True)
    rank, n, m = 1 + np.flatnonzero(ends), int(labels[:, 0].sum()), int((~labels[:, 0]).sum())
    count = np.cumsum(labels[order], axis=0, dtype=np.int32)[ends]
    # F - G = count / n - (rank - count) / m, in units of 1 / nm, which are integers, so that ties are exact
    difference = count * np.float64(n + m)
    difference -= (n * rank)[:, None]
    return np.abs(difference, out=difference).max(axis=0) / (n * m)


def _scores(classifier: Any, x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """The scores of rows under a classifier fitted to x and y; a high score means y."""
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    if isinstance(classifier, str):
        model = lookup(CLASSIFIERS, classifier, option="classifier")(len(x) + len(y), seed)
    elif hasattr(classifier, "predict_proba") or hasattr(classifier, "decision_function"):
        model = clone(classifier)
    else:
        raise TypeError(
            f"classifier: expected {', '.join(map(repr, CLASSIFIERS))} or a scikit-learn classifier with "
            f"predict_proba or decision_function, got {classifier!r}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the level does not depend on convergence
        model.fit(np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)]))
    return model.predict_proba(rows)[:, 1] if hasattr(model, "predict_proba") else model.decision_function(rows)


# scikit-learn is imported late, because it is slow to import
def _logistic(rows: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return _after_standardization(LogisticRegression(max_iter=1000))


def _knn(rows: int, seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return _after_standardization(KNeighborsClassifier(n_neighbors=int(rows**0.5)))


def _mlp(rows: int, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return _after_standardization(MLPClassifier((32,), max_iter=100, random_state=seed))


def _after_standardization(model: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), model)


CLASSIFIERS: dict[str, Callable[[int, int], Any]] = {"logistic": _logistic, "knn": _knn, "mlp": _mlp}
"""Classifiers as functions of the number of training rows and the seed."""


def _standardized(x: np.ndarray) -> np.ndarray:
    """Columns minus their means, divided by their standard deviations; constant columns become zero, up to rounding."""
    return (x - x.mean(axis=0)) / np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)
