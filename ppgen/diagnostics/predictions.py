"""Draws of what a program observes, from the posterior predictive distribution, on any data."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.diagnostics.absent import responses, with_responses
from ppgen.diagnostics.chain_groups import CHUNK, DrawOptions, Groups, draws_at_a_time
from ppgen.diagnostics.naming import Variable, dataset, variable
from ppgen.diagnostics.new_groups import WithNewGroups
from ppgen.posterior.guides import programs_of
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import Program, Site, is_deterministic, is_observed, latent_sites, quote_names, sample_sites
from ppgen.tracing.traces import Traces
from ppgen.training.frames import FrameArguments, rebound
from ppgen.training.result import Fitted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["predict", "predict_frame", "predictive_groups"]


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


def predict_frame(
    fit: Fitted,
    frame: "pd.DataFrame",
    *,
    new_groups: bool = False,
    draws: int = 500,
    chain: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Draws of all that the model observes, for the rows of a frame, as a frame; see `ppgen.Fit.predict`.

    Args:
        fit: a fit to a frame.
        frame: the rows.
        new_groups: whether categories that the fit did not have are new groups.
        draws: as in `predict`.
        chain: as in `predict`.
        chunk: as in `predict`.
        seed: as in `predict`.

    Returns:
        A row for each draw and row of the frame.

    Raises:
        ValueError: as `predict`; for a site that is not drawn for each row.
    """
    arguments = fit.frame
    assert arguments is not None
    if new_groups and (grown := arguments.with_new_categories(frame)) != arguments:
        arguments, model = grown, programs_of(rebound(fit.model, grown), fit.metadata["guide"]["discrete"]).model
        with fit.eval_mode(chain):
            guide = WithNewGroups(fit.guide, model, fit.example)
        fit = dataclasses.replace(fit, model=model, guide=guide, metadata=fit.metadata | {"frame": grown.as_dict()})
    data = fit.tensors((frame,))
    found = predict(fit, *data, draws=draws, chain=chain, chunk=chunk, seed=seed)
    return _as_frame(found, frame, arguments)


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


def _as_frame(found: xr.Dataset, frame: "pd.DataFrame", arguments: FrameArguments) -> "pd.DataFrame":
    """Draws as a frame, whose index has the draws and the rows."""
    import pandas as pd

    index = pd.MultiIndex.from_product([found["draw"].values, frame.index], names=["draw", frame.index.name or "row"])
    columns: dict[str, Any] = {}
    for name, drawn in found.data_vars.items():
        values = drawn.values[0]
        if values.ndim < 2 or values.shape[1] != len(frame):
            raise ValueError(
                f"predict: expected {name!r} to be drawn for each of {len(frame)} rows, got the dimensions "
                f"{', '.join(map(str, drawn.dims[2:])) or 'of one number'}; observe it in a plate of the rows"
            )
        categories = arguments.coords.get(str(name))
        values = values.reshape(len(index), -1)
        for j in range(values.shape[1]):
            label = name if drawn.ndim == 3 else f"{name}[{', '.join(map(str, np.unravel_index(j, drawn.shape[3:])))}]"
            column = values[:, j]
            columns[str(label)] = column if categories is None else _category(categories, column)
    return pd.DataFrame(columns, index=index)


def _category(categories: Sequence[Any], codes: np.ndarray) -> Any:
    import pandas as pd

    if set(categories) == {False, True}:
        return codes.astype(bool)
    return pd.Categorical.from_codes(codes.astype(np.int64), categories=list(categories))


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
