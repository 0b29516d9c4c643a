"""Running a fit's programs on new data, with or without the response.

A program ``model(x, y=None)`` observes y where it is given, and draws it from p(y | z, x) where it is not. Here a
*response* is a site that the program observed on the data of the fit, and it is *absent* where the program neither
observes it on new data nor has a guide that draws it. An absent response is observed at a draw of its own, so that all
traces can be made; only traces that sample observations again have a meaning then.
"""

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.plates import all_rows
from ppgen.tracing.programs import SubstituteLatents, get_trace, validation
from ppgen.tracing.sites import (
    Program,
    Site,
    is_observed,
    is_subsample,
    latent_sites,
    quote_names,
    sample_sites,
    sized_plates,
)
from ppgen.training.result import Fitted
from ppgen.utils.user_warnings import warn_user

__all__ = ["responses", "with_responses"]


def responses(fit: Fitted, model: Program) -> set[str]:
    """The names of the sites that a model observes on the data of the fit.

    Args:
        fit: the fit.
        model: the model.
    """
    trace, _, _ = _run(model, fit.guide, fit.example)
    return {name for name, site in sample_sites(trace).items() if is_observed(site)}


def with_responses(fit: Fitted, model: Program, data: tuple[Tensor | None, ...]) -> tuple[Program, list[str]]:
    """A model that observes all of its responses, those that are absent at one draw; and which are absent.

    Warns where latents of the rows of the fit are used for rows of other data.

    Args:
        fit: the fit, whose guide is used.
        model: the model.
        data: the arguments of both.

    Raises:
        ValueError: if the programs do not run on these data; if the guide has latents for the rows or groups of other
            data; if some responses are absent while latents are left to enumeration.
    """
    names, guide = responses(fit, model), fit.guide
    try:
        trace, guide_trace, mismatched = _run(model, guide, data)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(_does_not_run(data, error)) from error
    if mismatched:
        raise ValueError(_other_rows(mismatched, guide_trace, data))
    _warn_of_other_rows(fit, data, guide_trace)
    sites = sample_sites(trace)
    absent = [name for name in sites if name in names and not is_observed(sites[name]) and name not in guide_trace]
    if not absent:
        return model, []
    enumerated = [k for k in latent_sites(trace) if k not in guide_trace and k not in absent]
    if enumerated and any(is_observed(sites[name]) for name in names if name in sites):
        raise ValueError(
            f"the response {quote_names(absent)} is absent, others are given, and {quote_names(enumerated)} is left to "
            "enumeration: give all responses or none"
        )
    return poutine.condition(model, data={name: sites[name]["value"] for name in absent}), absent


def _run(model: Program, guide: Program, data: tuple[Tensor | None, ...]) -> tuple[Trace, Trace, list[Site]]:
    """A trace of the model at latents of the guide, one of the guide, and the latents that have other sizes in each.

    Those latents are drawn by the model. Plates use all of their rows, unless the programs do not run on all rows.
    """
    with torch.no_grad(), validation(False):
        try:
            with all_rows():
                return _run_once(model, guide, data)
        except (RuntimeError, ValueError, IndexError):
            return _run_once(model, guide, data)


def _run_once(model: Program, guide: Program, data: tuple[Tensor | None, ...]) -> tuple[Trace, Trace, list[Site]]:
    if isinstance(poutine.unwrap(guide), Messenger):  # one of Pyro's guides that run inside of the model
        return get_trace(model, *data), Trace(), []
    guide_trace = get_trace(guide, *data)
    drawn, mismatched = latent_sites(guide_trace), []

    def value_of(site: Site) -> Tensor | None:
        if is_subsample(site):
            return _same_rows(site, guide_trace)
        if site["name"] not in drawn:
            return None
        if _same_sizes(site, drawn[site["name"]]):
            return drawn[site["name"]]["value"]
        mismatched.append(site)
        return None

    try:
        trace = get_trace(SubstituteLatents(value_of)(model), *data)
    except NotImplementedError:  # a latent that the guide does not have has an improper prior
        if not mismatched:
            raise
        trace = Trace()
    return trace, guide_trace, mismatched


