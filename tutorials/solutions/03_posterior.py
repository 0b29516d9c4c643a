"""Solutions of the exercises of "Can this posterior be trusted?"."""

import arviz as az
import numpy as np
from scipy.stats import norm

from ppgen import diagnostics


def log_weights(sigma: float, draws: int, columns: int = 1) -> np.ndarray:
    """Of draws of N(0, sigma^2) for the posterior N(0, 1)."""
    z = sigma * np.random.default_rng(0).standard_normal((draws, columns))
    return norm.logpdf(z) - norm.logpdf(z, scale=sigma)


def exercise_1() -> None:
    """Log w is z^2 (1 / sigma^2 - 1) / 2 plus a constant, so w > t where z^2 > 2 log(t) sigma^2 / (1 - sigma^2).

    The guide's probability of that is about exp(-z^2 / (2 sigma^2)) = t^(-1 / (1 - sigma^2)), hence k = 1 - sigma^2.
    The logarithm in front of the tail makes estimates from finitely many draws a little smaller.
    """
    for sigma in (0.5, 0.7, 0.9):
        k = diagnostics.importance_summary(log_weights(sigma, 20_000, 20)).pareto_k.mean()
        assert abs(k - (1 - sigma**2)) < 0.12, (sigma, k)


def exercise_2() -> None:
    """E w^2 is the integral of p^2 / q, a Gaussian of precision 2 - 1 / sigma^2, which must be positive."""
    sigma, draws = 0.9, 100_000
    expected = draws * (2 * sigma**2 - 1) ** 0.5 / sigma**2
    found = diagnostics.importance_summary(log_weights(sigma, draws)).ess[0]
    assert abs(found / expected - 1) < 0.02


def exercise_3() -> None:
    """W is one and the variance of the means 0 and delta is delta^2 / 2."""
    delta = 1.5
    draws = np.random.default_rng(0).standard_normal((2, 20_000)) + np.array([[0.0], [delta]])
    found = float(az.rhat(draws, method="split"))
    # each chain counts as two, by its halves: the variance of the means 0, 0, delta, delta is delta^2 / 3
    assert abs(found - (1 + delta**2 / 3) ** 0.5) < 0.02
    within, between = draws.var(1, ddof=1).mean(), draws.mean(1).var(ddof=1)
    assert abs(((within + between) / within) ** 0.5 - (1 + delta**2 / 2) ** 0.5) < 0.02
