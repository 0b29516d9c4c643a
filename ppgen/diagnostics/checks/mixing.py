"""Checks of the draws of a sampler: whether it arrived at the posterior, and how many draws count as independent."""

from collections.abc import Callable

import numpy as np

from ppgen.diagnostics.checks.check import BAD, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.posterior.tempered_sampling import ENOUGH_ESS, MAX_MEMORY
from ppgen.utils.arviz_versions import ess

__all__ = ["BETA", "ESS_BULK", "ESS_TAIL", "MEMORY"]

MORE = "more time (budget) or draws for fit.refine"


def beta(draws: PosteriorDraws) -> Finding | None:
    """The inverse temperature that the sampler reached."""
    if not draws.sampled:
        return None
    value = float(draws.fit.metadata["refined"]["beta"])
    if value == 1.0:
        return Finding(value)
    reason = "below 1: the sampler ended on its way from the guide to the posterior"
    return Finding(value, reason, BAD, advise=True)


def memory(draws: PosteriorDraws) -> Finding | None:
    """The rank correlation of a sampler's draws with the points that its moves started from."""
    value = float(draws.fit.metadata["refined"].get("memory", np.nan)) if draws.sampled else np.nan
    if np.isnan(value):
        return None
    if value <= MAX_MEMORY:
        return Finding(value)
    reason = f"above {MAX_MEMORY}: draws still depend on where the sampler started, which all chains have in common"
    return Finding(value, reason, BAD, advise=True)


def ess_check(method: str) -> Callable[[PosteriorDraws], Finding | None]:
    """The check of the effective sample size of "bulk" or "tail"."""

    def compute(draws: PosteriorDraws) -> Finding | None:
        if not draws.sampled:
            return None
        found = ess(draws.posterior, method)
        values = np.concatenate([np.ravel(found[name].values) for name in found.data_vars])
        value = float(np.nanmin(values, initial=np.inf))
        if value >= ENOUGH_ESS:
            return Finding(value)
        return Finding(value, f"below {ENOUGH_ESS:.0f}: too few draws count as independent", BAD, advise=True)

    return compute


BETA = Check(
    "beta",
    "The inverse temperature that a sampler reached on its way from the guide to the posterior.",
    beta,
    "It should be 1.",
    advice=(MORE,),
)
MEMORY = Check(
    "memory",
    "The largest rank correlation of a latent, or of its distance from the mean, in a sampler's draws and in the "
    "points from which its moves at the posterior started, within modes.",
    memory,
    f"It should be at most {MAX_MEMORY}.",
    advice=(MORE,),
)
ESS_BULK = Check(
    "ess_bulk",
    "The least effective sample size of a latent's ranks, by the autocorrelation of a sampler's draws.",
    ess_check("bulk"),
    f"It should be at least {ENOUGH_ESS:.0f}.",
    advice=(MORE,),
)
ESS_TAIL = Check(
    "ess_tail",
    "The least effective sample size of a latent's 5% and 95% quantiles, by the same.",
    ess_check("tail"),
    f"It should be at least {ENOUGH_ESS:.0f}.",
    advice=(MORE,),
)
