"""Pointwise likelihoods of programs with global latents w and latents z_i of each row, which are integrated out.

    log p(x_i | w) ~ log 1/K sum_k p(x_i, z_ik | w) / q(z_ik | w, x),    z_ik ~ q(z_i | w, x),    w drawn by the guide

by importance sampling from the guide. The estimate of p is unbiased; its logarithm is biased downwards.
"""

import math

import numpy as np
import torch
from pyro.poutine import Trace

from ppgen.tracing.sites import (
    DATA,
    data_plate,
    is_delta,
    is_observed,
    latent_sites,
    log_density,
    sample_sites,
    trace_with_values,
)
from ppgen.tracing.traces import Traces

__all__ = ["marginal_log_likelihood"]


def marginal_log_likelihood(traces: Traces, *, particles: int) -> dict[str, np.ndarray]:
    """Log p(x_i | w) of all observed sites of a row together, in nats.

    Args:
        traces: traces of the programs, with the draws of w.
        particles: K, the number of draws of each z_i.

    Returns:
        An array (draws, n), under the names of the observed sites joined by "+".

    Raises:
        ValueError: if the guide draws the latents of all rows jointly, as a full Gaussian does, so that a row has no
            density of its own; if an observed site is not in the plate "data".
    """
    model_trace, guide_trace = traces.with_summed_discrete
    shared = {k: s["value"] for k, s in latent_sites(traces.guide_trace).items() if data_plate(s) is None}
    outside = [k for k, s in sample_sites(model_trace).items() if is_observed(s) and data_plate(s) is None]
    if outside:
        raise ValueError(f"integrate: the observed sites {outside} are not in the plate {DATA!r}")
    names = [k for k, s in sample_sites(model_trace).items() if is_observed(s)]
    first, log_weights = latent_sites(guide_trace), []
    for _ in range(particles):
        again = traces.resampled(fixed=trace_with_values(traces.guide_trace, shared))
        model_rows, guide_rows = (_sites_of_rows(trace) for trace in again.with_summed_discrete)
        for name, site in latent_sites(again.guide_trace).items():
            if data_plate(site) is not None and is_delta(site) and torch.equal(site["value"], first[name]["value"]):
                raise ValueError(
                    f"integrate: the guide's {name!r} follows from latents outside of the plate {DATA!r}, so its rows "
                    "have no density of their own; use a guide that draws each row's latents in the plate, such as "
                    "AutoNormal"
                )
        log_weights.append(log_density(model_rows, per_datum=True) - log_density(guide_rows, per_datum=True))
    total = torch.stack(log_weights).logsumexp(0) - math.log(particles)
    return {"+".join(names): total.numpy(force=True)}


def _sites_of_rows(trace: Trace) -> Trace:
    """The sites in the plate "data"."""
    kept = Trace()
    for name, site in sample_sites(trace).items():
        if data_plate(site) is not None:
            kept.add_node(name, **site)
    return kept
