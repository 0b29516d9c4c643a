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


def to_arviz(fit: "Fit", *data: Tensor, draws: int = 500, predictive: bool = True, chunk: int = 50, seed: int = 0) -> Any:
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
    for start in range(0, draws, chunk):
        with torch.no_grad():
            parts.append(_part(particle_draws(model, guide, data, particles=min(chunk, draws - start)), predictive))
    groups: dict[str, dict[str, Variable]] = {}
    for group, variables in parts[0].items():
        groups[group] = {
            name: (dims, np.concatenate([p[group][name][1] for p in parts]) if "draw" in dims else value)
            for name, (dims, value) in variables.items()
        }
    dims, log_weights = groups["sample_stats"]["log_weight"]
    summary = weigh_up(log_weights.reshape(draws, -1))
    shape = log_weights.shape[1:]
    groups["vi_stats"] = {
        name: (dims[1:], getattr(summary, name).reshape(shape)) for name in ("pareto_k", "log_marginal", "elbo")
    }
    return groups


def _part(draws: Draws, predictive: bool) -> dict[str, dict[str, Variable]]:
    """Some draws of one chain, by group."""
    encoded, guided = draws.importance
    latent = latent_sites(encoded)
    observed = {name: site for name, site in sample_sites(encoded).items() if is_observed(site)}
    derived = {k: s for k, s in sample_sites(encoded).items() if s["infer"].get("_deterministic")}
    local = is_local(guided)
    lp, log_q = (log_density(trace, per_datum=local) for trace in (encoded, guided))
    particles = _particles(guided, encoded)
    groups: dict[str, dict[str, Variable]] = {
        "posterior": {name: _variable(name, site, site["value"]) for name, site in (latent | derived).items()},
        "sample_stats": {
            name: _weights(value, particles, local) for name, value in (("lp", lp), ("log_q", log_q), ("log_weight", lp - log_q))
        },
        "observed_data": {name: _observed(name, site) for name, site in observed.items()},
    }
    if not local:
        groups["log_likelihood"] = {
            name: _variable(name, site, site["unscaled_log_prob"], event=False) for name, site in observed.items()
        }
    if predictive:
        drawn, generated = sample_sites(draws.reconstructed), sample_sites(draws.generated)
        groups["posterior_predictive"] = {k: _variable(k, drawn[k], drawn[k]["value"]) for k in observed}
        groups["prior"] = {k: _variable(k, generated[k], generated[k]["value"]) for k in latent | derived}
        groups["prior_predictive"] = {k: _variable(k, generated[k], generated[k]["value"]) for k in observed}
    return groups


def _particles(*traces) -> int:
    frames = (f for t in traces for s in sample_sites(t).values() for f in s["cond_indep_stack"] if f.name == PARTICLES)
    return next(f.size for f in frames)


def _weights(value: Tensor, particles: int, local: bool) -> Variable:
    value = value.expand(particles, -1)
    return (("draw", DATA), _array(value)) if local else (("draw",), _array(value[:, 0]))


def _observed(name: str, site: Site) -> Variable:
    """Observations do not differ between draws: the particles' axis is left out."""
    dims, value = _variable(name, site, observation(site).expand(site["fn"].batch_shape + site["fn"].event_shape))
    return dims[1:], value[0]


def _variable(name: str, site: Site, value: Tensor, *, event: bool = True) -> Variable:
    """A site's values with their dimensions named: plates by their names, events by the site's."""
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    depth = -min(frames)
    rank = site["fn"].event_dim if event else 0
    if site["infer"].get("_deterministic") and rank == value.dim():  # all its axes were called event
        rank = value.dim() - depth
    if value.dim() - rank < depth:  # the same for all plates further out
        value = value.reshape((1,) * (depth + rank - value.dim()) + tuple(value.shape))
    batch = value.dim() - rank
    value = value.expand(*(frames[d].size if d in frames else 1 for d in range(-batch, 0)), *value.shape[batch:])
    value = value.squeeze(tuple(d + batch for d in range(-batch, 0) if d not in frames))
    dims = ["draw" if frames[d].name == PARTICLES else frames[d].name for d in sorted(frames)]
    dims = [f"{d}_plate" if d == name else d for d in dims]
    dims += [f"{name}_dim"] if rank == 1 else [f"{name}_dim_{i}" for i in range(rank)]
    return tuple(dims), _array(value)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _dataset(variables: dict[str, Variable]) -> xr.Dataset:
    sizes = {d: n for dims, value in variables.values() for d, n in zip(dims, value.shape, strict=True)}
    return xr.Dataset(variables, coords={d: np.arange(n) for d, n in sizes.items() if d in ("chain", "draw", DATA, "step")})
