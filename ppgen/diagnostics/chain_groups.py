"""The groups of `to_arviz` for one chain, from traces of the guide and the model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Multinomial
from torch import Tensor
from tqdm import tqdm

from ppgen.diagnostics.marginal_likelihood import marginal_log_likelihood
from ppgen.diagnostics.masked import Observed, any_observed, either_observed, observed_entries
from ppgen.diagnostics.naming import Variable, observed, variable
from ppgen.evaluation.two_sample import mmd_test
from ppgen.models.simulator import Implicit
from ppgen.posterior.importance import importance_summary
from ppgen.tracing.enumeration import SUMMED_OUT
from ppgen.tracing.masks import masked_log_prob, observed_numbers, without_masks
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import (
    DATA,
    PARTICLES,
    Program,
    Site,
    data_plate,
    imputed_latents,
    is_delta,
    is_deterministic,
    is_local,
    is_observed,
    latent_sites,
    log_density,
    observation,
    quote_names,
    sample_sites,
)
from ppgen.tracing.traces import Traces
from ppgen.utils.user_warnings import warn_user_once

__all__ = ["CHUNK", "DrawOptions", "Groups", "chain_groups", "drawn_groups", "draws_at_a_time"]

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
BAR_DELAY = 2.0  # seconds after which a progress bar is shown, on a terminal
CHUNK = 50  # draws that are made at a time, where data are few
MAX_NUMBERS = 2**21  # of data times draws, that are computed at a time
MAX_TESTED = 1000  # rows of data that the two-sample test uses


@dataclass(frozen=True)
class DrawOptions:
    """How the draws are made; see `ppgen.diagnostics.to_arviz`."""

    draws: int
    chunk: int
    predictive: bool
    integrate: int
    seed: int
    likelihood: bool = True
    weights: bool = True

    @property
    def chunks(self) -> list[int]:
        """How many draws are made at a time, one number after another."""
        return [min(self.chunk, self.draws - start) for start in range(0, self.draws, self.chunk)]


def draws_at_a_time(data: Iterable[Any], most: int) -> int:
    """How many draws to make at a time, at most so many, for the memory that data take once for each of them.

    Args:
        data: the arguments of the programs.
        most: the largest number.
    """
    numbers = sum(part.numel() for part in data if isinstance(part, Tensor))
    return max(1, min(most, MAX_NUMBERS // max(1, numbers)))


def chain_groups(
    model: Program,
    guide: Program,
    data: tuple[Any, ...],
    options: DrawOptions,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[Groups, dict[str, Observed], Notes]:
    """Draws the groups of one chain, under the weights that the programs hold.

    Args:
        model: the model.
        guide: the guide.
        data: their arguments.
        options: the number of draws and what is drawn.
        kwargs: their keyword arguments.

    Returns:
        The groups, without the dimension "chain"; which of their numbers are observed, by variable; notes about what is
        missing, which are attributes of the groups.
    """
    deltas: set[str] = set()

    def chunks() -> Iterator[Traces]:
        first = 0
        for size in options.chunks:
            for traces in particle_traces(model, guide, data, kwargs, particles=size, first=first):
                yield traces
                deltas.update(name for name, site in latent_sites(traces.guide_trace).items() if is_delta(site))
            first += size

    groups, observed, notes = drawn_groups(chunks(), options)
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
            groups["two_sample"] = _two_sample_tests(groups, observed, options.seed)
        return groups, observed, notes
    if not options.weights:  # draws of a sampler, which have no density
        groups["sample_stats"] = {"lp": groups["sample_stats"]["lp"]}
        return groups, observed, notes
    dims, log_weights = groups["sample_stats"]["log_weight"]
    summary = importance_summary(log_weights.reshape(options.draws, -1))
    groups["sample_stats"]["log_weight_smoothed"] = dims, summary.log_smoothed.reshape(log_weights.shape)
    groups["vi_stats"] = {
        name: (dims[1:], getattr(summary, field).reshape(log_weights.shape[1:])) for name, field in VI_STATS.items()
    }
    return groups, observed, notes


def drawn_groups(chunks: Iterable[Traces], options: DrawOptions) -> tuple[Groups, dict[str, Observed], Notes]:
    """The groups of some draws, without what is computed from all of their weights; `chain_groups` has the rest.

    Args:
        chunks: the traces of all draws, some at a time.
        options: the number of draws and what is drawn.
    """
    parts: list[Groups] = []
    observed: dict[str, Observed] = {}
    notes: Notes = {}
    bar = tqdm(total=options.draws, desc="draws", unit="draw", delay=BAR_DELAY, disable=None, leave=False)
    with torch.no_grad(), bar:
        for traces in chunks:
            with validation(False):  # data may lie outside of a support at some draws
                groups, seen, more = _chunk_groups(traces, options)
            parts.append(groups)
            observed = either_observed(observed, seen)
            notes |= more
            bar.update(len(groups["sample_stats"]["lp"][1]))
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
    return groups, observed, notes


def _chunk_groups(traces: Traces, options: DrawOptions) -> tuple[Groups, dict[str, Observed], Notes]:
    """The groups of some draws; "draw" is the first dimension of all variables but the observations."""
    notes: Notes = {}
    model_trace, guide_trace = traces.with_summed_discrete
    sampled = traces.with_sampled_discrete
    sites, local = sample_sites(sampled), is_local(model_trace, guide_trace)
    observations = {name: site for name, site in sites.items() if is_observed(site)}
    latents = latent_sites(sampled) | {k: s for k, s in sites.items() if is_deterministic(s)}
    seen = {name: observed_entries(name, site) for name, site in observations.items()}
    lp, log_q = (log_density(trace, per_datum=local).numpy(force=True) for trace in (model_trace, guide_trace))
    stats = {"lp": lp, "log_q": np.broadcast_to(log_q, lp.shape), "log_weight": lp - log_q}
    groups: Groups = {
        "posterior": {name: variable(name, site) for name, site in latents.items()},
        "sample_stats": {k: (("draw", DATA), v) if local else (("draw",), v[:, 0]) for k, v in stats.items()},
        "observed_data": {name: observed(name, site) for name, site in observations.items()},
    }
    terms = sample_sites(model_trace)
    imputed = imputed_latents(sampled)  # on which no likelihood depends
    drawn = [
        site
        for name, site in latent_sites(guide_trace).items()
        if name not in imputed and not site["infer"].get("is_auxiliary")
    ]
    exact = [
        k for k, site in observations.items() if is_delta(site) and k in terms and terms[k]["log_prob"].isneginf().any()
    ]
    simulated = [name for name, site in observations.items() if isinstance(site["fn"], Implicit)]
    if exact or simulated:
        how = "by a Delta, exactly" if exact else "by a simulator, an Implicit"
        notes["density"] = (
            f"none: the model gives {quote_names(exact or simulated)} {how}, so that data have no likelihood; "
            "there are no importance weights and no k-hat"
        )
    elif options.likelihood and all(data_plate(site) is None for site in drawn):
        groups["log_likelihood"], joint = _pointwise_log_likelihood(terms, seen)
        seen |= joint
        if factors := _factors_of_rows(terms, observations):
            notes["factors"] = (
                f"log_likelihood lacks the pyro.factor {quote_names(factors)}, in a plate of rows: if that is part of "
                "p(y_i | theta), leave-one-out is wrong without it. Observe y by a distribution whose log_prob has it"
            )
    elif options.integrate:
        integrated = marginal_log_likelihood(traces, particles=options.integrate)
        groups["log_likelihood"] = {name: (("draw", DATA), value) for name, value in integrated.items()}
        seen |= {name: any_observed(seen.values(), (DATA,)) for name in integrated if name not in seen}
    if options.predictive:
        _warn_of_totals(observations)
        replicated = sample_sites(traces.posterior_predictive)
        groups["posterior_predictive"] = {name: variable(name, replicated[name]) for name in observations}
        try:
            generated = sample_sites(traces.generated)
        except NotImplementedError as error:  # the prior is improper, which the posterior need not be
            notes["prior"] = f"none: {error}"
        else:
            groups["prior"] = {name: variable(name, generated[name]) for name in latents}
            groups["prior_predictive"] = {name: variable(name, generated[name]) for name in observations}
    return groups, seen, notes


def _pointwise_log_likelihood(
    terms: dict[str, Site], seen: dict[str, Observed]
) -> tuple[dict[str, Variable], dict[str, Observed]]:
    """Log p of each observed site given the drawn latents, and what is observed of sites that have one in common.

    Both are empty if rows share a latent that is summed out.
    """
    found: dict[str, Variable] = {}
    joint: dict[str, Observed] = {}
    for name, site in terms.items():
        joined = site["infer"].get(SUMMED_OUT, ())  # observed sites that share a latent which is summed out
        plates = [frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]
        if any(seen[k].plates and not plates for k in joined):
            return {}, {}
        if is_observed(site) or joined:
            found[name] = variable(name, site, masked_log_prob(site), event=False)
            if name not in seen:
                joint[name] = any_observed((seen[k] for k in joined), found[name][0][1:])
    return found, joint


def _factors_of_rows(terms: dict[str, Site], observations: dict[str, Site]) -> list[str]:
    """The factors in a plate that observations have too, or in any plate if there are no observations."""

    def plates(site: Site) -> set[str]:
        return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}

    factors = {k: s for k, s in terms.items() if type(s["fn"]).__name__ == "Unit" and SUMMED_OUT not in s["infer"]}
    rows = set().union(*map(plates, (observations or factors).values()))
    return [name for name, site in factors.items() if plates(site) & rows]


def _two_sample_tests(groups: Groups, observed: dict[str, Observed], seed: int) -> dict[str, Variable]:
    """MMD tests of rows that are wholly observed against one draw of the model for each: statistic and p-value."""
    found: dict[str, Variable] = {}
    for name, (dims, x) in groups["observed_data"].items():
        drawn_dims, drawn = groups["prior_predictive"][name]
        if DATA not in dims:
            continue
        rows = np.moveaxis(observed[name].numbers, dims.index(DATA), 0)
        rows = np.flatnonzero(rows.reshape(len(rows), -1).all(1))[:MAX_TESTED]
        x = np.moveaxis(x, dims.index(DATA), 0)[rows]
        y = np.moveaxis(drawn[0], drawn_dims[1:].index(DATA), 0)[rows]
        if len(x) < 4 or np.array_equal(x, y):  # an observed argument, which the model does not draw
            continue
        test = mmd_test(x, y, seed=seed)
        found[name] = ("two_sample",), np.array([test.statistic, test.p_value])
    return found


def _warn_of_totals(observations: dict[str, Site]) -> None:
    """Warns of counts that do not sum to the total of their Multinomial, which has one total for all rows."""
    for name, site in observations.items():
        base = without_masks(site["fn"])
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if not isinstance(base, Multinomial):
            continue
        seen, totals = torch.broadcast_tensors(observed_numbers(site).all(-1), observation(site).sum(-1))
        totals = totals[seen]
        if (totals != base.total_count).any():
            warn_user_once(
                f"the rows of counts at {name!r} have sums from {int(totals.min())} to {int(totals.max())}, and the "
                f"total_count of their Multinomial is {base.total_count} for all rows, which is the sum of each row of "
                "predictions: compare the shares of rows, counts / counts.sum(-1), and not counts"
            )


def _is_constant(found: Variable) -> bool:
    return bool((found[1] == found[1][:1]).all())
