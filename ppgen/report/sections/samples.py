"""The section with samples of a model."""

from ppgen.models.likelihood import Point
from ppgen.models.protocols import Decodes
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.images import MAX_IMAGES
from ppgen.report.page import Figure, Section

__all__ = ["samples"]

MAX_ROWS = 2000


def samples(context: RunContext) -> Section:
    """Samples beside training data; for images also means E[x | z], without the noise of p(x | z)."""
    _, *labels = tensors = context.tensors(context.data.train, MAX_IMAGES if context.images else MAX_ROWS)
    count = len(tensors[0])
    data = context.in_source_units(tensors[0])
    drawn = context.in_source_units(context.model.sample(count, *labels))
    caption = f"{count} samples of the model beside as many rows of the training data."
    if context.conditional:
        caption += " The model is given the labels of these rows."
    items = [Figure(figures.samples(drawn, data=data, **context.figure_options), caption, f"Samples. {caption}")]
    noisy = isinstance(context.model, Decodes) and not isinstance(getattr(context.model, "likelihood", None), Point)
    if context.images and noisy:
        means = context.in_source_units(context.model.sample(count, *labels, mean=True))
        caption = "Means E[x | z] at other latent codes z ~ p(z): the decoder's output without the noise of p(x | z)."
        items.append(Figure(figures.samples(means, **context.figure_options), caption, f"Samples. {caption}"))
    return Section("Samples", "", items)
