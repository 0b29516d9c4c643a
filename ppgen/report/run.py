"""The report of a run of a generative model.

Nothing here depends on the class of the model. Each row of `SECTIONS` names the capability that its section needs, a
protocol of `ppgen.models.protocols`. x has shape (n, *event_shape) and is scaled as the model sees it; figures show it
in the units of the source.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ppgen.data import Data
from ppgen.diagnostics import Verdict
from ppgen.models.protocols import Denoises, Encodes, Reconstructs, Samples, TransportsToBase
from ppgen.report.context import RunContext
from ppgen.report.page import Report
from ppgen.report.posterior import POSTERIOR_SECTIONS
from ppgen.report.registry import Row, build_sections
from ppgen.report.sections.adversarial import adversarial_training
from ppgen.report.sections.codes import latent_codes
from ppgen.report.sections.configuration import configuration
from ppgen.report.sections.coverage import data_coverage
from ppgen.report.sections.diffusion import noise_to_data
from ppgen.report.sections.flow import flow
from ppgen.report.sections.growth import progressive_growing
from ppgen.report.sections.reconstructions import reconstructions
from ppgen.report.sections.samples import columns_of_samples, samples
from ppgen.report.sections.summary import summary
from ppgen.report.sections.training import training
from ppgen.training.result import Fitted
from ppgen.utils.budget import Budget

__all__ = ["SECTIONS", "report_of_run"]

SHORT_OF_TIME = "The time for this report was short: some sections show fewer rows, or are left out"

SECTIONS: tuple[Row[RunContext], ...] = (
    Row(summary),
    Row(training),
    Row(adversarial_training),
    Row(samples, needs=Samples),
    Row(columns_of_samples, needs=Samples),
    Row(progressive_growing),
    Row(flow, needs=TransportsToBase),
    Row(noise_to_data, needs=Denoises),
    Row(data_coverage, needs=Samples),
    Row(reconstructions, needs=Reconstructs),
    Row(latent_codes, needs=Encodes),
    *POSTERIOR_SECTIONS,
    Row(configuration),
)


def report_of_run(
    fit: Fitted,
    model: Any,
    data: Data,
    *,
    idata: Any = None,
    verdict: Verdict | None = None,
    numbers: Mapping[str, Any] | None = None,
    title: str,
    config: Mapping[str, Any] | None = None,
    stages: Sequence[np.ndarray] = (),
    note: str = "",
    unit: str = "nats per datum",
    seed: int = 0,
    budget: Budget | None = None,
) -> Report:
    """Reports on a run of a generative model, in figures and numbers.

    Args:
        fit: the run.
        model: the model, which holds the weights to report on.
        data: the data that it was fitted to.
        idata: the posterior on held-out data, the result of `ppgen.diagnostics.to_arviz`.
        verdict: the verdict on that posterior.
        numbers: further results by name with the unit: a number, text, or a pair (value, standard error).
        title: the title of the page.
        config: the configuration, as plain values that YAML can hold.
        stages: what a growing model drew from the same latent codes at the end of each stage.
        note: what a reader has to know about the data, beside their number.
        unit: the unit of the loss.
        seed: the seed of the samples; the caller's random state does not change.
        budget: the time; where it is short, sections show fewer rows and draws, or are left out.
    """
    goal = "generate and reconstruct data" if isinstance(model, Reconstructs) else "generate data"
    question = (
        f"How well does this {type(model).__name__}, fitted to {len(data.rows['train'])} rows of {data.name}, {goal} "
        "that it was not fitted to?"
    )
    context = RunContext(
        fit=fit,
        model=model,
        data=data,
        question=question,
        unit=unit,
        numbers=numbers or {},
        idata=idata,
        verdict=verdict,
        config=config,
        stages=stages,
        seed=seed,
        budget=Budget() if budget is None else budget,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sections = build_sections(SECTIONS, context, model=model)
    cut = SHORT_OF_TIME if context.budget.cut else ""
    return Report(title, ". ".join(filter(None, (context.data_in_words, note, cut))), sections)
