"""Importance sampling from the guide: how large the evidence is, and how far the guide can be trusted.

With weights w_k = p(x, z_k) / q(z_k | x), z_k ~ q(z | x), k = 1 .. K, each per datum if the latents are:

    elbo            mean_k log w_k
    log_marginal    log mean_k w_k                  a lower bound of log p(x) in expectation, tight for large K
    error           sqrt(1 / ess - 1 / K)           standard error of log_marginal, by the delta method
    ess             (sum_k w_k)^2 / sum_k w_k^2     Kish's effective sample size
    pareto_k        the shape k-hat of the tail of the weights; they can be trusted up to min(1 - 1 / log10 K, 0.7)

The bound is from Burda et al. (2016, https://arxiv.org/abs/1509.00519). Pareto smoothing, from Vehtari et al. (2024,
https://arxiv.org/abs/1507.02646), replaces the largest weights by quantiles of the generalized Pareto distribution that
was fitted to them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from ppgen.utils.arviz_versions import psislw

__all__ = [
    "MAX_SHIFT",
    "EvidenceEstimate",
    "Importance",
    "evidence",
    "importance_summary",
    "khat_threshold",
    "largest_moment_shifts",
    "moment_shifts",
    "psis_reliable",
    "resample",
    "smooth",
]

KHAT_GOOD = 0.5  # up to this k-hat the weights have a finite variance, and unweighted draws are good enough
KHAT_USABLE = 0.7  # up to this k-hat weighted averages converge at a practical rate
MAX_SHIFT = 0.1  # up to which the weights may move a mean or a log standard deviation of draws without weights
EQUAL_WEIGHTS_ESS_RATIO = 0.99  # from this ESS / K on, the weights count as equal
NEGLIGIBLE_NATS = 7.0  # evidence this far below another's has less than a thousandth of its mass
ROUNDING = 100  # relative differences of numbers that are equal, such as the diagonal of a correlation matrix, in eps
MIN_DRAWS = 25  # needed to fit a tail


@dataclass(frozen=True)
class Importance:
    """A summary of log importance weights (K, n), with the module's formulas.

    Attributes:
        elbo: (n,), in nats.
        log_marginal: (n,), in nats.
        error: (n,), in nats.
        pareto_k: (n,), k-hat.
        ess: (n,), effective number of draws.
        log_smoothed: (K, n), smoothed log weights, normalized to a sum of one over draws.
    """

    elbo: np.ndarray
    log_marginal: np.ndarray
    error: np.ndarray
    pareto_k: np.ndarray
    ess: np.ndarray
    log_smoothed: np.ndarray

    @property
    def good_without_weights(self) -> np.ndarray:
        """Whether the draws are good enough to be used without their weights, (n,)."""
        return psis_reliable(self.pareto_k, self.ess, len(self.log_smoothed), max_khat=KHAT_GOOD)

    @property
    def surely_good_without_weights(self) -> np.ndarray:
        """The same with k-hat a standard error below its limit, so that other draws will most often agree, (n,).

        A tail of M draws gives k-hat the standard error (1 + k) / sqrt(M), that of the maximum likelihood estimate of a
        generalized Pareto shape (Smith 1987, https://doi.org/10.1214/aos/1176350499).
        """
        draws = len(self.log_smoothed)
        tail = min(0.2 * draws, 3 * math.sqrt(draws))
        max_khat = KHAT_GOOD - (1 + KHAT_GOOD) / math.sqrt(tail)
        return psis_reliable(self.pareto_k, self.ess, draws, max_khat=max_khat)


@dataclass(frozen=True)
class EvidenceEstimate:
    """An estimate of log p(x), in nats, with an interval.

    Attributes:
        log_marginal: the estimate.
        error: its standard error. It is too small if `pareto_k` is above 1/2, when the weights' variance is infinite.
        low: the lower end of the interval.
        high: the upper end of the interval.
        pareto_k: k-hat of the weights, the largest if there are several columns.
    """

    log_marginal: float
    error: float
    low: float
    high: float
    pareto_k: float


def khat_threshold(draws: int) -> float:
    """min(1 - 1 / log10 K, 0.7): the largest k-hat at which K draws are enough.

    From Vehtari et al. (2024, section 3.2.4, https://arxiv.org/abs/1507.02646).

    Args:
        draws: K.

    Raises:
        ValueError: for fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"khat_threshold: expected at least 2 draws, got {draws}")
    return min(1 - 1 / math.log10(draws), KHAT_USABLE)


def psis_reliable(pareto_k: np.ndarray, ess: np.ndarray, draws: int, *, max_khat: float | None = None) -> np.ndarray:
    """Whether importance weights can be relied on: k-hat is small enough, or the weights are nearly equal.

    k-hat is the shape of a tail, not its mass: a Gaussian guide of a logistic posterior has k-hat 1 though no weight is
    more than twice another. If ESS / K is at least 0.99, the draws contain no tail of any mass;
    `ppgen.diagnostics.tails` looks for a tail that they miss.

    Args:
        pareto_k: k-hat, (n,).
        ess: effective sample sizes, (n,).
        draws: K.
        max_khat: the largest k-hat, `khat_threshold(draws)` by default. With `KHAT_GOOD` the question is whether draws
            may be used without weights.
    """
    max_khat = khat_threshold(draws) if max_khat is None else max_khat
    return (pareto_k <= max_khat) | (ess >= EQUAL_WEIGHTS_ESS_RATIO * draws)


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed importance weights.

    Equal weights, as of an exact posterior, have no tail: k-hat is -inf. Weights that are NaN, +inf or all zero cannot
    be trusted: k-hat is inf, and the smoothed weights are NaN.

    Args:
        log_weights: (K, n), in nats.

    Returns:
        smoothed and normalized log weights (K, n); k-hat (n,).

    Raises:
        ValueError: for fewer than 25 draws, which are too few to fit a tail.
    """
    draws = len(log_weights)
    if draws < MIN_DRAWS:
        raise ValueError(f"importance weights: expected at least {MIN_DRAWS} draws to judge their tail, got {draws}")
    log_weights = np.asarray(log_weights, dtype=np.float64)
    khat = np.full(log_weights.shape[1], -np.inf)
    smoothed = np.full_like(log_weights, -math.log(draws))
    largest = log_weights.max(0)
    bad = ~np.isfinite(largest)  # the maximum of a column with a NaN is NaN
    khat[bad], smoothed[:, bad] = np.inf, np.nan
    for i in np.flatnonzero(~bad):
        if largest[i] - log_weights[:, i].min() > 1e-8:
            log_smoothed, shape = psislw(log_weights[:, i])
            smoothed[:, i], khat[i] = log_smoothed, float(shape)
    return smoothed, khat


def importance_summary(log_weights: np.ndarray) -> Importance:
    """Summarizes log importance weights.

    Args:
        log_weights: (K, n), in nats.

    Raises:
        ValueError: for fewer than 25 draws, which are too few to fit a tail.

    Example:
        >>> import numpy as np
        >>> from ppgen import diagnostics
        >>> log_weights = 0.1 * np.random.default_rng(0).standard_normal((1000, 1))  # log p(x, z) - log q(z | x)
        >>> summary = diagnostics.importance_summary(log_weights)
        >>> bool(summary.pareto_k[0] < 0.7), bool(summary.ess[0] > 900)
        (True, True)
    """
    smoothed, khat = smooth(log_weights)
    log_weights = np.asarray(log_weights, dtype=np.float64)
    draws, largest = len(log_weights), log_weights.max(0)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # weights that are NaN, infinite or all zero
        weights = np.exp(log_weights - largest)
        ess = weights.sum(0) ** 2 / (weights**2).sum(0)
        log_marginal = largest + np.log(weights.mean(0))
        error = np.sqrt(np.maximum(1 / ess - 1 / draws, 0.0))
    return Importance(
        elbo=log_weights.mean(0),
        log_marginal=log_marginal,
        error=error,
        pareto_k=khat,
        ess=ess,
        log_smoothed=smoothed,
    )


def moment_shifts(
    z: np.ndarray, log_weights: np.ndarray, *, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How much weighting changes the moments of draws.

        shift = (weighted mean - mean) / weighted sd,    log_ratio = log(weighted sd / sd)

    Both are zero where all draws are equal up to rounding, and NaN where the weights are.

    Args:
        z: unweighted draws, (K, n).
        log_weights: normalized log weights of `among`, (M,).
        among: the weighted draws, (M, n); `z` by default.

    Returns:
        shift (n,) and log_ratio (n,).
    """
    among = z if among is None else among
    weights = np.exp(log_weights)
    mean, sd, weighted_mean = z.mean(0), z.std(0), weights @ among
    weighted_sd = np.sqrt(weights @ (among - weighted_mean) ** 2)
    rounding = ROUNDING * np.finfo(np.result_type(among, np.float16)).eps
    constant = np.ptp(among, axis=0) <= rounding * np.abs(among).max(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift, log_ratio = (weighted_mean - mean) / weighted_sd, np.log(weighted_sd / sd)
    return np.where(constant, 0.0, shift), np.where(constant, 0.0, log_ratio)


def largest_moment_shifts(pairs: Iterable[tuple[np.ndarray, np.ndarray]], log_weights: np.ndarray) -> dict[str, float]:
    """The largest absolute `shift` and `log_ratio` of several latents, as `moment_shifts` defines them.

    Args:
        pairs: for each latent, the unweighted draws (K, ...) and the weighted draws (M, ...).
        log_weights: normalized, (M,).
    """
    largest = {"shift": 0.0, "log_ratio": 0.0}
    for z, among in pairs:
        shifts = moment_shifts(z.reshape(len(z), -1), log_weights, among=among.reshape(len(among), -1))
        for name, values in zip(largest, shifts, strict=True):
            largest[name] = max(largest[name], float(np.nanmax(np.abs(values), initial=0.0)))
    return largest


def evidence(log_weights: np.ndarray, *, level: float = 0.95) -> EvidenceEstimate:
    """Estimates log p(x) by importance sampling, with an interval by the delta method: log_marginal -+ z error.

    Weights per datum give the evidence of all data together: log_marginal is summed over data, and so are the squares
    of the errors.

    Args:
        log_weights: (K,) or (K, n), in nats.
        level: the coverage of the interval if log_marginal were normal.

    Raises:
        ValueError: for a level outside (0, 1), or fewer than 25 draws.
    """
    if not 0 < level < 1:
        raise ValueError(f"evidence: expected a level between 0 and 1, got {level}")
    log_weights = np.asarray(log_weights)
    summary = importance_summary(log_weights.reshape(len(log_weights), -1))
    total, error = float(summary.log_marginal.sum()), float(np.sqrt((summary.error**2).sum()))
    half_width = float(norm.ppf((1 + level) / 2)) * error
    return EvidenceEstimate(total, error, total - half_width, total + half_width, float(summary.pareto_k.max()))


def resample(
    log_weights: np.ndarray, *, size: int | None = None, replace: bool = True, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Indices (size,) of draws, chosen by weight so that they are approximate draws of the posterior.

    With replacement, resampling is systematic: a draw of weight w is chosen floor(size w) times or once more. Without
    replacement, draws are chosen one by one, by the weights of those that remain; this is accurate for a size that is
    small compared with 1 / max w.

    Args:
        log_weights: (K,), not necessarily normalized.
        size: how many; by default K with replacement and K / 10 without.
        replace: whether a draw may be chosen more than once.
        seed: a seed or a generator.

    Raises:
        ValueError: if no weight is finite, or one is NaN or +inf; without replacement, if `size` exceeds the number of
            positive weights.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1 or not np.isfinite(log_weights.max(initial=-np.inf)):
        raise ValueError(f"resample: expected log weights (K,), one of them finite, got shape {log_weights.shape}")
    rng = np.random.default_rng(seed)
    size = (len(log_weights) if replace else max(1, len(log_weights) // 10)) if size is None else size
    if replace:
        cumulative = np.cumsum(np.exp(log_weights - log_weights.max()))
        points = (rng.uniform() + np.arange(size)) / size * cumulative[-1]
        return np.minimum(np.searchsorted(cumulative, points, side="right"), len(log_weights) - 1)
    if size > np.isfinite(log_weights).sum():
        raise ValueError(
            f"resample: expected at most {np.isfinite(log_weights).sum()} draws without replacement, as many as have a "
            f"weight, got size={size}"
        )
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))))[:size]
