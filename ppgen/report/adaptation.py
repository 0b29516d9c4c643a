"""The report of domain adaptation: how well labels transfer, adversarial training, and the features."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.diagnostics import Verdict
from ppgen.models import DANN
from ppgen.report.context import AdaptationContext
from ppgen.report.page import Report
from ppgen.report.posterior import POSTERIOR_SECTIONS
from ppgen.report.registry import Row, build_sections
from ppgen.report.sections.adversarial import adversarial_training
from ppgen.report.sections.configuration import configuration
from ppgen.report.sections.features import features
from ppgen.report.sections.summary import summary
from ppgen.report.sections.training import training
from ppgen.training.result import Fitted
from ppgen.training.training_failures import TrainingWarning

__all__ = ["SECTIONS", "report_of_adaptation"]

ALIGNMENT = (
    "The features of both domains should become alike. If there is a critic, it should fail at the end: it could "
    "distinguish the domains at first, and no longer can. A critic that was at chance from the start has aligned "
    "nothing. If all rows have the same features, the critic fails too, and so does the classifier of the labels."
)

SECTIONS: tuple[Row[AdaptationContext], ...] = (
    Row(summary),
    Row(training),
    Row(partial(adversarial_training, text=ALIGNMENT)),
    Row(features),
    *POSTERIOR_SECTIONS,
    Row(configuration),
)


def report_of_adaptation(
    fit: Fitted,
    model: DANN,
    held_out: Mapping[str, tuple[Tensor, np.ndarray | None]],
    *,
    names: tuple[str, str],
    label_names: Sequence[str] | None = None,
    training_warnings: Sequence[TrainingWarning] | None = None,
    idata: Any = None,
    verdict: Verdict | None = None,
    numbers: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    note: str = "",
) -> Report:
    """Reports on how well labels transfer from a source domain to a target domain.

    Args:
        fit: the run.
        model: the model, which holds the weights to report on.
        held_out: rows of "source" and of "target", each with its labels or None.
        names: the names of source and target.
        label_names: the names of the labels.
        training_warnings: failures of training; those that the fit reports if left out.
        idata: the posterior, as for `ppgen.report.report_of_run`.
        verdict: the verdict on that posterior.
        numbers: further results by name.
        config: the configuration.
        note: what a reader has to know about the data, beside their number.
    """
    source, target = names
    context = AdaptationContext(
        fit=fit,
        model=model,
        held_out=held_out,
        domains=names,
        label_names=label_names,
        question=f"How well do the labels of {source} transfer to {target}, whose labels were not used?",
        numbers=numbers or {},
        idata=idata,
        verdict=verdict,
        training_warnings=training_warnings,
        config=config,
    )
    rows = ", ".join(f"{len(x)} rows of {domain}" for domain, (x, _) in held_out.items())
    title = f"{type(model).__name__}: {source} to {target}"
    return Report(
        title, ". ".join(filter(None, (f"held out: {rows}", note))), build_sections(SECTIONS, context, model=model)
    )
