"""The groups of `to_arviz` for one chain, from traces of the guide and the model."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppgen.diagnostics.marginal_likelihood import marginal_log_likelihood
from ppgen.diagnostics.naming import Variable, observed, variable
from ppgen.evaluation.two_sample import mmd_test
from ppgen.posterior.importance import importance_summary
from ppgen.tracing.enumeration import SUMMED_OUT
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.sites import (
    DATA,
    PARTICLES,
    Program,
    Site,
    data_plate,
    is_delta,
    is_local,
    is_observed,
    latent_sites,
    log_density,
    quote_names,
    sample_sites,
)
from ppgen.tracing.traces import Traces

__all__ = ["DrawOptions", "Groups", "chain_groups"]

Groups = dict[str, dict[str, Variable]]
Notes = dict[str, str]
# variables of "vi_stats", and the fields of `Importance` that they are
VI_STATS = {
    "pareto_k": "pareto_k",
    "log_marginal": "log_marginal",
    "log_marginal_error": "error",
    "ess": "ess",
    "elbo": "elbo",
}
MAX_TESTED = 1000  # rows of data that the two-sample test uses


@dataclass(frozen=True)
class DrawOptions:
    """How the draws are made; see `ppgen.diagnostics.to_arviz`."""

    draws: int
    chunk: int
    predictive: bool
    integrate: int
    seed: int


def chain_groups(
    model: Program, guide: Program, data: tuple[Tensor, ...], options: DrawOptions
) -> tuple[Groups, Notes]:
    """Draws the groups of one chain, under the weights that the programs hold.

    Args:
        model: the model.
        guide: the guide.
        data: their arguments.
        options: the number of draws and what is drawn.

    Returns:
        The groups, without the dimension "chain", and notes about what is missing: attributes of the groups.
    """
    parts: list[Groups] = []
    notes: Notes = {}
    deltas: set[str] = set()
    with torch.no_grad():
        for start in range(0, options.draws, options.chunk):
            for traces in particle_traces(model, guide, data, particles=min(options.chunk, options.draws - start)):
                groups, more = _chunk_groups(traces, options)
                parts.append(groups)
                notes |= more
                deltas |= {name for name, site in latent_sites(traces.guide_trace).items() if is_delta(site)}
    groups = {
        group: {
            name: (
                dims,
                value if group == "observed_data" else np.concatenate([part[group][name][1] for part in parts]),
            )
            for name, (dims, value) in variables.items()
        }
        for group, variables in parts[0].items()
    }
    posterior = groups["posterior"]
    if fixed := [name for name in sorted(deltas) if name in posterior and _is_constant(posterior[name])]:
        notes["density"] = (
            f"none: the guide gives {quote_names(fixed)} a single value, a point without a density, so there are no "
            "importance weights and no k-hat"
        )
    if "density" in notes:
        groups.pop("sample_stats", None)
        groups.pop("log_likelihood", None)
        if options.predictive and "prior_predictive" in groups:
            groups["two_sample"] = _two_sample_tests(groups, options.seed)
        return groups, notes
    dims, log_weights = groups["sample_stats"]["log_weight"]
    summary = importance_summary(log_weights.reshape(options.draws, -1))
    groups["sample_stats"]["log_weight_smoothed"] = dims, summary.log_smoothed.reshape(log_weights.shape)
    groups["vi_stats"] = {
        name: (dims[1:], getattr(summary, field).reshape(log_weights.shape[1:])) for name, field in VI_STATS.items()
    }
    return groups, notes


def _chunk_groups(traces: Traces, options: DrawOptions) -> tuple[Groups, Notes]:
    """The groups of some draws; "draw" is the first dimension of all variables but the observations."""
    notes: Notes = {}
    model_trace, guide_trace = traces.with_summed_discrete
    sampled = traces.with_sampled_discrete
    sites, local = sample_sites(sampled), is_local(model_trace, guide_trace)
    observations = {name: site for name, site in sites.items() if is_observed(site)}
    latents = latent_sites(sampled) | {k: s for k, s in sites.items() if s["infer"].get("_deterministic")}
    lp, log_q = (log_density(trace, per_datum=local).numpy(force=True) for trace in (model_trace, guide_trace))
    stats = {"lp": lp, "log_q": np.broadcast_to(log_q, lp.shape), "log_weight": lp - log_q}
    groups: Groups = {
        "posterior": {name: variable(name, site) for name, site in latents.items()},
        "sample_stats": {k: (("draw", DATA), v) if local else (("draw",), v[:, 0]) for k, v in stats.items()},
        "observed_data": {name: observed(name, site) for name, site in observations.items()},
    }
    terms = sample_sites(model_trace)
    implicit = [
        k for k, site in observations.items() if is_delta(site) and k in terms and terms[k]["log_prob"].isneginf().any()
    ]
    if implicit:
        notes["density"] = (
            f"none: the model gives {quote_names(implicit)} by a Delta, exactly, so that data have no likelihood; "
            "there are no importance weights and no k-hat"
        )
    elif all(data_plate(site) is None for site in latent_sites(guide_trace).values()):
        groups["log_likelihood"] = _pointwise_log_likelihood(terms, observations)
    elif options.integrate:
        integrated = marginal_log_likelihood(traces, particles=options.integrate)
        groups["log_likelihood"] = {name: (("draw", DATA), value) for name, value in integrated.items()}
    if options.predictive:
        replicated = sample_sites(traces.posterior_predictive)
        groups["posterior_predictive"] = {name: variable(name, replicated[name]) for name in observations}
        try:
            generated = sample_sites(traces.generated)
        except NotImplementedError as error:  # the prior is improper, which the posterior need not be
            notes["prior"] = f"none: {error}"
        else:
            groups["prior"] = {name: variable(name, generated[name]) for name in latents}
            groups["prior_predictive"] = {name: variable(name, generated[name]) for name in observations}
    return groups, notes


def _pointwise_log_likelihood(terms: dict[str, Site], observations: dict[str, Site]) -> dict[str, Variable]:
    """Log p of each observed site given the drawn latents; empty if rows share a latent that is summed out."""
    found: dict[str, Variable] = {}
    for name, site in terms.items():
        joined = site["infer"].get(SUMMED_OUT, ())  # observed sites that share a latent which is summed out
        if any(_plates(observations[k]) and not _plates(site) for k in joined):
            return {}
        if is_observed(site) or joined:
            found[name] = variable(name, site, site["unscaled_log_prob"], event=False)
    return found


def _plates(site: Site) -> list[str]:
    return [frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def _two_sample_tests(groups: Groups, seed: int) -> dict[str, Variable]:
    """MMD tests of observed rows against one draw of the model for each: statistic and p-value."""
    found: dict[str, Variable] = {}
    for name, (dims, x) in groups["observed_data"].items():
        drawn_dims, drawn = groups["prior_predictive"][name]
        if DATA not in dims or len(x) < 4:
            continue
        x = np.moveaxis(x, dims.index(DATA), 0)[:MAX_TESTED]
        y = np.moveaxis(drawn[0], drawn_dims[1:].index(DATA), 0)[:MAX_TESTED]
        if np.array_equal(x, y):  # an observed argument, which the model does not draw
            continue
        test = mmd_test(x, y, seed=seed)
        found[name] = ("two_sample",), np.array([test.statistic, test.p_value])
    return found


def _is_constant(found: Variable) -> bool:
    return bool((found[1] == found[1][:1]).all())
