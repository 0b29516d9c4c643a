"""Checks of the restarts: how many there were, and whether they agree."""

import numpy as np
import xarray as xr

from ppgen.diagnostics.checks.check import BAD, WEIGHTED, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws, comparable_chains
from ppgen.posterior.tempered_sampling import MAX_RHAT as MAX_SAMPLER_RHAT
from ppgen.utils.arviz_versions import rhat

__all__ = ["RESTARTS", "R_HAT"]

MAX_RHAT = 1.05  # of restarts, whose guides are not draws of the posterior


def restarts(draws: PosteriorDraws) -> Finding:
    """The number of restarts."""
    fit = draws.fit
    starts = fit.metadata.get("starts", len(fit.chains))
    alone = starts == 1
    if alone and not draws.per_datum and draws.mode_search is None:
        return Finding(1.0, "there was one restart, and no search for other modes", WEIGHTED, advise=True)
    return Finding(float(starts))


def r_hat(draws: PosteriorDraws) -> Finding | None:
    """The largest R-hat of the latents across restarts whose evidence is comparable, or chains of a sampler."""
    if draws.sampled:
        value = largest_entry(rhat(draws.posterior))
        reason = f"above {MAX_SAMPLER_RHAT}: the chains have not come to one distribution"
        return Finding(value) if value <= MAX_SAMPLER_RHAT else Finding(value, reason, BAD, advise=True)
    chains = comparable_chains(draws.vi_stats)
    if len(chains) < 2:
        return None
    value = largest_entry(rhat(draws.posterior.isel(chain=chains)))
    if value > MAX_RHAT:
        reason = f"above {MAX_RHAT}: restarts of comparable evidence ended at different places"
        return Finding(value, reason, BAD, advise=True)
    return Finding(value)


def largest_entry(found: xr.Dataset) -> float:
    """The largest entry of all variables that is a number, at least 1."""
    values = np.concatenate([np.ravel(found[name].values) for name in found.data_vars])
    return float(np.nanmax(values, initial=1.0))


RESTARTS = Check(
    "restarts",
    'The number of starting points. Those that reach the same mode go on as one chain of a fit by guide="auto".',
    restarts,
    "One is enough if other modes were searched for, and two are needed for R-hat.",
    advice=("restarts=4",),
)
R_HAT = Check(
    "r_hat",
    "The largest R-hat of the latents, across restarts of comparable evidence or the chains of a sampler.",
    r_hat,
    f"It should be at most {MAX_RHAT}, and at most {MAX_SAMPLER_RHAT} for a sampler.",
    advice=("a model whose modes are identified (ordered components, say), or AnnealedELBO to cover all of them",),
)
