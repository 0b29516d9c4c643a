"""The section on adversarial training: the critics' losses, all gradients, and failures that they show."""

from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.page import Figure, Section, Table

__all__ = ["adversarial_training"]

TEXT = (
    "A critic learns to distinguish samples from data, and the programs learn to make that impossible. The loss above "
    "is the critic's objective. It estimates a divergence only as well as the critic does, and it need not decrease. "
    "Judge by the samples and by the warnings below: programs learn nothing from a critic that always wins or has "
    "collapsed, and optimizers that oscillate do not converge."
)
NO_WARNINGS = "No failure of adversarial training was detected."


def adversarial_training(context: FitContext, *, text: str = TEXT) -> Section | None:
    """The losses and gradients of critics and programs by step, and warnings; None if there is neither.

    Args:
        context: the fit.
        text: what a reader should know about this training.
    """
    fit = context.fit
    warnings = fit.training_warnings() if context.training_warnings is None else context.training_warnings
    metrics = fit.chains[fit.best].adversarial_metrics
    if not metrics and not warnings:
        return None
    items: list[Figure | Table] = []
    if metrics:
        caption = (
            "Each critic's loss (its penalty minus its objective), and the norms of the gradients of critics and "
            "programs, by step."
        )
        panels = figures.term_breakdown(metrics, unit="each in its own unit")
        items.append(Figure(panels, caption, f"Line charts. {caption}"))
    rows = [(warning.name, warning.subject, warning.observed, warning.advice) for warning in warnings]
    if rows:
        items.append(Table(("warning", "about", "observed", "known fixes"), rows, "Warnings."))
    return Section("Adversarial training", text if rows else f"{text}\n\n{NO_WARNINGS}", items)
