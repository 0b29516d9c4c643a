"""Importance sampling from the guide: how much evidence there is, and how far the guide can be trusted.

With weights w_k = p(x, z_k) / q(z_k | x), z_k ~ q(z | x), k = 1 .. K, all per datum where latents are:

    elbo            mean_k log w_k
    log_marginal    log mean_k w_k        a lower bound of log p(x) in expectation, tight as K grows (Burda et al. 2016)
    pareto_k        tail shape of the weights (Vehtari et al. 2024): up to .7 the weights can be trusted
"""

import math
from dataclasses import dataclass

import numpy as np

from ppgen.diagnostics.versions import psislw

__all__ = ["Importance", "weigh_up"]


@dataclass(frozen=True)
class Importance:
    """Summaries (n,) of log weights (K, n), in nats. `effective` is the Kish effective sample size of K draws."""

    elbo: np.ndarray
    log_marginal: np.ndarray
    pareto_k: np.ndarray
    effective: np.ndarray


def khat_threshold(draws: int) -> float:
    """The largest k-hat that so many draws can bear, min(1 - 1 / log10 S, .7) (Vehtari et al. 2024, equation 13)."""
    return min(1 - 1 / math.log10(draws), 0.7)


def weigh_up(log_weights: np.ndarray) -> Importance:
    """Summarises log importance weights.

    Args:
        log_weights: (K, n), in nats.

    Raises:
        ValueError: if there are fewer than 25 draws, too few for a tail to be fitted.
    """
    draws = len(log_weights)
    if draws < 25:
        raise ValueError(f"importance weights: expected at least 25 draws to judge their tail, got {draws}")
    log_weights = log_weights.astype(np.float64)
    top = log_weights.max(0)
    weights = np.exp(log_weights - top)
    spread = np.ptp(log_weights, axis=0)
    # equal weights, as an exact posterior gives, have no tail to fit
    khat = np.full(log_weights.shape[1], -np.inf)
    for i in np.flatnonzero(spread > 1e-8):
        khat[i] = float(psislw(log_weights[:, i])[1])
    return Importance(
        elbo=log_weights.mean(0),
        log_marginal=top + np.log(weights.mean(0)),
        pareto_k=khat,
        effective=weights.sum(0) ** 2 / (weights**2).sum(0),
    )
