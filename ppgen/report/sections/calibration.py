"""The section on simulation-based calibration of the inference."""

from typing import Any

from ppgen.report import figures
from ppgen.report.context import PosteriorContext
from ppgen.report.page import Figure, Section, Table

__all__ = ["calibration"]

TEXT = (
    "Latents and data were drawn from the model, and inference was run on the data. If the inference is right, the "
    "true latents have uniform ranks among its draws. This judges the inference on average over the prior."
)


def calibration(context: PosteriorContext) -> Section | None:
    """The ranks of true values among draws, and tests of their uniformity; None without a calibration."""
    if (result := context.calibration) is None:
        return None
    count, draws = len(result.ranks.ranks), result.ranks.draws
    caption = f"Ranks of the true values among {draws} draws, in {count} simulations."
    picture = figures.uniformity(result.ranks, xlabel="rank, as a share")
    items: list[Any] = [Figure(picture, caption, f"Line charts. {caption}")]
    rows = [
        (name, float(p), float(q))
        for part in (result.ranks, result.distances)
        for name, p, q in zip(part.names, part.p_values, part.symmetry, strict=True)
    ]
    items.append(Table(("component", "p-value of uniform ranks", "p-value of symmetric ranks"), rows))
    return Section("Calibration", f"All tests together have p = {result.p_value:.3f}. {TEXT}", items)
