"""Level and power of the two-sample tests, beside SciPy's and references that are written out in a few lines.

n = m = 100 rows of N(0, I), in 1 and in 10 dimensions. The power is against a shift of every mean, by .3 and by .15.
Entries are the shares of repeats with p <= .05, with the same samples for every test, and the seconds of all repeats.
Permutation tests use 199 permutations.

References are in brackets: `scipy.stats.ks_2samp`; MMD by its plain formula, with a Gaussian kernel at the median
distance and loops over permutations; and five-fold cross-validation with a binomial p-value, which does not hold its
level. The last row is the probability that `uncovered_data` flags any datum; it has power against dropped modes, not
against shifts.

    python tests/benchmarks/two_sample.py [--repeats 500]
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from ppgen.evaluation import classifier_test, energy_test, ks_test, mmd_test, uncovered_data

ROWS, PERMUTATIONS, ALPHA = 100, 199, 0.05
SHIFTS = {1: 0.3, 10: 0.15}

Test: TypeAlias = Callable[[np.ndarray, np.ndarray, int], float]


def scipy_ks(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    return stats.ks_2samp(x[:, 0], y[:, 0]).pvalue


def plain_mmd(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    rng, n = np.random.default_rng(seed), len(x)
    distance = pdist(np.concatenate([x, y]))
    k = squareform(np.exp(-(distance**2) / (2 * np.median(distance) ** 2)))

    def statistic(order: np.ndarray) -> float:
        a, b = order[:n], order[n:]
        xx, yy, xy = k[np.ix_(a, a)].sum(), k[np.ix_(b, b)].sum(), k[np.ix_(a, b)].mean()
        return xx / (n * (n - 1)) + yy / (len(b) * (len(b) - 1)) - 2 * xy

    observed = statistic(np.arange(len(k)))
    return (1 + sum(statistic(rng.permutation(len(k))) >= observed for _ in range(PERMUTATIONS))) / (1 + PERMUTATIONS)


def cross_validated(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    rows, labels = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    correct = cross_val_predict(LogisticRegression(), rows, labels, cv=folds) == labels
    return stats.binomtest(int(correct.sum()), len(labels), alternative="greater").pvalue


def p_value(test: Callable, **options: object) -> Test:
    return lambda x, y, seed: test(x, y, seed=seed, **options).p_value


# the p-value of a test, and the dimensions in which it is run
TESTS: dict[str, tuple[Test, tuple[int, ...]]] = {
    "[SciPy's ks_2samp]": (scipy_ks, (1,)),
    "[MMD, plain]": (plain_mmd, (10,)),
    "[cross-validated logistic, binomial]": (cross_validated, (10,)),
    "ks_test": (p_value(ks_test, permutations=PERMUTATIONS), (1, 10)),
    "mmd_test": (p_value(mmd_test, permutations=PERMUTATIONS), (1, 10)),
    "energy_test": (p_value(energy_test, permutations=PERMUTATIONS), (1, 10)),
    "classifier_test, logistic": (p_value(classifier_test), (1, 10)),
    "classifier_test, knn": (p_value(classifier_test, classifier="knn"), (1, 10)),
    "classifier_test, mlp, halves": (p_value(classifier_test, classifier="mlp", folds=2), (10,)),
    "uncovered_data, any datum": (
        lambda x, y, seed: uncovered_data(x, y, permutations=PERMUTATIONS, seed=seed).p_values.min(),
        (1, 10),
    ),
}


def samples(width: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, width])
    return rng.standard_normal((ROWS, width)), rng.standard_normal((ROWS, width)) + shift


def rejection_rate(test: Test, width: int, shift: float, repeats: int) -> float:
    return float(np.mean([test(*samples(width, shift, seed), seed) <= ALPHA for seed in range(repeats)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    errors = [(p * (1 - p) / repeats) ** 0.5 for p in (ALPHA, 0.5)]
    print(f"{repeats} repeats; standard errors {errors[0]:.3f} of a level of {ALPHA}, {errors[1]:.3f} of a power of .5")
    print(f"{'':36}{'1-D':>8}{'':8}{'10-D':>8}\n{'':36}" + f"{'level':>8}{'power':>8}" * 2 + f"{'s':>8}")
    for name, (test, widths) in TESTS.items():
        start = time.perf_counter()
        cells = ""
        for width, shift in SHIFTS.items():
            for offset in (0.0, shift):
                cells += f"{rejection_rate(test, width, offset, repeats):8.3f}" if width in widths else f"{'':8}"
        print(f"{name:36}{cells}{time.perf_counter() - start:8.0f}", flush=True)


if __name__ == "__main__":
    main()
