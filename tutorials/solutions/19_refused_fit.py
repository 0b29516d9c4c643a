"""Solutions of the exercises of "A fit that is refused, and draws that can be trusted"."""

from itertools import pairwise

import numpy as np
from scipy.stats import beta, halfcauchy, kstest, norm

from ppgen import diagnostics


def exercise_1() -> None:
    """lambda = tan u with u uniform on (0, pi / 2), so kappa = cos^2 u: the arcsine distribution, Beta(1/2, 1/2)."""
    kappa = 1 / (1 + halfcauchy.rvs(size=20_000, random_state=0) ** 2)
    assert kstest(kappa, beta(0.5, 0.5).cdf).pvalue > 1e-3  # a false-positive rate of 1 in 1000
    assert ((kappa < 0.1) | (kappa > 0.9)).mean() > 0.4


def exercise_2() -> None:
    """pi_t has the precision (1 - t) + 4 t and the mean 4 t / precision."""
    rng = np.random.default_rng(0)
    times = np.linspace(0, 1, 11)
    log_evidence = 0.0
    for t, later in pairwise(times):
        precision = (1 - t) + 4 * t
        z = 4 * t / precision + rng.standard_normal(20_000) / precision**0.5
        log_ratio = np.log(3) + norm.logpdf(z, 1, 0.5) - norm.logpdf(z)
        log_evidence += np.log(np.exp((later - t) * log_ratio).mean())
    assert abs(np.exp(log_evidence) / 3 - 1) < 0.02


def exercise_3() -> None:
    """A power of a variable whose tail has the shape k has a tail of the shape power times k."""
    sigma = 0.6
    z = sigma * np.random.default_rng(0).standard_normal((20_000, 20))
    log_weights = norm.logpdf(z) - norm.logpdf(z, scale=sigma)
    whole, half = (diagnostics.importance_summary(power * log_weights).pareto_k.mean() for power in (1.0, 0.5))
    assert abs(half - whole / 2) < 0.05
