"""The report of domain adaptation: what carries over, the game, the plane of features, configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.diagnostics import Verdict
from ppgen.models import DANN, UNKNOWN
from ppgen.report import figures
from ppgen.report.adversarial import game
from ppgen.report.page import Figure, Report, Section
from ppgen.report.posterior import posterior
from ppgen.report.sections import configuration, summary, training
from ppgen.training.result import Fitted
from ppgen.training.training_failures import TrainingWarning

__all__ = ["report_of_adaptation"]

LabeledRows = tuple[Tensor, np.ndarray | None]
EACH = 1000  # points drawn of each domain

GAME = (
    "The features of both domains are to become alike, for the right reason. A critic, where there is one, is meant to "
    "fail: it could tell the domains apart once and no longer can. One that was at chance from the start aligned "
    "nothing, and features that are one for all rows leave nothing to tell apart, nor to label by."
)
FEATURES = (
    "The features of both domains in the plane of their two principal axes. Where the domains lie apart, what the "
    "classifier has learned of the source need not hold of the target. Where they lie together, it may: only if the "
    "same labels meet, which the second picture shows where the target's labels are known."
)


def report_of_adaptation(
    fit: Fitted,
    model: DANN,
    held_out: Mapping[str, LabeledRows],
    *,
    names: tuple[str, str],
    label_names: Sequence[str] | None = None,
    training_warnings: Sequence[TrainingWarning] | None = None,
    idata: Any = None,
    verdict: Verdict | None = None,
    numbers: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Says how well labels carried over from a source to a target.

    Args:
        fit, model: the run, and the model with its weights.
        held_out: rows of "source" and of "target", and their labels or None.
        names: of source and target.
        label_names: of the labels.
        findings: what was seen of the run; the fit's own if left out.
        idata, verdict, numbers, config: as `report_of_run` takes them.
    """
    source, target = names
    question = f"How well do the labels of {source} carry over to {target}, of which no label was seen?"
    sections = [
        summary(fit, question, numbers or {}, "nats per datum"),
        training(fit, "nats per datum"),
        game(fit, text=GAME, found=training_warnings),
        _features(model, held_out, names, label_names),
        posterior(fit, idata, verdict),
        configuration(config),
    ]
    rows = ", ".join(f"{len(x)} rows of {domain}" for domain, (x, _) in held_out.items())
    return Report(f"{type(model).__name__}: {source} to {target}", f"held out: {rows}", [s for s in sections if s])


def _features(
    model: DANN, held_out: Mapping[str, LabeledRows], names: tuple[str, str], label_names: Sequence[str] | None
) -> Section:
    rows = [held_out[domain] for domain in ("source", "target")]
    h = [model.features_of(x[:EACH]).numpy(force=True) for x, _ in rows]
    domains = np.repeat([0, 1], [len(part) for part in h])
    caption = f"{len(domains)} held-out rows by domain."
    plane = figures.latent_plane(_centered(h), domains, label_names=names)
    items = [Figure(plane, caption, f"Scatter plot. {caption}")]
    labels = [None if y is None else y[:EACH] for _, y in rows]
    labeled = [
        (part[y != UNKNOWN], y[y != UNKNOWN])
        for part, y in zip(h, labels, strict=True)
        if y is not None and (y != UNKNOWN).any()
    ]
    classes = sorted({str(label) for _, y in labeled for label in np.unique(y)})
    named = list(label_names) if label_names is not None else [str(k) for k in range(model.num_classes)]
    if len(classes) * len(labeled) <= 12:  # more combinations than can be told apart by color
        where = np.concatenate([y + k * len(named) for k, (_, y) in enumerate(labeled)])
        both = [f"{label}, {name}" for name in names[: len(labeled)] for label in named]
    else:
        where, both = np.concatenate([y for _, y in labeled]), named
    caption = "The same rows by label" + (" and domain." if len(both) > len(named) else ".")
    if len(labeled) == 1:
        caption = "The rows of the source by label; those of the target have none."
    of_labeled = _centered([part for part, _ in labeled])
    plane = figures.latent_plane(of_labeled, where, label_names=both)
    items.append(Figure(plane, caption, f"Scatter plot. {caption}"))
    return Section("Features", FEATURES, items)


def _centered(parts: list[np.ndarray]) -> np.ndarray:
    h = np.concatenate(parts)
    return h - h.mean(0)
