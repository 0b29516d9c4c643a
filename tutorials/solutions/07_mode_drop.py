"""Solutions of the exercises of "Which data does a generator never draw?"."""

import math

import numpy as np
from scipy.special import rel_entr


def exercise_1() -> None:
    """Eight labels of equal probability, of which the generator draws seven."""
    e = 1 / 8
    p, q = np.full(8, e), np.r_[np.full(7, 1 / 7), 0]
    m = (p + q) / 2
    assert math.isclose(rel_entr(q, p).sum(), -math.log(1 - e))
    js = (rel_entr(p, m).sum() + rel_entr(q, m).sum()) / 2
    formula = ((1 - e) * math.log(2 * (1 - e) / (2 - e)) + e * math.log(2)) / 2 + math.log(2 / (2 - e)) / 2
    assert math.isclose(js, formula)
    assert round(js, 3) == 0.045
    assert math.isinf(rel_entr(p, q).sum())


def exercise_2() -> None:
    """The share of packs with the missing mode, within four standard errors."""
    k, n = 4, 100_000
    packs = np.random.default_rng(0).integers(8, size=(n, k))
    expected = 1 - (1 - 1 / 8) ** k
    found = (packs == 7).any(1).mean()
    assert abs(found - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def exercise_3() -> None:
    """The probability that some mode is missing is at most 25 (1 - 1/25)^n, by adding up over modes."""
    n = math.ceil(math.log(0.05 / 25) / math.log(1 - 1 / 25))
    assert n == 153
    rng = np.random.default_rng(0)
    complete = [len(np.unique(rng.integers(25, size=n))) == 25 for _ in range(4000)]
    assert np.mean(complete) > 0.95 - 4 * (0.05 * 0.95 / 4000) ** 0.5
