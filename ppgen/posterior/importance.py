"""Importance sampling from the guide: how much evidence there is, and how far the guide can be trusted.

With weights w_k = p(x, z_k) / q(z_k | x), z_k ~ q(z | x), k = 1 .. K, all per datum where latents are:

    elbo            mean_k log w_k
    log_marginal    log mean_k w_k        a lower bound of log p(x) in expectation, tight as K grows (Burda et al. 2016)
    error           sqrt(1 / effective - 1 / K)     standard error of log_marginal, by the delta method
    effective       (sum_k w_k)^2 / sum_k w_k^2     Kish's effective sample size
    pareto_k        tail shape of the weights (Vehtari et al. 2024): up to min(1 - 1 / log10 K, .7) they can be trusted

The largest weights are smoothed: replaced by quantiles of the generalized Pareto law that was fitted to them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from ppgen.utils.arviz_versions import psislw

__all__ = [
    "EvidenceEstimate",
    "Importance",
    "evidence",
    "importance_summary",
    "khat_threshold",
    "largest_moment_shifts",
    "moved",
    "psis_reliable",
    "resample",
    "smooth",
]

EQUAL_WEIGHTS_ESS_RATIO = 0.99  # share of effective draws from which on weights are all but equal
KHAT_USABLE = 0.7  # k-hat up to which averages over weights converge at a practical rate
KHAT_GOOD = 0.5  # k-hat up to which weights have a variance, and draws may serve as they are
NEGLIGIBLE_NATS = 7.0  # nats of evidence below another: less than a thousandth of its mass
MIN_DRAWS = 25  # draws from which a tail can be fitted


@dataclass(frozen=True)
class Importance:
    """Summaries (n,) of log weights (K, n), in nats, as the module has them.

    `log_smoothed` (K, n) are the smoothed log weights, normalized: their exponentials sum to one over draws.
    """

    elbo: np.ndarray
    log_marginal: np.ndarray
    error: np.ndarray
    pareto_k: np.ndarray
    effective: np.ndarray
    log_smoothed: np.ndarray


@dataclass(frozen=True)
class EvidenceEstimate:
    """An estimate of log p(x), in nats, with an interval.

    `pareto_k` says whether to believe it: the error is the true one for shapes below 1/2, where the weights' variance
    is finite, and too small beyond.
    """

    log_marginal: float
    error: float
    low: float
    high: float
    pareto_k: float


def khat_threshold(draws: int) -> float:
    """min(1 - 1 / log10 K, .7): the largest k-hat at which K draws are enough (Vehtari et al. 2024, section 3.2.4).

    Raises:
        ValueError: for fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"khat_threshold: expected at least 2 draws, got {draws}")
    return min(1 - 1 / math.log10(draws), KHAT_USABLE)


def psis_reliable(pareto_k: np.ndarray, effective: np.ndarray, draws: int, *, most: float | None = None) -> np.ndarray:
    """Whether weights can be relied on: their k-hat is at most `most`, or they are all but equal.

    Args:
        most: `khat_threshold` if left out; `KHAT_GOOD` asks whether draws may serve without weights.

    k-hat is the shape of a tail, whatever its size: a Gaussian guide to a logistic posterior has 1, though no draw may
    weigh twice as much as another. With an effective share of .99 or more there is no tail among the draws to speak of;
    what lies beyond them, `ppgen.diagnostics.tails` looks for.
    """
    most = khat_threshold(draws) if most is None else most
    return (pareto_k <= most) | (effective >= EQUAL_WEIGHTS_ESS_RATIO * draws)


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed, normalized log weights (K, n), and k-hat (n,), of log weights (K, n).

    Equal weights, as an exact posterior gives, have no tail: their k-hat is -inf. Weights that are NaN, +inf or all
    zero have nothing to be trusted: k-hat is inf, and the smoothed weights are NaN.

    Raises:
        ValueError: if there are fewer than 25 draws, too few for a tail to be fitted.
    """
    draws = len(log_weights)
    if draws < MIN_DRAWS:
        raise ValueError(f"importance weights: expected at least {MIN_DRAWS} draws to judge their tail, got {draws}")
    log_weights = np.asarray(log_weights, dtype=np.float64)
    khat = np.full(log_weights.shape[1], -np.inf)
    smoothed = np.full_like(log_weights, -math.log(draws))
    top = log_weights.max(0)
    bad = ~np.isfinite(top)  # NaN comes through the maximum
    khat[bad], smoothed[:, bad] = np.inf, np.nan
    for i in np.flatnonzero(~bad):
        if top[i] - log_weights[:, i].min() > 1e-8:
            log_smoothed, shape = psislw(log_weights[:, i])
            smoothed[:, i], khat[i] = log_smoothed, float(shape)
    return smoothed, khat


def importance_summary(log_weights: np.ndarray) -> Importance:
    """Summarizes log importance weights.

    Args:
        log_weights: (K, n), in nats.

    Raises:
        ValueError: if there are fewer than 25 draws, too few for a tail to be fitted.
    """
    smoothed, khat = smooth(log_weights)
    log_weights = np.asarray(log_weights, dtype=np.float64)
    draws, top = len(log_weights), log_weights.max(0)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of weights that are no numbers, or all zero
        weights = np.exp(log_weights - top)
        effective = weights.sum(0) ** 2 / (weights**2).sum(0)
        log_marginal = top + np.log(weights.mean(0))
        error = np.sqrt(np.maximum(1 / effective - 1 / draws, 0.0))
    return Importance(
        elbo=log_weights.mean(0),
        log_marginal=log_marginal,
        error=error,
        pareto_k=khat,
        effective=effective,
        log_smoothed=smoothed,
    )


def moved(z: np.ndarray, log_weights: np.ndarray, *, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How far weighted draws are from draws z (K, n) as they are: shifts of means and log ratios of deviations, (n,).

    Shifts are in weighted deviations. Both are zero where no two draws differ, and NaN where the weights are.

    Args:
        log_weights: normalized; of `among`.
        among: the draws that are weighted (M, n), z itself if left out.
    """
    among = z if among is None else among
    weights = np.exp(log_weights)
    mean, deviation, weighed = z.mean(0), z.std(0), weights @ among
    spread = np.sqrt(weights @ (among - weighed) ** 2)
    constant = np.ptp(among, axis=0) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        shift, log_ratio = (weighed - mean) / spread, np.log(spread / deviation)
    return np.where(constant, 0.0, shift), np.where(constant, 0.0, log_ratio)


