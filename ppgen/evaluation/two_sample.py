"""Tests of P = Q, from n rows x of the law P and m rows y of the law Q, each row an event of d numbers once flattened.

Pooled there are N = n + m rows. A test has a statistic T, large where the laws differ, and a p-value that holds its
level, P(p <= a) <= a for every a where P = Q, at every n and m. It is exact in one of two ways. Either the pooled rows
are dealt anew into n and m, which under P = Q changes nothing in law, and of B such deals with statistics T_b

    p = (1 + #{b: T_b >= T}) / (1 + B)        (Phipson and Smyth 2010; at least 1 / (1 + B))

or the law of T under P = Q is known. All take NumPy arrays or torch tensors and compute in double precision; none
touches the global random state.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ppgen.metrics.kernel import MMD, Block, EnergyDistance, PairMetric
from ppgen.metrics.metric import squared_distances

__all__ = ["TwoSample", "classifier_test", "energy_test", "ks_test", "mmd_test"]

Rows: TypeAlias = np.ndarray | Tensor

BLOCK = 2**22  # entries of a matrix of distances that are held at a time
ENOUGH = 2000  # rows from which a median distance is taken, at most


@dataclass(frozen=True)
class TwoSample:
    """What a test found. `null` holds the statistics T_b (B,) of the deals, or is None where T's law was known."""

    name: str
    statistic: float
    p_value: float
    null: np.ndarray | None = None


def ks_test(x: Rows, y: Rows, *, projections: int = 100, permutations: int = 499, seed: int = 0) -> TwoSample:
    """Kolmogorov-Smirnov: T = max_t |F_n(t) - G_m(t)|, the gap between the empirical distribution functions.

    For d = 1 that is `scipy.stats.ks_2samp`, whose p is exact up to 10,000 rows of a sample and asymptotic beyond;
    nothing is dealt. Otherwise the columns are divided by their pooled
    standard deviations, T is the mean over random directions u, uniform on the sphere, of the gap between the
    distribution functions of u.x and u.y, and p comes from deals. A constant column tells nothing and stays out of it.

    Args:
        x, y: (n, *event) and (m, *event).
        projections: how many directions.
        permutations: B.
        seed: of directions and deals.

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: for fewer than two rows, events that differ in shape, values that are not finite, or counts below 1.
    """
    x, y = paired_rows(x, y)
    at_least(1, projections=projections, permutations=permutations)
    if x.shape[1] == 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ks_2samp: Exact calculation", RuntimeWarning)  # goes on asymptotically
            found = stats.ks_2samp(x[:, 0], y[:, 0])
        return TwoSample("Kolmogorov-Smirnov", float(found.statistic), float(found.pvalue))
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    dealt = deal(len(x), len(y), permutations, rng)
    projected = _standardized(np.concatenate([x, y])) @ directions
    gaps = np.mean([_gaps(column, dealt) for column in projected.T], axis=0)
    return judged("sliced Kolmogorov-Smirnov", gaps)


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
    """Maximum mean discrepancy: T = MMD_u^2, the unbiased estimate of Gretton et al. 2012, p from deals.

    Args:
        x, y: (n, *event) and (m, *event).
        kernel, bandwidth, scales: as `ppgen.metrics.MMD` has them. The median is over all pairs of up to 2000 of the
            pooled rows, whichever sample they are from. One kernel at the median suits means that differ; smaller ones
            see spread and fine structure better, and scales=(.5, 1, 2, 4) is a compromise.
        permutations: B.
        seed: of the deals.

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: as `ks_test`, and for options that `ppgen.metrics.MMD` does not take.
    """
    return _pair_test(MMD(kernel=kernel, bandwidth=bandwidth, scales=scales), x, y, permutations, seed)


def energy_test(x: Rows, y: Rows, *, exponent: float = 1.0, permutations: int = 499, seed: int = 0) -> TwoSample:
    """Energy distance: T = 2 E|X - Y|^b - E|X - X'|^b - E|Y - Y'|^b, unbiased, with b the `exponent`; p from deals.

    Székely and Rizzo 2013. Columns count by their units: standardize those that have different ones.

    Args:
        x, y: (n, *event) and (m, *event).
        exponent: between 0 and 2, both excluded.
        permutations: B.
        seed: of the deals.

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: as `ks_test`, and for an exponent out of range.
    """
    return _pair_test(EnergyDistance(exponent=exponent), x, y, permutations, seed)


