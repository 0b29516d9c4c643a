"""The report of a fit from Python: the posterior, whether it can be trusted, its predictions, and training."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.diagnostics import Calibration
from ppgen.diagnostics.verdict import GOOD, MANY_DRAWS, WEIGHTED, diagnose, draw_enough
from ppgen.report.context import PosteriorContext
from ppgen.report.page import Report
from ppgen.report.posterior import POSTERIOR_SECTIONS
from ppgen.report.registry import Row, build_sections
from ppgen.report.sections.calibration import calibration as calibration_section
from ppgen.report.sections.evidence import log_evidence
from ppgen.report.sections.leave_one_out import leave_one_out
from ppgen.report.sections.predictions import predictions
from ppgen.report.sections.summary import summary
from ppgen.report.sections.training import training
from ppgen.tracing.sites import Program
from ppgen.training.held_out import rows_are_independent
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group
from ppgen.utils.budget import Budget

__all__ = ["SECTIONS", "report_of_fit"]

MAX_REPLICATED = 30_000_000  # numbers of data times draws, up to which data are replicated
LEAST_ROWS = 8  # whose latents are drawn even if there is no time for them
SHORT_OF_TIME = (
    ". The time for this report was short: it has fewer rows or draws, or no search for other modes; all of them, "
    "however long they take, with report(..., seconds=math.inf)"
)
DRAWING_SHARE = 0.6  # of the time, for draws; the rest is for the verdict and the page

SECTIONS: tuple[Row[PosteriorContext], ...] = (
    Row(summary),
    *POSTERIOR_SECTIONS,
    Row(predictions),
    Row(leave_one_out),
    Row(calibration_section),
    Row(training),
)


def report_of_fit(
    fit: Fitted,
    *data: Tensor,
    title: str = "",
    draws: int | None = None,
    starts: int = 4,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    budget: Budget | None = None,
) -> Report:
    """Reports on a fit of any programs to data, and on whether its posterior can be trusted.

    Args:
        fit: the fit.
        *data: the arguments of the programs, as for `ppgen.diagnostics.to_arviz`.
        title: the title of the page; by default it names the model.
        draws: the number of draws of the guide in each chain; chosen as by `ppgen.diagnostics.diagnose` if left out.
        starts: the number of points from which other modes are searched for; 0 for no search.
        dims: names for the dimensions of a variable, as for `ppgen.diagnostics.to_arviz`.
        coords: the values along a dimension, likewise.
        calibration: the result of `ppgen.diagnostics.sbc` or `sbc_of`, to be shown too.
        seed: the seed of draws and starts; the caller's random state does not change.
        budget: the time; where it is short there are fewer draws than would be chosen, or if rows have latents of their
            own fewer rows, at random, and no search for other modes. No limit if left out.

    Raises:
        ValueError: as `ppgen.diagnostics.to_arviz`.
        LookupError: as `ppgen.diagnostics.to_arviz`.
    """
    budget = Budget() if budget is None else budget
    options: dict[str, Any] = {"draws": draws, "seed": seed, "dims": dims, "coords": coords}
    start, drawing = budget.clock(), budget.part(DRAWING_SHARE, "draws")
    if rows_are_independent(fit.model, fit.guide, data):
        idata, data = _draw_rows(fit, data, drawing, options)
    else:
        replicated = len(fit.chains) * (MANY_DRAWS if draws is None else draws) * sum(part.numel() for part in data)
        idata = draw_enough(fit, *data, budget=drawing, predictive=replicated <= MAX_REPLICATED, **options)
    budget.part(1.0, "verdict")
    starts = starts if budget.allows(budget.clock() - start) else 0  # a search takes about as long as the draws
    verdict = diagnose(fit, *data, starts=starts, idata=idata, seed=seed)
    numbers: dict[str, Any] = {"posterior": verdict.level}
    if (evidence := log_evidence(group(idata, "vi_stats"), fit.best)) is not None:
        reliable = verdict.level in (GOOD, WEIGHTED)
        how, doubt = "by importance weights", "by unreliable weights"
        if fit.stored_draws:
            how, doubt = "by the sampler", "unreliable"
        numbers[f"log evidence, {how} (nats)"] = evidence if reliable else f"{evidence[0]:.5g}, {doubt}"
    if "auto" in fit.metadata:
        numbers["guide"] = fit.metadata["auto"]
    name = _name_of(fit.model)
    context = PosteriorContext(
        fit=fit,
        question=f"What is the posterior of {name}, and can it be trusted?",
        unit="nats per datum" if fit.num_data > 1 else "nats",
        numbers=numbers,
        idata=idata,
        verdict=verdict,
        calibration=calibration,
    )
    shapes = ", ".join(str(tuple(part.shape)) for part in data)
    posterior = group(idata, "posterior")
    drawn = "no" if posterior is None else posterior.sizes["draw"]
    subtitle = f"{f'data of shape {shapes}' if data else 'no data'}; {drawn} draws in each chain"
    if budget.cut:
        subtitle += SHORT_OF_TIME
    budget.part(1.0, "page")
    return Report(title or f"Posterior of {name}", subtitle, build_sections(SECTIONS, context))


def _draw_rows(fit: Fitted, data: tuple[Tensor, ...], budget: Budget, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Draws of the latents of as many rows, at random, as there is time for, and these rows."""
    total = len(data[0])
    order = torch.randperm(total, generator=torch.Generator().manual_seed(options["seed"]))

    def draw(count: int) -> tuple[Any, Any]:
        chosen = order[:count].sort().values
        rows = tuple(part[chosen.to(part.device)] for part in data)
        coords = {
            name: [values[i] for i in chosen] if len(values) == total else values
            for name, values in (options["coords"] or {}).items()
        }
        return draw_enough(fit, *rows, predictive=False, **{**options, "coords": coords}), rows

    return budget.at_size(draw, total, least=min(total, LEAST_ROWS))


def _name_of(model: Program) -> str:
    """The name of a function, or of the class whose instance or method the program is."""
    model = inspect.unwrap(model)
    model = getattr(model, "func", model)  # the function of a partial
    owner = getattr(model, "__self__", model)  # the instance of a bound method
    return getattr(owner, "__name__", type(owner).__name__)
