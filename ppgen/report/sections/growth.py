"""The section on progressive growing: what a model drew at the end of each stage."""

from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.page import Figure, Section

__all__ = ["progressive_growing"]

TEXT = "Each stage should keep the coarse structure that the stages before it drew, and add detail."


def progressive_growing(context: RunContext) -> Section | None:
    """Draws at the end of each stage; None for a model that did not grow."""
    if not len(context.stages):
        return None
    sides = getattr(context.model.decoder.network, "sides", ())
    titles = [f"{height} x {width}" for height, width in sides]
    titles = titles or [f"stage {k + 1}" for k in range(len(context.stages))]
    rows = {title: context.in_source_units(x) for title, x in zip(titles, context.stages, strict=False)}
    caption = "Draws at the end of each stage of growth. All images in a column have the same latent code."
    picture = figures.sequences(rows, limits=context.figure_options["limits"])
    return Section("Progressive growing", TEXT, [Figure(picture, caption, f"Images. {caption}")])
