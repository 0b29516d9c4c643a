"""Checks of the importance weights."""

from dataclasses import replace

import numpy as np

from ppgen.diagnostics.checks.check import BAD, GOOD, RICHER, WEIGHTED, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws, on_one_line
from ppgen.diagnostics.checks.moments import monte_carlo_error
from ppgen.posterior.importance import KHAT_GOOD, KHAT_USABLE, MAX_SHIFT, khat_threshold

__all__ = ["BAD_ROWS", "ESS_RATIO", "MISSED_TAIL_MASS", "PARETO_K"]

MAX_BAD_ROWS = 0.05
MAX_MISSED_TAIL_MASS = 0.01  # if k-hat is large and weights are almost equal
MAX_MISSED_MASS = 0.05  # otherwise
SIMILAR_WEIGHTS_ESS_RATIO = 0.9  # from this ESS / draws on, the guide is close to the posterior where it draws
REPARAMETERIZE = (
    "another parametrization of the model where one latent scales others: pyro.infer.reparam.LocScaleReparam"
)

RICHER_ROWS = 'a richer guide of each datum\'s latents, such as a full covariance or a flow (posterior="iaf" of a VAE)'


def pareto_k(draws: PosteriorDraws) -> Finding:
    """As `judged_pareto_k`, with a note where a large k-hat is good."""
    finding = judged_pareto_k(draws)
    if finding.level != GOOD or finding.reason or not float(finding.value or 0.0) > KHAT_GOOD:
        return finding
    if draws.per_datum and bad_rows_share(draws) > MAX_BAD_ROWS:  # which another check reports
        return finding
    note = (
        f"above {KHAT_GOOD}, and good all the same: the effective sample size is {np.mean(draws.ess) / draws.size:.1%} "
        "of the draws, so that the weights are similar and their tail has no mass"
    )
    if not draws.per_datum and draws.tails is not None:
        note += f"; draws from wider distributions find {max(draws.tails.missed_mass, 0.0):.1%} beyond the guide"
    return replace(finding, note=note)


def judged_pareto_k(draws: PosteriorDraws) -> Finding:
    """k-hat of the weights of the whole data set, or the median over data."""
    value = float(np.median(draws.pareto_k))
    if draws.per_datum:
        share = float((~draws.reliable(KHAT_GOOD)).mean())
        if bad_rows_share(draws) > MAX_BAD_ROWS or share <= MAX_BAD_ROWS:
            return Finding(value)
        return Finding(value, f"above {KHAT_GOOD} for {share:.0%} of data", WEIGHTED)
    bound = khat_threshold(draws.size)
    if _has_equal_weights(draws) and _misses_tail(draws):
        bound = KHAT_GOOD
    elif _wider_draws_decide(draws) and not _misses_tail(draws):
        return Finding(value)
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
    """The posterior mass that draws from wider distributions find, and the guide's draws miss."""
    if draws.tails is None:
        return None
    value, noise = draws.tails.missed_mass, 2 * draws.tails.error
    if value <= MAX_MISSED_MASS + noise:
        return Finding(value)
    reason = (
        f"above {MAX_MISSED_MASS} (plus {noise:.2f} for Monte Carlo error): draws from wider distributions find mass "
        f"that the guide's draws miss, as at {on_one_line(draws.tails.location)}"
    )
    return Finding(value, reason, BAD, advise=True)


def ess_ratio(draws: PosteriorDraws) -> Finding:
    """The mean effective sample size over the number of draws."""
    return Finding(float(np.mean(draws.ess) / draws.size))


def _has_equal_weights(draws: PosteriorDraws) -> bool:
    """Whether k-hat is large though the weights are almost equal, so that the draws alone decide nothing."""
    return not draws.per_datum and bool(draws.pareto_k > KHAT_GOOD and draws.reliable(KHAT_GOOD))


def _wider_draws_decide(draws: PosteriorDraws) -> bool:
    """Whether the guide's weights are similar, and those of draws from wider distributions too have no tail.

    This is so for a logistic regression, which falls exponentially where a Gaussian guide falls faster: k-hat is above
    1 whatever the mass out there, and the wider distributions measure that mass.
    """
    if draws.per_datum or draws.ess < SIMILAR_WEIGHTS_ESS_RATIO * draws.size or draws.tails is None:
        return False
    return draws.tails.pareto_k <= KHAT_GOOD


def _misses_tail(draws: PosteriorDraws) -> bool:
    """Whether draws from wider distributions find mass, or move a moment, by more than is acceptable."""
    if (tails := draws.tails) is None:
        return False
    shifts = tails.moment_shifts.items()
    moved = any(value > MAX_SHIFT + monte_carlo_error(name, tails.ess) for name, value in shifts)
    return tails.missed_mass > MAX_MISSED_TAIL_MASS + 2 * tails.error or moved


PARETO_K = Check(
    "pareto_k",
    "The tail shape k-hat of the importance weights, or its median if each datum has weights of its own.",
    pareto_k,
    f"It is good up to {KHAT_GOOD}, and weights serve up to min(1 - 1/log10(draws), {KHAT_USABLE}). Weights that are "
    "almost equal have no tail, unless draws from wider distributions find one.",
    advice=(REPARAMETERIZE,),
    guide_advice=(RICHER,),
    of_weights=True,
)
BAD_ROWS = Check(
    "bad_rows",
    "The share of data whose importance weights are unreliable.",
    bad_rows,
    f"It should be at most {MAX_BAD_ROWS}.",
    guide_advice=(RICHER_ROWS,),
    of_weights=True,
)
MISSED_TAIL_MASS = Check(
    "missed_tail_mass",
    "The share of the posterior's mass that draws from wider distributions, the prior among them, find and the guide's "
    "draws miss.",
    missed_tail_mass,
    f"It should be at most {MAX_MISSED_MASS}, and at most {MAX_MISSED_TAIL_MASS} where k-hat is large though the "
    "weights are almost equal.",
    advice=("a prior that rules out where mass is missed",),
    guide_advice=(RICHER,),
)
ESS_RATIO = Check(
    "ess_ratio", "The effective sample size of the weights, as a share of the draws.", ess_ratio, of_weights=True
)
