"""The section with reconstructions of held-out data."""

from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.images import MAX_PAIRS
from ppgen.report.page import Figure, Section

__all__ = ["reconstructions"]

MAX_ROWS, MAX_LINES = 2000, 300  # rows of a table, and lines in the plane


def reconstructions(context: RunContext) -> Section:
    """Held-out rows and their reconstructions."""
    count = MAX_PAIRS if context.images else MAX_LINES if context.data.event_shape == (2,) else MAX_ROWS
    tensors = context.tensors(context.held_out, count)
    x, x_hat = (context.in_source_units(part) for part in (tensors[0], context.model.reconstruct(*tensors)))
    picture = figures.reconstructions(x, x_hat, **context.figure_options)
    caption = f"{len(x)} rows of the {context.split} data and their reconstructions from the latent code."
    return Section("Reconstructions", "", [Figure(picture, caption, f"Originals and reconstructions. {caption}")])
