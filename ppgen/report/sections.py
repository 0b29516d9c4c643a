"""The sections that every report has: the run in numbers, training, configuration."""

from collections.abc import Mapping
from typing import Any

import yaml

from ppgen.report import figures
from ppgen.report.page import Figure, Listing, Section, Table
from ppgen.training.result import Fitted

__all__ = ["configuration", "summary", "training"]


def summary(fit: Fitted, question: str, numbers: Mapping[str, Any], unit: str) -> Section:
    """The question that the run answers, and its numbers."""
    chain = fit.chains[fit.best]
    where = "on validation data" if len(chain.validation.get("loss", ())) else "of the last tenth of the steps"
    rows = [(f"loss {where} ({unit})", chain.final), *numbers.items()]
    if len(fit.chains) > 1:
        rows.append(("chain", f"{fit.best}, the best of {len(fit.chains)}"))
    rows += [("steps", len(chain.history["loss"])), ("seconds", chain.seconds), ("why it ended", chain.stop_reason)]
    if "auto" not in fit.metadata:  # which has no step of programs to compile
        rows += [("the step", chain.compiled or "eager: compiling would not have paid")]
    return Section("In short", question, [Table(("number", "value"), rows)])


def training(fit: Fitted, unit: str) -> Section | None:
    """The loss by step, and its terms."""
    chains = [chain for chain in fit.chains if len(chain.history["loss"])]
    if not chains:
        return None
    curves = figures.loss_curves(chains, unit=unit)
    caption = "The loss by step: thin each step, thick a moving average, points on validation data."
    items: list[Any] = [
        Figure(curves, caption, f"Line chart. {caption} It ends at {fit.chains[fit.best].final:.4g} {unit}.")
    ]
    terms = [name for name in fit.history if name != "loss"]
    if terms:
        caption = "The terms of the loss by step, weights included: they add up to it."
        panels = figures.term_breakdown(fit.history, unit=unit)
        items.append(Figure(panels, caption, f"Line charts of {', '.join(terms)}. {caption}"))
    if len(fit.chains) > 1:
        rows = [(i, c.final, len(c.history["loss"]), c.seconds, c.stop_reason) for i, c in enumerate(fit.chains)]
        items.append(Table(("chain", f"loss ({unit})", "steps", "seconds", "why it ended"), rows))
    return Section("Training", "", items)


def configuration(config: Mapping[str, Any] | None) -> Section | None:
    """What was asked for."""
    if config is None:
        return None
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return Section("Configuration", "", [Listing(text)])