def largest_moment_shifts(pairs: Iterable[tuple[np.ndarray, np.ndarray]], log_weights: np.ndarray) -> dict[str, float]:
    """The largest `shift` and `log_ratio`, as `moved` has them, without their signs, of several latents.

    Args:
        pairs: of each latent, draws as they are (K, ...) and the draws that are weighted (M, ...).
        log_weights: (M,), normalized.
    """
    largest = {"shift": 0.0, "log_ratio": 0.0}
    for z, among in pairs:
        parts = moved(z.reshape(len(z), -1), log_weights, among=among.reshape(len(among), -1))
        for name, part in zip(largest, parts, strict=True):
            largest[name] = max(largest[name], float(np.nanmax(np.abs(part), initial=0.0)))
    return largest


def evidence(log_weights: np.ndarray, *, level: float = 0.95) -> EvidenceEstimate:
    """Log p(x) by importance weights, with an interval by the delta method: log_marginal -+ z error.

    Weights per datum make the evidence of all data together: the sum, with the errors' squares added.

    Args:
        log_weights: (K,) or (K, n), in nats.
        level: of the interval, which a normal law of log_marginal would hold.

    Raises:
        ValueError: for a level outside (0, 1), and fewer than 25 draws.
    """
    if not 0 < level < 1:
        raise ValueError(f"evidence: expected a level between 0 and 1, got {level}")
    log_weights = np.asarray(log_weights)
    found = importance_summary(log_weights.reshape(len(log_weights), -1))
    total, error = float(found.log_marginal.sum()), float(np.sqrt((found.error**2).sum()))
    reach = float(norm.ppf((1 + level) / 2)) * error
    return EvidenceEstimate(total, error, total - reach, total + reach, float(found.pareto_k.max()))


def resample(
    log_weights: np.ndarray, *, size: int | None = None, replace: bool = True, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Which draws to take so that they are draws of the posterior: indices (size,) by weights.

    With replacement, systematic: a draw of weight w comes floor(size w) times or once more. Without, one draw after
    another by the weights of those left, which is right for a size that is small beside 1 / max w.

    Args:
        log_weights: (K,), of any normalization.
        size: how many; K with replacement and K / 10 without if left out.

    Raises:
        ValueError: if weights are not finite numbers or -inf, or without replacement size exceeds those above zero.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1 or not np.isfinite(log_weights.max(initial=-np.inf)):
        raise ValueError(f"resample: expected log weights (K,), one of them finite, got shape {log_weights.shape}")
    rng = np.random.default_rng(seed)
    size = (len(log_weights) if replace else max(1, len(log_weights) // 10)) if size is None else size
    if replace:
        cumulated = np.cumsum(np.exp(log_weights - log_weights.max()))
        points = (rng.uniform() + np.arange(size)) / size * cumulated[-1]
        return np.minimum(np.searchsorted(cumulated, points, side="right"), len(log_weights) - 1)
    if size > np.isfinite(log_weights).sum():
        raise ValueError(
            f"resample: expected at most {np.isfinite(log_weights).sum()} draws without replacement, as many as have a "
            f"weight, got size={size}"
        )
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))))[:size]
