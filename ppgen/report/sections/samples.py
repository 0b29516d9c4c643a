"""The sections with samples of a model, and with their columns."""

from typing import Any

import numpy as np
import torch

from ppgen.evaluation.mixed_columns import MixedColumns
from ppgen.evaluation.table_quality import associations
from ppgen.models.likelihood import Point
from ppgen.models.protocols import Decodes
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.images import MAX_IMAGES
from ppgen.report.figures.style import shorten
from ppgen.report.page import Figure, Section

__all__ = ["columns_of_samples", "samples"]

MAX_ROWS = 2000
MAX_COLUMNS = 40  # of a table whose pairs of columns are shown
MAX_LABELS, IMAGES_OF_A_LABEL = 10, 12
MIN_DRAWS, MIN_IMAGES = 8, 2  # that are shown even if there is no time for them


def samples(context: RunContext) -> Section:
    """Samples beside training data; for images also means E[x | z], without the noise of p(x | z), and each label."""
    _, *labels = tensors = context.tensors(context.data.train, MAX_IMAGES if context.images else MAX_ROWS)
    drawn, means = _draw(context, len(tensors[0]), labels, means=context.images and _is_noisy(context))
    data = context.in_source_units(tensors[0][: len(drawn)])
    caption = f"{len(drawn)} samples of the model beside as many rows of the training data."
    if context.conditional:
        caption += " The model is given the labels of these rows."
    if means is not None:
        caption += " Means are E[x | z] at the latent codes of the samples: the decoder's output without its noise."
    picture = figures.samples(drawn, data=data, means=means, **context.figure_options)
    items = [Figure(picture, caption, f"Samples. {caption}")]
    if context.images and context.conditional and context.data.classes:
        items.append(_by_label(context, mean=means is not None))
    return Section("Samples", "", items)


def _is_noisy(context: RunContext) -> bool:
    """Whether the model adds noise to what its decoder returns."""
    return isinstance(context.model, Decodes) and not isinstance(getattr(context.model, "likelihood", None), Point)


def _draw(
    context: RunContext, count: int, labels: list[torch.Tensor], *, means: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples, and with `means` also the means at their latent codes; as many as there is time for."""
    drawn: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for rows in context.batches(count, context.budget.part(0.3, "samples"), least=MIN_DRAWS):
        y = [part[rows] for part in labels]
        for mean in (False, True)[: 1 + means]:
            drawn[mean].append(_sample(context, rows, y, mean=mean))
    return np.concatenate(drawn[False]), np.concatenate(drawn[True]) if means else None


def _sample(context: RunContext, rows: slice, labels: list[torch.Tensor], *, mean: bool) -> np.ndarray:
    """Samples, or their means, whose latent codes depend on the seed and on the rows alone."""
    with torch.random.fork_rng():
        torch.manual_seed(context.seed + rows.start)
        return context.in_source_units(context.model.sample(rows.stop - rows.start, *labels, mean=mean))


def _by_label(context: RunContext, *, mean: bool) -> Figure:
    """A row of images for each label, with the same random numbers in all rows."""
    like = context.tensors(context.data.train, 1)[1]
    labels = range(min(context.data.classes or 0, MAX_LABELS))
    drawn: list[list[np.ndarray]] = [[] for _ in labels]
    for rows in context.batches(IMAGES_OF_A_LABEL, context.budget.part(0.2, "samples by label"), least=MIN_IMAGES):
        for label in labels:
            y = torch.full((rows.stop - rows.start,), label, dtype=like.dtype, device=like.device)
            drawn[label].append(_sample(context, rows, [y], mean=mean))
    names, images = context.data.label_names, {}
    for label in labels:
        name = shorten(names[label], 12) if names else f"label {label}"
        images[name if name not in images else f"{name} ({label})"] = np.concatenate(drawn[label])
    kind, classes = "Means E[x | z]" if mean else "Samples", context.data.classes
    of = "each label" if len(labels) == classes else f"the first {len(labels)} of {classes} labels"
    caption = f"{kind} of {of}. All images in a column have the same random numbers."
    picture = figures.sequences(images, limits=context.figure_options["limits"])
    return Figure(picture, caption, f"Samples by label. {caption}")


def columns_of_samples(context: RunContext) -> Section | None:
    """The distribution of each column of a table, and associations of columns, in held-out rows and in samples."""
    names: Any = context.data.columns
    split = context.data.test if len(context.data.test.x) else context.data.train
    if names is None or not 2 <= len(names) <= MAX_COLUMNS or len(split.x) < MIN_DRAWS:
        return None
    rows, *labels = context.tensors(split, MAX_ROWS)
    drawn, _ = _draw(context, len(rows), labels, means=False)
    data = context.in_source_units(rows)
    kinds: tuple[None, ...] = (None,) * len(names)
    found = MixedColumns(tuple(names), kinds, (data.astype(np.float64), drawn.astype(np.float64)))
    real, synthetic = (associations(found, number).to_numpy() for number in (0, 1))
    which = "held-out rows" if split is context.data.test else "training rows"
    caption = f"The distribution of each column in {len(data)} {which} and in {len(drawn)} samples."
    pairs = f"Rank correlations of each two columns in {which} and in samples."
    picture = figures.marginals(found.rows[0], found.rows[1], names, kinds)
    items = [Figure(picture, caption, caption), Figure(figures.associations(real, synthetic, names), pairs, pairs)]
    return Section("Columns", "", items)
