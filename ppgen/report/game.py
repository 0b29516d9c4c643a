"""The section of a report on a game: how the critics fared, and what that is a sign of."""

from ppgen.report import figures
from ppgen.report.page import Figure, Section, Table
from ppgen.result import Fit

__all__ = ["game"]

TEXT = (
    "A critic learns to tell draws from data while the programs learn to fool it. The loss above is the critic's "
    "value, an estimate of a divergence that is no better than the critic; it need not fall. Judge by the samples, and "
    "by the signs below: a critic that has won or collapsed teaches nothing, and players that go round in circles do "
    "not settle."
)


def game(fit: Fit) -> Section | None:
    """The losses and gradients of all players by step, and what they show; None for a loss without critics."""
    chain = fit.chains[fit.best]
    if not chain.signals:
        return None
    caption = "Each critic's loss (minus its value, plus its penalty), and the norms of the players' gradients."
    panels = figures.term_breakdown(chain.signals, unit="each in its own unit")
    found = fit.findings()
    rows = [(finding.sign, finding.player, finding.seen, finding.remedy) for finding in found]
    verdict = "What was seen" if rows else "Nothing was seen of a critic that won or collapsed, nor of circles."
    items = [Figure(panels, caption, f"Line charts. {caption}")]
    table = [Table(("sign", "of", "seen", "what helps"), rows, verdict)] if rows else []
    return Section("The game", TEXT if rows else f"{TEXT}\n\n{verdict}", [*items, *table])
