"""A fit's posterior as ArviZ reads it: restarts are chains, draws are samples of the guide.

    posterior                z: chain, draw, data, z_dim           latents, and deterministic sites at them
    posterior_resampled      the same, drawn anew by the smoothed weights: draws of the posterior, not of the guide
    sample_stats             lp, log_q, log_weight, log_weight_smoothed: chain, draw (, data)
    posterior_predictive     x: chain, draw, data, x_dim           observations drawn anew at the guide's latents
    prior, prior_predictive  z, x: chain, draw, data, ...          the model on its own
    observed_data            x: data, x_dim
    log_likelihood           x: chain, draw, data                  log p(x_i given what is global)
    vi_stats                 pareto_k, log_marginal, log_marginal_error, ess, elbo: chain (, data);
                             elbo_trace or loss_trace: chain, step
    two_sample               x: chain, two_sample                  programs without a density alone

Weights are per datum where every latent lies in the plate "data", and of the whole data set otherwise. R-hat across
restarts means something; within one fit it would be vacuous (see `ppgen.diagnostics.rhat`).

**All rows.** Plates that draw a subsample take all of their rows here, so that weights and likelihoods are of the
whole data set.

**Discrete latents** that a guide leaves to enumeration are summed out of all densities, and drawn, given all others,
from their posterior, to be looked at. Sites that share such a latent have one likelihood, named after all: "x+y".

**Pointwise likelihoods** are of programs whose drawn latents are all global: log p(x_i | z_i) of an amortized model is
none that leave-one-out may use. With ``integrate=K`` each row's own latents are integrated out by K draws of the guide.

**Without a density** (a generator, whose observation is a Delta; a guide that is a point) there are no weights, and no
k-hat: the attribute "density" says why, and "two_sample" has a test of data against the model's own draws.

**Resampled draws** are those of chains whose weights can be relied on (`ppgen.posterior.importance.psis_reliable`): where
k-hat is large they do not mend the guide. With weights per datum, rows of such weights are NaN. The group is left out
if nothing is left, and its absence is explained in the attribute "resampled".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppgen.diagnostics.integrated import integrated
from ppgen.diagnostics.naming import Variable, dataset, new_names, observed, variable
from ppgen.evaluation.two_sample import mmd_test
from ppgen.infer.parameters import owning_module
from ppgen.posterior.importance import MIN_DRAWS, importance_summary, khat_threshold, psis_reliable, resample
from ppgen.tracing.enumeration import SUMMED_OUT
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.sites import (
    DATA,
    PARTICLES,
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
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import assemble

__all__ = ["to_arviz"]

Groups = dict[str, dict[str, Variable]]
STATS = {"pareto_k": "pareto_k", "log_marginal": "log_marginal", "log_marginal_error": "error"}
STATS |= {"ess": "ess", "elbo": "elbo"}
TESTED = 1000  # rows of data that the two-sample test takes, at most


def to_arviz(
    fit: Fitted,
    *data: Tensor,
    draws: int = 500,
    predictive: bool = True,
    resampled: Literal["with", "without"] | None = "with",
    integrate: int = 0,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    chunk: int = 50,
    seed: int = 0,
) -> Any:
    """A fit's posterior on data, an `InferenceData` (ArviZ 0.2x) or `DataTree` (1.x), in the layout of this module.

    Args:
        data: what the programs take: ``fit.to_arviz(x)`` or ``fit.to_arviz(x, y)``.
        draws: samples of the guide a chain, at least 25.
        predictive: whether to draw observations too (posterior and prior predictive), which take the most memory.
        resampled: whether `posterior_resampled` has as many draws, taken with replacement, or a tenth of them, taken
            without; None for no such group.
        integrate: K, of programs with global latents and rows' own: draws of the latter, for each of the former, by
            which they are integrated out of the pointwise likelihood. Its logarithm is too small by about half the
            relative variance of the mean of K weights.
        dims: names of a variable's dimensions, ``{"b": ["covariate"]}``, as in `az.from_dict`.
        coords: the values along a dimension, ``{"covariate": ["age", "bmi"]}``.
        chunk: draws made at a time.
        seed: of the draws; the caller's random state is left as it was.

    Raises:
        ValueError: for fewer than 25 draws, or chunks of none; dims or coords that do not match, naming the variable;
            discrete latents that cannot be enumerated; latents of rows that cannot be integrated.
        LookupError: if the guide does not serve the model on these data.
    """
    if resampled not in ("with", "without", None):
        raise ValueError(f'to_arviz: resampled is "with" or "without" replacement, or None, got {resampled!r}')
    if draws < MIN_DRAWS or chunk < 1:
        raise ValueError(f"to_arviz: expected at least {MIN_DRAWS} draws, in chunks of at least 1, got {draws} in {chunk}")
    model = getattr(owning_module(fit.model), "density_model", fit.model)  # of models whose program is a regression, the law of x
    chains: list[Groups] = []
    notes: list[dict[str, str]] = [{} for _ in fit.chains]
    for number, note in enumerate(notes):
        with fit.eval_mode(number), torch.random.fork_rng():
            torch.manual_seed(seed + number)
            chains.append(_chain(model, fit.guide, data, draws, predictive, integrate, chunk, seed, note))
    groups: Groups = {}
    for group, variables in chains[0].items():
        if group == "observed_data":
            groups[group] = variables
            continue
        groups[group] = {
            name: (("chain", *kept), np.stack([chain[group][name][1] for chain in chains]))
            for name, (kept, _) in variables.items()
            if all(name in chain.get(group, {}) for chain in chains)
        }
    about = {key: text for note in notes for key, text in note.items()}
    kept: list[int] = []
    if resampled and "sample_stats" in groups and "posterior" in groups:
        kept = _resampled(groups, draws, resampled == "with", seed)
        if len(kept) < len(chains):
            about["resampled"] = (
                f"k-hat is above {khat_threshold(draws):.2f}, so that weights do not mend the guide, in the chains "
                f"{[number for number in range(len(chains)) if number not in kept]}, which are left out"
            )
    bound = getattr(fit.loss, "is_negative_elbo", False) and model is fit.model
    kind = "elbo_trace" if bound else "loss_trace"
    losses = [chain.history["loss"] for chain in fit.chains]
    trace = np.full((len(losses), max(map(len, losses))), np.nan)
    for row, values in zip(trace, losses, strict=True):
        row[: len(values)] = -values if kind == "elbo_trace" else values
    groups.setdefault("vi_stats", {})[kind] = (("chain", "step"), trace)
    names = new_names(groups, dims, coords)
    datasets = {group: dataset(variables, names, coords) for group, variables in groups.items() if variables}
    if "posterior_resampled" in datasets:
        datasets["posterior_resampled"] = datasets["posterior_resampled"].assign_coords(chain=kept)
    for found in datasets.values():
        found.attrs.update(
            inference_library="ppgen", loss=str(fit.loss), stop_reason=[c.stop_reason for c in fit.chains]
        )
        found.attrs.update(about)
    return assemble(datasets)


def _chain(
    model, guide, data: tuple, draws: int, predictive: bool, integrate: int, chunk: int, seed: int, note: dict[str, str]
) -> Groups:
    """The groups of one chain, without their chain axis; what is to be said of it goes into the note."""
    parts, points = [], set()
    with torch.no_grad():
        for start in range(0, draws, chunk):
            for some in particle_traces(model, guide, data, particles=min(chunk, draws - start)):
                parts.append(_part(some, predictive, integrate, note))
                points |= {name for name, site in latent_sites(some.guide_trace).items() if is_delta(site)}
    groups: Groups = {}
    for group, variables in parts[0].items():
        groups[group] = {
            name: (dims, np.concatenate([p[group][name][1] for p in parts]) if group != "observed_data" else value)
            for name, (dims, value) in variables.items()
        }
    fixed = [name for name in sorted(points) if name in groups["posterior"] and _is_constant(groups["posterior"][name])]
    if fixed:
        note["density"] = (
            f"none: the guide gives {quote_names(fixed)} a single value, a point without a density, so there are no "
            "importance weights and no k-hat"
        )
    if "density" in note:
        for group in ("sample_stats", "log_likelihood"):
            groups.pop(group, None)
        if predictive and "prior_predictive" in groups:
            groups["two_sample"] = _tests(groups, seed)
        return groups
    dims, log_weights = groups["sample_stats"]["log_weight"]
    summary = importance_summary(log_weights.reshape(draws, -1))
    groups["sample_stats"]["log_weight_smoothed"] = dims, summary.log_smoothed.reshape(log_weights.shape)
    groups["vi_stats"] = {
        name: (dims[1:], getattr(summary, field).reshape(log_weights.shape[1:])) for name, field in STATS.items()
    }
    return groups


def _part(draws: Traces, predictive: bool, integrate: int, note: dict[str, str]) -> Groups:
    """Some draws of one chain, by group; "draw" comes first in all but the observations."""
    density, guide_trace = draws.with_summed_discrete
    sites, local = sample_sites(draws.with_sampled_discrete), is_local(density, guide_trace)
    seen = {name: site for name, site in sites.items() if is_observed(site)}
    latent = latent_sites(draws.with_sampled_discrete) | {k: s for k, s in sites.items() if s["infer"].get("_deterministic")}
    lp, log_q = (log_density(trace, per_datum=local).numpy(force=True) for trace in (density, guide_trace))
    stats = {"lp": lp, "log_q": np.broadcast_to(log_q, lp.shape), "log_weight": lp - log_q}
    groups: Groups = {
        "posterior": {name: variable(name, site) for name, site in latent.items()},
        "sample_stats": {k: (("draw", DATA), v) if local else (("draw",), v[:, 0]) for k, v in stats.items()},
        "observed_data": {name: observed(name, site) for name, site in seen.items()},
    }
    terms = sample_sites(density)
    implicit = [k for k, s in seen.items() if is_delta(s) and k in terms and terms[k]["log_prob"].isneginf().any()]
    if implicit:
        note["density"] = (
            f"none: the model gives {quote_names(implicit)} by a Delta, exactly, so that data have no likelihood; there "
            "are no importance weights and no k-hat"
        )
    elif all(data_plate(site) is None for site in latent_sites(guide_trace).values()):
        groups["log_likelihood"] = _pointwise(terms, seen)
    elif integrate:
        groups["log_likelihood"] = {
            name: (("draw", DATA), value) for name, value in integrated(draws, particles=integrate).items()
        }
    if predictive:
        drawn = sample_sites(draws.posterior_predictive)
        groups["posterior_predictive"] = {name: variable(name, drawn[name]) for name in seen}
        try:
            generated = sample_sites(draws.generated)
        except NotImplementedError as error:  # of an improper prior, which the posterior need not mind
            note["prior"] = f"none: {error}"
        else:
            groups["prior"] = {name: variable(name, generated[name]) for name in latent}
            groups["prior_predictive"] = {name: variable(name, generated[name]) for name in seen}
    return groups


def _pointwise(terms: dict[str, Site], seen: dict[str, Site]) -> dict[str, Variable]:
    """log p of each observed site given all latents that were drawn; nothing if some rows share a latent summed out."""
    found: dict[str, Variable] = {}
    for name, site in terms.items():
        together = site["infer"].get(SUMMED_OUT, ())
        if any(_plates(seen[k]) and not _plates(site) for k in together):
            return {}
        if is_observed(site) or together:
            found[name] = variable(name, site, site["unscaled_log_prob"], event=False)
    return found


def _plates(site: Site) -> list[str]:
    return [f.name for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]


def _resampled(groups: Groups, draws: int, replace: bool, seed: int) -> list[int]:
    """Adds the group of resampled draws; the chains that it has."""
    dims, log_weights = groups["sample_stats"]["log_weight_smoothed"]
    serves = psis_reliable(groups["vi_stats"]["pareto_k"][1], groups["vi_stats"]["ess"][1], draws)
    local = DATA in dims
    kept = [int(number) for number in np.flatnonzero(serves.any(-1) if local else serves)]
    if not kept:
        return []
    size = draws if replace else max(1, draws // 10)
    group: dict[str, Variable] = {}
    columns = log_weights[..., None] if not local else log_weights
    rng = np.random.default_rng(seed)
    taken = np.zeros((len(kept), size, columns.shape[2]), dtype=int)
    for c, number in enumerate(kept):
        for i in range(columns.shape[2]):
            if np.atleast_1d(serves[number])[i if local else 0]:
                taken[c, :, i] = resample(columns[number, :, i], size=size, replace=replace, seed=rng)
    for name, (own, value) in groups["posterior"].items():
        value = value[kept]
        if not local:
            group[name] = own, np.stack([chain[rows] for chain, rows in zip(value, taken[..., 0], strict=True)])
        elif DATA in own:  # the rest belongs to no datum, and has no weight
            ahead = np.moveaxis(value, own.index(DATA), 2)
            index = taken.reshape(*taken.shape, *(1,) * (ahead.ndim - 3))
            mended = np.take_along_axis(ahead, index, axis=1)
            if not serves[kept].all():
                mended = mended.astype(np.result_type(mended.dtype, np.float32))
                mended[np.broadcast_to(~serves[kept][:, None], mended.shape[:3])] = np.nan
            group[name] = own, np.moveaxis(mended, 2, own.index(DATA))
    groups["posterior_resampled"] = group
    return kept


def _tests(groups: Groups, seed: int) -> dict[str, Variable]:
    """MMD tests of observed rows against one draw of the model for each: statistic and p-value."""
    found: dict[str, Variable] = {}
    for name, (dims, x) in groups["observed_data"].items():
        own, generated = groups["prior_predictive"][name]
        if DATA not in dims or len(x) < 4:
            continue
        x, y = (np.moveaxis(part, d.index(DATA), 0)[:TESTED] for part, d in ((x, dims), (generated[0], own[1:])))
        if np.array_equal(x, y):  # what the model repeats of its arguments
            continue
        test = mmd_test(x, y, seed=seed)
        found[name] = ("two_sample",), np.array([test.statistic, test.p_value])
    return found


def _is_constant(found: Variable) -> bool:
    return bool((found[1] == found[1][:1]).all())