def _same_rows(site: Site, guide_trace: Trace) -> Tensor | None:
    """The rows that a plate of the guide has, if a plate of the model has this name and size."""
    drawn = guide_trace.nodes.get(site["name"])
    if drawn is None or vars(drawn["fn"]) != vars(site["fn"]):
        return None
    return drawn["value"]


def _same_sizes(site: Site, drawn: Site) -> bool:
    """Whether a value of the guide is one of the model's latent: plates of one name have one size, and shapes fit."""
    sizes = {frame.name: frame.size for frame in drawn["cond_indep_stack"]}
    asked, (plates,) = site["fn"].shape(), sized_plates({**site, "value": drawn["value"]})
    if any(sizes.get(frame.name, frame.size) != frame.size for frame in plates):
        return False
    try:
        return torch.broadcast_shapes(drawn["value"].shape, asked).numel() == asked.numel()
    except RuntimeError:
        return False


def _warn_of_other_rows(fit: Fitted, data: tuple[Tensor | None, ...], guide_trace: Trace) -> None:
    """Warns if the guide has latents of each row that it does not compute from the arguments, and the rows are others.

    A fit that was loaded does not know its data, and gives no warning.
    """
    pairs = [(new, old) for new, old in zip(data, fit.example, strict=False) if new is not None]
    known = any(old.any() for _, old in pairs)
    if not known or any(new.shape != old.shape for new, old in pairs):
        return
    if all(torch.equal(new, old) for new, old in pairs):
        return
    rows = len(pairs[0][0])
    local = {
        name: site["value"].shape
        for name, site in latent_sites(guide_trace).items()
        if not site["infer"].get("is_auxiliary") and any(frame.size == rows for frame in site["cond_indep_stack"])
    }
    if not local or rows == 1:
        return
    try:
        with torch.no_grad(), validation(False):
            fewer = get_trace(fit.guide, *(None if part is None else part[:-1] for part in data))
    except (IndexError, RuntimeError, TypeError, ValueError):
        return
    if fixed := [name for name, shape in local.items() if name in fewer and fewer.nodes[name]["value"].shape == shape]:
        warn_user(
            f"the guide has one value of {quote_names(fixed)} for each row of the data of the fit: row i of these data "
            "is taken to be row i of those"
        )


def _does_not_run(data: tuple[Tensor | None, ...], error: Exception) -> str:
    shapes = ", ".join("None" if part is None else f"{tuple(part.shape)} {part.dtype}" for part in data) or "nothing"
    if not data:
        advice = "give the data, as to fit"
    elif "required positional argument" in str(error):
        advice = "give None for an argument that the program only observes (obs=None), or a default, model(x, y=None)"
    else:
        advice = "sizes have to follow from the arguments, as in pyro.plate('data', len(x))"
    return f"the programs do not run on these data, {shapes}: {str(error).splitlines()[0]}; {advice}"


def _other_rows(mismatched: list[Site], guide_trace: Trace, data: tuple[Tensor | None, ...]) -> str:
    """Why a guide of other data has no latents for these, and what to do."""
    site = mismatched[0]
    names = quote_names(dict.fromkeys(other["name"] for other in mismatched))
    had, asked = guide_trace.nodes[site["name"]]["value"].shape, site["fn"].shape()
    what = f"the guide has {names} for the data of the fit, of shape {tuple(had)}; these data ask for {tuple(asked)}"
    rows = {len(part) for part in data if part is not None}
    plates = [frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.size not in rows]
    if plates:
        return f"{what}: make the size of the plate {plates[0]!r} a constant of the program that new data do not change"
    return (
        f"{what}. Latents of new rows need a guide that computes them from the rows (AutoFlow(model, amortized='x') or "
        "your own), or a fit that has the new rows too, with their response masked out (pyro.poutine.mask)"
    )
