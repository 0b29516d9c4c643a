"""The section of a report on a game: how the critics fared, and what that is a sign of."""

from collections.abc import Sequence

from ppgen.report import figures
from ppgen.report.page import Figure, Section, Table
from ppgen.training.result import Fitted
from ppgen.training.training_failures import TrainingWarning

__all__ = ["game"]

TEXT = (
    "A critic learns to tell draws from data while the programs learn to fool it. The loss above is the critic's "
    "value, an estimate of a divergence that is no better than the critic; it need not fall. Judge by the samples, and "
    "by the signs below: a critic that has won or collapsed teaches nothing, and players that go round in circles do "
    "not settle."
)


def game(fit: Fitted, *, text: str = TEXT, found: Sequence[TrainingWarning] | None = None) -> Section | None:
    """The losses and gradients of all players by step, and what they show; None for a loss without critics.

    Args:
        text: what there is to know of the game.
        found: what was seen of it; the fit's own findings if left out. Any are shown, without critics too.
    """
    chain = fit.chains[fit.best]
    found = fit.training_warnings() if found is None else found
    if not chain.adversarial_metrics and not found:
        return None
    caption = "Each critic's loss (minus its value, plus its penalty), and the norms of the players' gradients."
    rows = [(finding.sign, finding.player, finding.seen, finding.remedy) for finding in found]
    verdict = "What was seen" if rows else "Nothing was seen of a game gone wrong."
    items: list[Figure | Table] = []
    if chain.adversarial_metrics:
        panels = figures.term_breakdown(chain.adversarial_metrics, unit="each in its own unit")
        items.append(Figure(panels, caption, f"Line charts. {caption}"))
    if rows:
        items.append(Table(("sign", "of", "seen", "what helps"), rows, verdict))
    return Section("The game", text if rows else f"{text}\n\n{verdict}", items)
