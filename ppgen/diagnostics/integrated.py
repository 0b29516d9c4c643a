"""Pointwise likelihoods of programs with global latents w and rows' own z_i, the latter integrated out.

    log p(x_i | w) ~ log 1/K sum_k p(x_i, z_ik | w) / q(z_ik | w, x),    z_ik ~ q(z_i | w, x),    w of the guide's draw

by importance sampling from the guide. The estimate is without bias before the logarithm, and below in the mean after.
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

__all__ = ["integrated"]


def integrated(draws: Traces, *, particles: int) -> dict[str, np.ndarray]:
    """log p(x_i | w) (draws, n), of all observed sites of a row together, by the names of these joined by "+".

    Raises:
        ValueError: if rows' latents are drawn together, as by a full Gaussian over all, so that no row's own density is
            there; if an observed site lies in no row.
    """
    model_trace, guide_trace = draws.with_summed_discrete
    shared = {k: s["value"] for k, s in latent_sites(draws.guide_trace).items() if data_plate(s) is None}
    loose = [k for k, s in sample_sites(model_trace).items() if is_observed(s) and data_plate(s) is None]
    if loose:
        raise ValueError(f"integrate: the observed sites {loose} lie in no row of the plate {DATA!r}")
    names = [k for k, s in sample_sites(model_trace).items() if is_observed(s)]
    before, logs = latent_sites(guide_trace), []
    for _ in range(particles):
        again = draws.resampled(fixed=trace_with_values(draws.guide_trace, shared))
        parts = [_rows(trace) for trace in again.with_summed_discrete]
        for name, site in latent_sites(again.guide_trace).items():
            if data_plate(site) is not None and is_delta(site) and torch.equal(site["value"], before[name]["value"]):
                raise ValueError(
                    f"integrate: the guide's {name!r} follows from latents outside of the plate {DATA!r}, so its rows "
                    "have no density of their own; take a guide that draws each row's latents in the plate, AutoNormal "
                    "say"
                )
        logs.append(log_density(parts[0], per_datum=True) - log_density(parts[1], per_datum=True))
    total = torch.stack(logs).logsumexp(0) - math.log(particles)
    return {"+".join(names): total.numpy(force=True)}


def _rows(trace: Trace) -> Trace:
    """The sites that lie in a row alone."""
    kept = Trace()
    for name, site in sample_sites(trace).items():
        if data_plate(site) is not None:
            kept.add_node(name, **site)
    return kept
