"""The section that compares the density of a flow with the density that it was fitted to."""

from ppgen.report import figures
from ppgen.report.context import DensityContext
from ppgen.report.page import Figure, Section

__all__ = ["density"]

TEXT = (
    "The reverse KL divergence is large where the flow has mass and the target density has none. It does not change "
    "with mass that the flow misses. A missed mode is bright on the left and dark on the right, and then log Z by "
    "importance sampling is below log Z by quadrature."
)


def density(context: DensityContext) -> Section:
    """Both densities, and draws of the flow."""
    columns = context.target.columns
    caption = "The target density and the density of the flow, on the same scale."
    heat_maps = figures.densities(context.side, context.densities, columns=columns)
    scattered = f"{len(context.draws)} draws of the flow."
    return Section(
        "Density",
        TEXT,
        [
            Figure(heat_maps, caption, f"Heat maps. {caption}"),
            Figure(figures.samples(context.draws, columns=columns), scattered, f"Scatter plot. {scattered}"),
        ],
    )