def classifier_test(x: Rows, y: Rows, *, classifier: Any = "logistic", folds: int = 5, seed: int = 0) -> TwoSample:
    """Can a classifier tell them apart? T is its accuracy on rows that it has not seen (Lopez-Paz and Oquab 2017).

    Ordinary cross-validation fits each fold's classifier on the labels of the others, so that folds err together and
    the binomial p-value is too small. Here the samples are cut at random into folds, and fold f = 2, 3, ... is
    scored by a classifier fitted on the folds before it alone. Of its n_f + m_f rows the m_f with the highest scores
    are called y, ties at random. With P = Q the number that are called so rightly is then hypergeometric whatever the
    classifier, independently from fold to fold, and p is the exact tail of their sum. T is balanced accuracy, the mean
    of the shares of x and of y called rightly, and 0.5 by chance at all sizes.

    Args:
        x, y: (n, *event) and (m, *event).
        classifier: "logistic" (linear: sees means), "knn" (sqrt of the training rows many neighbors), "mlp" (one
            layer of 32), all after standardization, which leaves constant columns at zero; or a scikit-learn
            classifier with `predict_proba` or `decision_function`, of which a clone is fitted to the flattened rows.
        folds: how many; two are one split in halves.
        seed: of the folds, ties and the network's weights.

    Raises:
        TypeError: for anything but arrays of real numbers, or a classifier that has no scores.
        ValueError: as `ks_test`, for an unknown classifier, or fewer rows of a sample than folds.
    """
    x, y = paired_rows(x, y)
    at_least(2, folds=folds)
    if min(len(x), len(y)) < folds:
        raise ValueError(
            f"classifier_test: expected a row of each sample in each of {folds} folds, got {len(x)} and {len(y)} rows; "
            f"take fewer folds"
        )
    rng = np.random.default_rng(seed)
    parts = [np.array_split(rng.permutation(sample), folds) for sample in (x, y)]
    right, called, calls = 0, 0, np.ones(1)
    for fold in range(1, folds):
        seen = [np.concatenate(part[:fold]) for part in parts]
        held = np.concatenate([part[fold] for part in parts])
        scores = _scores(classifier, seen[0], seen[1], held, seed)
        n, m = (len(part[fold]) for part in parts)
        highest = np.lexsort((rng.random(n + m), -scores))[:m]
        right += int((highest >= n).sum())
        called += m
        calls = np.convolve(calls, stats.hypergeom.pmf(np.arange(m + 1), n + m, m, m))
    others = sum(len(part) for part in parts[0][1:])
    accuracy = (right / called + (others - called + right) / others) / 2
    kind = classifier if isinstance(classifier, str) else type(classifier).__name__
    return TwoSample(f"classifier ({kind})", accuracy, min(1.0, float(calls[right:].sum())))


