"""A fit's posterior as ArviZ reads it: restarts are chains, draws are samples of the guide.

    posterior                z: chain, draw, data, z_dim           latents, and deterministic sites at them
    sample_stats             lp, log_q, log_weight: chain, draw (, data)
    posterior_predictive     x: chain, draw, data, x_dim           observations drawn anew at the guide's latents
    prior, prior_predictive  z, x: chain, draw, data, ...          the model on its own
    observed_data            x: data, x_dim
    log_likelihood           x: chain, draw, data                  programs with global latents alone
    vi_stats                 pareto_k, log_marginal, elbo: chain (, data);  elbo_trace or loss_trace: chain, step

Weights are per datum where every latent lies in the plate "data", and of the whole data set otherwise. For an amortised
model log p(x_i | z_i) is no pointwise likelihood that leave-one-out may use, so there is no such group for it.
R-hat across restarts means something; within one fit it would be vacuous.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.diagnostics.importance import weigh_up
from ppgen.diagnostics.versions import assemble
from ppgen.draws import (
    DATA,
    PARTICLES,
    Draws,
    Site,
    data_frame,
    is_local,
    is_observed,
    latent_sites,
    log_density,
    observation,
    particle_draws,
    sample_sites,
)

if TYPE_CHECKING:
    from ppgen.result import Fit

__all__ = ["to_arviz"]

Variable = tuple[tuple[str, ...], np.ndarray]


def to_arviz(
    fit: "Fit", *data: Tensor, draws: int = 500, predictive: bool = True, chunk: int = 50, seed: int = 0
) -> Any:
    """A fit's posterior on data, an `InferenceData` (ArviZ 0.2x) or `DataTree` (1.x), in the layout of this module.

    Args:
        data: what the programs take: ``fit.to_arviz(x)`` or ``fit.to_arviz(x, y)``.
        draws: samples of the guide a chain, at least 25.
        predictive: whether to draw observations too (posterior and prior predictive), which take the most memory.
        chunk: draws made at a time.
        seed: of the draws; the caller's random state is left as it was.

    Raises:
        ValueError: for fewer than 25 draws.
        LookupError: if the guide does not serve the model on these data.
    """
    chains = []
    for number in range(len(fit.chains)):
        with fit.evaluating(number), torch.random.fork_rng():
            torch.manual_seed(seed + number)
            chains.append(_chain(fit.model, fit.guide, data, draws, predictive, chunk))
    groups: dict[str, xr.Dataset] = {}
    for group in chains[0]:
        if group == "observed_data":
            groups[group] = _dataset(chains[0][group])
            continue
        stacked = {
            name: (("chain", *dims), np.stack([chain[group][name][1] for chain in chains]))
            for name, (dims, _) in chains[0][group].items()
        }
        if group == "vi_stats":
            kind = "elbo_trace" if getattr(fit.loss, "is_evidence", False) else "loss_trace"
            losses = [chain.history["loss"] for chain in fit.chains]
            trace = np.full((len(losses), max(map(len, losses))), np.nan)
            for row, values in zip(trace, losses, strict=True):
                row[: len(values)] = -values if kind == "elbo_trace" else values
            stacked[kind] = (("chain", "step"), trace)
        groups[group] = _dataset(stacked)
    for dataset in groups.values():
        dataset.attrs.update(inference_library="ppgen", loss=str(fit.loss), stopped=[c.stopped for c in fit.chains])
    return assemble(groups)


def _chain(model, guide, data: tuple, draws: int, predictive: bool, chunk: int) -> dict[str, dict[str, Variable]]:
    """The groups of one chain, without their chain axis."""
    parts = []
    with torch.no_grad():
        for start in range(0, draws, chunk):
            some = particle_draws(model, guide, data, particles=min(chunk, draws - start))
            parts += [_part(one, predictive) for one in some]
    groups: dict[str, dict[str, Variable]] = {}
    for group, variables in parts[0].items():
        groups[group] = {
            name: (dims, np.concatenate([p[group][name][1] for p in parts]) if group != "observed_data" else value)
            for name, (dims, value) in variables.items()
        }
    dims, log_weights = groups["sample_stats"]["log_weight"]
    summary = weigh_up(log_weights.reshape(draws, -1))
    groups["vi_stats"] = {
        name: (dims[1:], getattr(summary, name).reshape(log_weights.shape[1:]))
        for name in ("pareto_k", "log_marginal", "elbo")
    }
    return groups


def _part(draws: Draws, predictive: bool) -> dict[str, dict[str, Variable]]:
    """Some draws of one chain, by group; "draw" comes first in all but the observations."""
    encoded, guided = draws.importance
    sites, local = sample_sites(encoded), is_local(encoded, guided)
    observed = {name: site for name, site in sites.items() if is_observed(site)}
    latent = latent_sites(encoded) | {k: s for k, s in sites.items() if s["infer"].get("_deterministic")}
    lp, log_q = (log_density(trace, per_datum=local).numpy(force=True) for trace in (encoded, guided))
    stats = {"lp": lp, "log_q": np.broadcast_to(log_q, lp.shape), "log_weight": lp - log_q}
    groups: dict[str, dict[str, Variable]] = {
        "posterior": {name: _variable(name, site) for name, site in latent.items()},
        "sample_stats": {k: (("draw", DATA), v) if local else (("draw",), v[:, 0]) for k, v in stats.items()},
        "observed_data": {name: _observed(name, site) for name, site in observed.items()},
    }
    if all(data_frame(site) is None for site in latent_sites(encoded).values()):
        groups["log_likelihood"] = {
            name: _variable(name, site, site["unscaled_log_prob"], event=False) for name, site in observed.items()
        }
    if predictive:
        drawn, generated = sample_sites(draws.reconstructed), sample_sites(draws.generated)
        groups["posterior_predictive"] = {name: _variable(name, drawn[name]) for name in observed}
        groups["prior"] = {name: _variable(name, generated[name]) for name in latent}
        groups["prior_predictive"] = {name: _variable(name, generated[name]) for name in observed}
    return groups


def _observed(name: str, site: Site) -> Variable:
    """Observations do not differ between draws: that axis is left out."""
    dims, value = _variable(name, site, observation(site).expand(site["fn"].batch_shape + site["fn"].event_shape))
    return dims[1:], value[0]


def _variable(name: str, site: Site, value: Tensor | None = None, *, event: bool = True) -> Variable:
    """A site's values (or others of its shape) with their dimensions named: "draw", plates by name, then the event's.

    Args:
        event: whether the values have the site's event dimensions.
    """
    value = site["value"] if value is None else value
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    depth = -min(frames, default=0)
    rank = site["fn"].event_dim if event else 0
    if site["infer"].get("_deterministic") and rank == value.dim():  # without event_dim, all its axes are called event
        rank = value.dim() - depth
    if value.dim() - rank < depth:  # one value for all rows of a plate
        value = value.reshape((1,) * (depth + rank - value.dim()) + tuple(value.shape))
    batch = value.dim() - rank
    value = value.expand([frames[d].size if d in frames else 1 for d in range(-batch, 0)] + list(value.shape[batch:]))
    value = value.squeeze(tuple(d + batch for d in range(-batch, 0) if d not in frames))
    dims = ["draw" if frames[d].name == PARTICLES else frames[d].name for d in sorted(frames)]
    dims = [f"{d}_plate" if d == name else d for d in dims]
    dims += [f"{name}_dim"] if rank == 1 else [f"{name}_dim_{i}" for i in range(rank)]
    if "draw" not in dims:
        dims, value = ["draw", *dims], value.unsqueeze(0)
    return tuple(dims), value.numpy(force=True)


def _dataset(variables: dict[str, Variable]) -> xr.Dataset:
    sizes = {d: n for dims, value in variables.values() for d, n in zip(dims, value.shape, strict=True)}
    indexed = ("chain", "draw", DATA, "step")
    return xr.Dataset(variables, coords={d: np.arange(n) for d, n in sizes.items() if d in indexed})
