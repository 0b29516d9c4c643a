"""Solutions of the exercises of "A table with 20,000 groups"."""

import numpy as np
from scipy.stats import norm

MU, TAU, SIGMA, ROWS = 1.0, 2.0, 3.0, 5


def exercise_1() -> None:
    """The mean of the rows is N(mu, tau^2 + sigma^2 / n); the rest of the likelihood does not depend on theta."""
    rng = np.random.default_rng(0)
    y = rng.normal(MU, TAU) + SIGMA * rng.standard_normal(ROWS)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)  # for the weight exp(-x^2 / 2)
    theta = MU + TAU * nodes
    likelihood = norm.pdf(y, theta[:, None], SIGMA).prod(1)
    integral = (weights * likelihood).sum() / weights.sum()
    rest = norm.pdf(y, y.mean(), SIGMA).prod() / norm.pdf(0, 0, SIGMA / ROWS**0.5)
    assert np.isclose(integral, rest * norm.pdf(y.mean(), MU, (TAU**2 + SIGMA**2 / ROWS) ** 0.5))


def groups() -> tuple[np.ndarray, np.ndarray, float]:
    """Levels and means of 20,000 groups, and the share of the common mean in the estimate."""
    rng = np.random.default_rng(0)
    theta = MU + TAU * rng.standard_normal(20_000)
    mean = theta + SIGMA / ROWS**0.5 * rng.standard_normal(20_000)
    return theta, mean, (SIGMA**2 / ROWS) / (SIGMA**2 / ROWS + TAU**2)


def exercise_2() -> None:
    """The posterior variance is the expected squared error of the posterior mean."""
    theta, mean, kappa = groups()
    errors = {
        name: np.square(estimate - theta).mean()
        for name, estimate in {"shrunk": kappa * MU + (1 - kappa) * mean, "mean": mean, "common": MU}.items()
    }
    assert errors["shrunk"] < min(errors["mean"], errors["common"])
    assert np.isclose(errors["shrunk"], (1 - kappa) * SIGMA**2 / ROWS, rtol=0.05)


def exercise_3() -> None:
    """Calibrated on average over the groups that the prior makes, not for each level."""
    theta, mean, kappa = groups()
    half = norm.ppf(0.95) * ((1 - kappa) * SIGMA**2 / ROWS) ** 0.5
    inside = np.abs(kappa * MU + (1 - kappa) * mean - theta) < half
    assert abs(inside.mean() - 0.9) < 4 * (0.9 * 0.1 / len(theta)) ** 0.5
    assert inside[np.abs(theta - MU) > 2 * TAU].mean() < 0.85