def paired_rows(
    x: Rows, y: Rows, *, names: tuple[str, str] = ("x", "y"), least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Both samples flattened to rows of double precision, (n, d) and (m, d), each of at least `least` rows.

    Raises TypeError and ValueError as `ks_test` says.
    """
    flat = [flat_rows(sample, name, least=least) for sample, name in zip((x, y), names, strict=True)]
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{names[0]} and {names[1]}: expected events of one shape, got {tuple(x.shape[1:])} and "
            f"{tuple(y.shape[1:])}; reshape one of them"
        )
    return flat[0], flat[1]


def flat_rows(sample: Rows, name: str, *, least: int) -> np.ndarray:
    """One sample as `paired_rows` has it, called `name` in its errors."""
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
        raise ValueError(f"{name}: {bad} of {len(values)} rows hold values that are not finite; drop or fill them")
    return flat


def deal(n: int, m: int, deals: int, rng: np.random.Generator) -> np.ndarray:
    """Which of the N pooled rows are dealt to the first sample, (N, 1 + B): the truth first, then B random deals."""
    dealt = np.tile(np.arange(n + m) < n, (1 + deals, 1))
    dealt[1:] = rng.permuted(dealt[1:], axis=1)
    return np.ascontiguousarray(dealt.T)


def blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of x (n, d) from y (m, d) in blocks of rows of x, so that never n m of them are held."""
    rows = max(1, BLOCK // len(y))
    for start in range(0, len(x), rows):
        block = slice(start, min(start + rows, len(x)))
        yield block, squared_distances(x[block], y)


def _pair_test(metric: PairMetric, x: Rows, y: Rows, permutations: int, seed: int) -> TwoSample:
    """The quadratic form of a pair metric for all deals at once.

    With a (N,) the indicator of the first sample and K the similarities with an empty diagonal, all three sums of
    pairs follow from the matrix product K a: those within x from a.Ka, the others from the row sums of K.
    """
    x, y = paired_rows(x, y)
    at_least(1, permutations=permutations)
    rng, n, m = np.random.default_rng(seed), len(x), len(y)
    pooled = torch.as_tensor(np.concatenate([x, y]))
    some = pooled[rng.permutation(n + m)[:ENOUGH]]
    equal = some.new_ones(len(some))
    unit = metric.unit([Block(some, some, equal, equal, 0)])
    a = torch.as_tensor(deal(n, m, permutations, rng), dtype=torch.float64)
    within, from_x, total = torch.zeros(a.shape[1], dtype=a.dtype), torch.zeros(a.shape[1], dtype=a.dtype), 0.0
    for block, d2 in blocks(pooled, pooled):
        k = metric.similarity(d2 / unit)
        k.diagonal(block.start).zero_()
        within += (a[block] * (k @ a)).sum(0)
        from_x += k.sum(1) @ a[block]
        total += float(k.sum())
    across = from_x - within
    statistics = within / (n * (n - 1)) + (total - from_x - across) / (m * (m - 1)) - 2 * across / (n * m)
    return judged(metric.name, statistics.numpy())


def _gaps(values: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """The Kolmogorov-Smirnov statistic of values (N,) for each deal (N, 1 + B)."""
    order = np.argsort(values)
    # a step counts where a run of equal values ends; equal rows may be projected to values a rounding error apart
    ends = np.append(np.diff(values[order]) > 1e-9, True)
    rank, n, m = 1 + np.flatnonzero(ends), int(dealt[:, 0].sum()), int((~dealt[:, 0]).sum())
    below = np.cumsum(dealt[order], axis=0, dtype=np.int32)[ends]
    # F - G = below / n - (rank - below) / m, in units of 1 / nm, where all is whole and ties between deals are exact
    gaps = below * np.float64(n + m)
    gaps -= (n * rank)[:, None]
    return np.abs(gaps, out=gaps).max(axis=0) / (n * m)


def judged(name: str, statistics: np.ndarray) -> TwoSample:
    """The result of a test whose deals, the true one first, have these statistics (1 + B,)."""
    statistic, null = float(statistics[0]), statistics[1:]
    slack = 1e-9 * np.abs(statistics).max()  # ties that rounding hides count as ties
    return TwoSample(name, statistic, float(1 + (null >= statistic - slack).sum()) / (1 + len(null)), null)


def _scores(classifier: Any, x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """How much each row looks like y to a classifier fitted to x and y."""
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    if isinstance(classifier, str):
        model = _named(classifier, len(x) + len(y), seed)
    elif hasattr(classifier, "predict_proba") or hasattr(classifier, "decision_function"):
        model = clone(classifier)
    else:
        raise TypeError(
            f"classifier: expected {', '.join(map(repr, NAMED))} or a scikit-learn classifier with predict_proba or "
            f"decision_function, got {classifier!r}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the level does not rest on convergence
        model.fit(np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)]))
    return model.predict_proba(rows)[:, 1] if hasattr(model, "predict_proba") else model.decision_function(rows)


NAMED = ("logistic", "knn", "mlp")


def _named(kind: str, rows: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind not in NAMED:
        raise ValueError(f"classifier: expected one of {', '.join(map(repr, NAMED))}, got {kind!r}")
    model = {
        "logistic": LogisticRegression(max_iter=1000),
        "knn": KNeighborsClassifier(n_neighbors=int(rows**0.5)),
        "mlp": MLPClassifier((32,), max_iter=100, random_state=seed),
    }[kind]
    return make_pipeline(StandardScaler(), model)


def _standardized(x: np.ndarray) -> np.ndarray:
    """Columns less their means, in units of their standard deviations; constant ones become zero, up to rounding."""
    return (x - x.mean(axis=0)) / np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)


def at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, got {count}")
