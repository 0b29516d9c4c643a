"""The section with samples of a model."""

import numpy as np
import torch

from ppgen.models.likelihood import Point
from ppgen.models.protocols import Decodes
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.images import MAX_IMAGES
from ppgen.report.figures.style import shorten
from ppgen.report.page import Figure, Section

__all__ = ["samples"]

MAX_ROWS = 2000
MAX_LABELS, IMAGES_OF_A_LABEL = 10, 12


def samples(context: RunContext) -> Section:
    """Samples beside training data; for images also means E[x | z], without the noise of p(x | z), and each label."""
    _, *labels = tensors = context.tensors(context.data.train, MAX_IMAGES if context.images else MAX_ROWS)
    count = len(tensors[0])
    data = context.in_source_units(tensors[0])
    drawn, means = _draw(context, count, *labels), None
    caption = f"{count} samples of the model beside as many rows of the training data."
    if context.conditional:
        caption += " The model is given the labels of these rows."
    if context.images and _is_noisy(context):
        means = _draw(context, count, *labels, mean=True)
        caption += " Means are E[x | z] at the latent codes of the samples: the decoder's output without its noise."
    picture = figures.samples(drawn, data=data, means=means, **context.figure_options)
    items = [Figure(picture, caption, f"Samples. {caption}")]
    if context.images and context.conditional and context.data.classes:
        items.append(_by_label(context, mean=means is not None))
    return Section("Samples", "", items)


def _is_noisy(context: RunContext) -> bool:
    """Whether the model adds noise to what its decoder returns."""
    return isinstance(context.model, Decodes) and not isinstance(getattr(context.model, "likelihood", None), Point)


def _draw(context: RunContext, count: int, *labels: torch.Tensor, mean: bool = False) -> np.ndarray:
    """Samples, or their means, whose latent codes depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        return context.in_source_units(context.model.sample(count, *labels, mean=mean))


def _by_label(context: RunContext, *, mean: bool) -> Figure:
    """A row of images for each label, with the same random numbers in all rows."""
    names, rows = context.data.label_names, {}
    like = context.tensors(context.data.train, 1)[1]
    for label in range(min(context.data.classes or 0, MAX_LABELS)):
        y = torch.full((IMAGES_OF_A_LABEL,), label, dtype=like.dtype, device=like.device)
        name = shorten(names[label], 12) if names else f"label {label}"
        rows[name if name not in rows else f"{name} ({label})"] = _draw(context, IMAGES_OF_A_LABEL, y, mean=mean)
    kind = "Means E[x | z]" if mean else "Samples"
    of = (
        "each label" if len(rows) == context.data.classes else f"the first {len(rows)} of {context.data.classes} labels"
    )
    caption = f"{kind} of {of}. All images in a column have the same random numbers."
    picture = figures.sequences(rows, limits=context.figure_options["limits"])
    return Figure(picture, caption, f"Samples by label. {caption}")
