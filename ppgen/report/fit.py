"""The report of a fit from Python: in short, training, the posterior and whether it can be trusted, predictions."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ppgen.diagnostics import Calibration
from ppgen.diagnostics.verdict import GOOD, MANY, WEIGHTED, diagnose, enough
from ppgen.report.page import Report
from ppgen.report.posterior import log_evidence, posterior
from ppgen.report.predictions import calibration as calibrated
from ppgen.report.predictions import predictions
from ppgen.report.sections import summary, training
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group

__all__ = ["report_of_fit"]

MOST = 30_000_000  # numbers of data times draws, up to which replicates are drawn


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
) -> Report:
    """Says what a fit of any programs came to on data, and whether its posterior can be trusted.

    Args:
        data: what the programs take, as of `Fit.to_arviz`.
        title: of the page; after the model's name if left out.
        draws: samples of the guide a chain; as many as of `Fit.diagnose` if left out.
        starts: from how many points other modes are looked for; 0 for none.
        dims, coords: names of the latents' dimensions, as of `Fit.to_arviz`.
        calibration: what `ppgen.diagnostics.sbc` or `sbc_of` gave, to be shown too.
        seed: of draws and starts; the caller's random state is left as it was.

    Raises:
        ValueError, LookupError: as `Fit.to_arviz`.
    """
    chains, numbers_of_data = len(fit.chains), sum(part.numel() for part in data)
    most = MANY if draws is None else draws
    idata = enough(
        fit, *data, draws=draws, predictive=chains * most * numbers_of_data <= MOST, dims=dims, coords=coords, seed=seed
    )
    verdict = diagnose(fit, *data, starts=starts, idata=idata, seed=seed)
    numbers: dict[str, Any] = {"posterior": verdict.level}
    if (evidence := log_evidence(group(idata, "vi_stats"), fit.best)) is not None:
        value = evidence if verdict.level in (GOOD, WEIGHTED) else f"{evidence[0]:.5g}, by weights not to be relied on"
        numbers["log evidence, by importance weights (nats)"] = value
    if "auto" in fit.metadata:
        numbers["guide"] = fit.metadata["auto"]
    model = inspect.unwrap(fit.model)
    model = getattr(model, "func", model)  # of a partial
    made = getattr(model, "__self__", model)  # of a method, what it is of
    name = getattr(made, "__name__", type(made).__name__)
    unit = "nats per datum" if fit.num_data > 1 else "nats"
    sections = [
        summary(fit, f"What is the posterior of {name}, and can it be trusted?", numbers, unit),
        posterior(fit, idata, verdict),
        predictions(fit, idata, verdict),
        None if calibration is None else calibrated(calibration),
        training(fit, unit),
    ]
    shapes = ", ".join(str(tuple(part.shape)) for part in data)
    held = group(idata, "posterior")
    drawn = "no" if held is None else held.sizes["draw"]
    what = f"data of shape {shapes}" if data else "no data"
    return Report(title or f"Posterior of {name}", f"{what}; {drawn} draws a restart", [s for s in sections if s])
