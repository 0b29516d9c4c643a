"""The section on training: the loss and its terms by step."""

from typing import Any

from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.page import Figure, Section, Table

__all__ = ["training"]


def training(context: FitContext) -> Section | None:
    """The loss by step, its terms, and the restarts; None if no step was taken, and for draws of a sampler."""
    fit, unit = context.fit, context.unit
    chains = [chain for chain in fit.chains if len(chain.history["loss"])]
    if not chains or fit.stored_draws:
        return None
    curves = figures.loss_curves(chains, unit=unit)
    caption = (
        "The loss by step. Thin lines show each step, thick lines a moving average, and points the loss on validation "
        "data."
    )
    final = f"It ends at {fit.chains[fit.best].final:.4g} {unit}."
    items: list[Any] = [Figure(curves, caption, f"Line chart. {caption} {final}")]
    terms = [name for name in fit.history if name != "loss"]
    if terms:
        caption = "The terms of the loss by step. They include their weights, so that their sum is the loss."
        if any("ELBO" in name for name in terms):
            caption += " An ELBO is a loss here: minus the evidence lower bound."
        panels = figures.term_breakdown(fit.history, unit=unit)
        items.append(Figure(panels, caption, f"Line charts of {', '.join(terms)}. {caption}"))
    if len(fit.chains) > 1:
        rows = [(i, c.final, len(c.history["loss"]), c.seconds, c.stop_reason) for i, c in enumerate(fit.chains)]
        items.append(Table(("chain", f"loss ({unit})", "steps", "seconds", "reason for stopping"), rows))
    return Section("Training", "", items)
