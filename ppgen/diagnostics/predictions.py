"""Draws of what a program observes, from the posterior predictive distribution, on any data."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.diagnostics.absent import responses, with_responses
from ppgen.diagnostics.chain_groups import CHUNK, DrawOptions, Groups, draws_at_a_time
from ppgen.diagnostics.naming import Variable, dataset, variable
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import Program, Site, is_deterministic, is_observed, latent_sites, quote_names, sample_sites
from ppgen.tracing.traces import Traces
from ppgen.training.result import Fitted

__all__ = ["predict", "predictive_groups"]


def predict(
    fit: Fitted,
    *data: Tensor | None,
    draws: int = 500,
    chain: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Draws x' ~ p(x' | z), z ~ q(z | x), of all that the model observes, on the data of the fit or on other data.

    The response may be absent: ``predict(fit, x_new)`` of a program ``model(x, y=None)``, or ``predict(fit, x_new,
    None)``. If it is given, the draws are replicates of it. The latents come from the guide, without importance
    weights. Discrete latents that the guide leaves to enumeration come from their posterior where the response is
    given, and from their prior otherwise.

    Args:
        fit: the fit.
        *data: the arguments of the programs.
        draws: the number of draws.
        chain: the number of the chain; the best one if left out.
        chunk: the number of draws that are made at a time, as in `ppgen.diagnostics.to_arviz`.
        seed: the seed of the draws; the caller's random state does not change.

    Returns:
        A variable for each observed site, with the dimensions chain (of length one), draw, plates and event.

    Raises:
        ValueError: for no draws or an empty chunk; if the model observes nothing; if the programs do not run on these
            data, for example because the guide has latents for the rows of other data.
        LookupError: if the guide does not match the model.
    """
    chunk = draws_at_a_time(data, CHUNK) if chunk is None else chunk
    if draws < 1 or chunk < 1:
        raise ValueError(f"predict: expected at least 1 draw, in chunks of at least 1, got {draws} in {chunk}")
    chain = fit.best if chain is None else chain
    options = DrawOptions(draws=draws, chunk=chunk, predictive=True, integrate=0, seed=seed)
    with fit.eval_mode(chain), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if not responses(fit, fit.model):
            raise ValueError("predict: the model observes nothing: add pyro.sample(name, distribution, obs=x)")
        model, absent = with_responses(fit, fit.model, data)
        parts: list[dict[str, Variable]] = []
        for traces in _traces(model, fit.guide, data, options):
            sites = sample_sites(traces.reconstructed if absent else traces.posterior_predictive)
            parts.append({name: variable(name, site) for name, site in sites.items() if is_observed(site)})
    found = {name: (("chain", *dims), value[None]) for name, (dims, value) in _joined(parts).items()}
    return dataset(found, {}, {"chain": [chain]}, {})


def predictive_groups(
    model: Program, guide: Program, data: tuple[Tensor | None, ...], absent: list[str], options: DrawOptions
) -> tuple[Groups, dict[str, str]]:
    """The groups of one chain on data without their response: latents of the guide, and predictions given them.

    Args:
        model: the model, which observes its absent responses at a draw (see `ppgen.diagnostics.absent`).
        guide: the guide.
        data: their arguments.
        absent: the names of the responses that are absent.
        options: the number of draws and what is drawn.

    Returns:
        The groups, without the dimension "chain", and notes about what is missing.
    """
    posterior: list[dict[str, Variable]] = []
    predictive: list[dict[str, Variable]] = []
    prior: list[dict[str, Variable]] = []
    prior_predictive: list[dict[str, Variable]] = []
    names = quote_names(absent)
    notes = {"absent": names, "density": f"none: {names} is not given, so these data have no likelihood and no weights"}
    for traces in _traces(model, guide, data, options):
        sites = sample_sites(traces.reconstructed)
        posterior.append(_variables(sites, _is_latent(traces)))
        if not options.predictive:
            continue
        predictive.append(_variables(sites, is_observed))
        try:
            sites = sample_sites(traces.generated)
        except NotImplementedError as error:  # an improper prior
            notes["prior"] = f"none: {error}"
        else:
            prior.append(_variables(sites, _is_latent(traces)))
            prior_predictive.append(_variables(sites, is_observed))
    groups = {"posterior": posterior, "posterior_predictive": predictive}
    groups |= {"prior": prior, "prior_predictive": prior_predictive}
    return {group: _joined(parts) for group, parts in groups.items() if parts}, notes


def _traces(model: Program, guide: Program, data: tuple[Tensor | None, ...], options: DrawOptions) -> Iterator[Traces]:
    """Traces of all draws, a chunk at a time."""
    for start in range(0, options.draws, options.chunk):
        with validation(False):  # an absent response is observed at a value of other latents
            yield from particle_traces(
                model, guide, data, particles=min(options.chunk, options.draws - start), first=start
            )


def _is_latent(traces: Traces) -> Callable[[Site], bool]:
    names = latent_sites(traces.model_trace).keys()
    return lambda site: site["name"] in names or is_deterministic(site)


def _variables(sites: dict[str, Site], chosen: Callable[[Site], bool]) -> dict[str, Variable]:
    return {name: variable(name, site) for name, site in sites.items() if chosen(site)}


def _joined(parts: list[dict[str, Variable]]) -> dict[str, Variable]:
    """The variables of all chunks, one after another along their first dimension, "draw"."""
    return {name: (dims, np.concatenate([part[name][1] for part in parts])) for name, (dims, _) in parts[0].items()}
