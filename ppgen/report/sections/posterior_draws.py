"""The section with the marginal densities of the posterior's draws."""

from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.page import Figure, Section

__all__ = ["posterior_draws"]


def posterior_draws(context: FitContext) -> Section | None:
    """The densities of some components of the latents; None without latents."""
    if context.group("posterior") is None:
        return None
    vi = context.group("vi_stats")
    per_datum = vi is not None and "pareto_k" in vi and vi["pareto_k"].ndim > 1
    of = "sampler" if context.fit.stored_draws else "guide"
    caption = (
        f"Draws of the {of}{' for the first row of the data' if per_datum else ''}. A single chain is shown with its "
        "mean and its 94% interval, several chains with a density each."
    )
    picture = figures.posterior(context.idata)
    return Section("Posterior draws", "", [Figure(picture, caption, f"Density plots. {caption}")])
