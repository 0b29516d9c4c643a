"""Checks of the importance weights."""

import numpy as np

from ppgen.diagnostics.checks.check import BAD, RICHER, WEIGHTED, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.diagnostics.checks.moments import MAX_SHIFT, monte_carlo_error
from ppgen.posterior.importance import KHAT_GOOD, KHAT_USABLE, khat_threshold

__all__ = ["BAD_ROWS", "ESS_RATIO", "MISSED_TAIL_MASS", "PARETO_K"]

MAX_BAD_ROWS = 0.05
MAX_MISSED_TAIL_MASS = 0.01
REPARAMETERIZE = (
    "another parametrization of the model where one latent scales others: pyro.infer.reparam.LocScaleReparam"
)

RICHER_ROWS = 'a richer guide of each datum\'s latents, such as a full covariance or a flow (posterior="iaf" of a VAE)'


def pareto_k(draws: PosteriorDraws) -> Finding:
    """k-hat of the weights of the whole data set, or the median over data."""
    value = float(np.median(draws.pareto_k))
    if draws.per_datum:
        share = float((~draws.reliable(KHAT_GOOD)).mean())
        if bad_rows_share(draws) > MAX_BAD_ROWS or share <= MAX_BAD_ROWS:
            return Finding(value)
        return Finding(value, f"above {KHAT_GOOD} for {share:.0%} of data", WEIGHTED)
    bound = khat_threshold(draws.size)
    if _looks_beyond(draws) and _misses_tail(draws):
        bound = KHAT_GOOD
    elif draws.reliable():
        if draws.reliable(KHAT_GOOD):
            return Finding(value)
        return Finding(value, f"above {KHAT_GOOD}: the guide's draws have to be weighted", WEIGHTED)
    return Finding(value, f"above {bound:.2f}: the guide misses mass of the posterior", BAD, advise=True)


def bad_rows(draws: PosteriorDraws) -> Finding | None:
    """The share of data whose weights are unreliable."""
    if not draws.per_datum:
        return None
    share = bad_rows_share(draws)
    if share <= MAX_BAD_ROWS:
        return Finding(share)
    reason = f"above {MAX_BAD_ROWS}: k-hat of these data is above {khat_threshold(draws.size):.2f}"
    return Finding(share, reason, BAD, advise=True)


def bad_rows_share(draws: PosteriorDraws) -> float:
    """The share of data whose weights are unreliable, as a number."""
    return float((~draws.reliable()).mean())


def missed_tail_mass(draws: PosteriorDraws) -> Finding | None:
    """The posterior mass that the guide's draws miss in the tails, where equal weights cannot show it."""
    if not _looks_beyond(draws) or draws.tails is None:
        return None
    return Finding(draws.tails.missed_mass)


def ess_ratio(draws: PosteriorDraws) -> Finding:
    """The mean effective sample size over the number of draws."""
    return Finding(float(np.mean(draws.ess) / draws.size))


def _looks_beyond(draws: PosteriorDraws) -> bool:
    """Whether k-hat is large though the weights are almost equal, so that the draws alone decide nothing."""
    return not draws.per_datum and bool(draws.pareto_k > KHAT_GOOD and draws.reliable(KHAT_GOOD))


def _misses_tail(draws: PosteriorDraws) -> bool:
    """Whether draws from a wider proposal find mass, or move a moment, by more than is acceptable."""
    if (tails := draws.tails) is None:
        return False
    shifts = tails.moment_shifts.items()
    moved = any(value > MAX_SHIFT + monte_carlo_error(name, tails.ess) for name, value in shifts)
    return tails.missed_mass > MAX_MISSED_TAIL_MASS or moved


PARETO_K = Check(
    "pareto_k",
    "The tail shape k-hat of the importance weights, or its median if each datum has weights of its own.",
    pareto_k,
    f"It is good up to {KHAT_GOOD}, and weights serve up to min(1 - 1/log10(draws), {KHAT_USABLE}). Weights that are "
    "almost equal have no tail, unless draws from a wider distribution find one.",
    advice=(REPARAMETERIZE,),
    guide_advice=(RICHER,),
)
BAD_ROWS = Check(
    "bad_rows",
    "The share of data whose importance weights are unreliable.",
    bad_rows,
    f"It should be at most {MAX_BAD_ROWS}.",
    guide_advice=(RICHER_ROWS,),
)
MISSED_TAIL_MASS = Check(
    "missed_tail_mass",
    "The share of the posterior's mass that draws from a wider distribution find and the guide's draws miss.",
    missed_tail_mass,
    f"It should be at most {MAX_MISSED_TAIL_MASS}; k-hat is judged by it.",
)
ESS_RATIO = Check("ess_ratio", "The effective sample size of the weights, as a share of the draws.", ess_ratio)
