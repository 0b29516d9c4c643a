"""The section with the verdict on a posterior, and the statistics behind it."""

from ppgen.diagnostics import CHECKS, Verdict
from ppgen.diagnostics.verdict import BAD, GOOD, UNKNOWN, WEIGHTED
from ppgen.report.context import FitContext
from ppgen.report.page import Section, Table

__all__ = ["verdict_section"]

ANSWERS = {
    GOOD: "Yes. The draws can be used as they are.",
    WEIGHTED: "Yes, with weights. The draws can be used once they are resampled by their importance weights.",
    BAD: "No. Neither the guide's draws nor their importance weights represent the posterior.",
    UNKNOWN: "There is no verdict:",
}
COUNTS = {"restarts"}  # statistics that are whole numbers


def verdict_section(context: FitContext) -> Section | None:
    """The verdict, what to try next, and a row for each statistic; None if the posterior was not judged."""
    if (verdict := context.verdict) is None:
        return None
    answer = ANSWERS[verdict.level]
    if verdict.level == BAD and context.fit.stored_draws:
        answer = "No. The sampler's draws do not represent the posterior."
    paragraphs = [" ".join([answer, *(why for name, why in verdict.reasons.items() if name == "density")])]
    if verdict.advice:
        paragraphs.append(f"What to try next: {'; '.join(verdict.advice)}.")
    rows = _rows(verdict)
    header = ("statistic", "value", "meaning and bound", "remark")
    return Section("Can the posterior be trusted?", "\n\n".join(paragraphs), [Table(header, rows)] if rows else [])


def _rows(verdict: Verdict) -> list[tuple]:
    """The statistics of the verdict, and reasons without a statistic."""
    rows: list[tuple] = []
    for name, value in verdict.statistics.items():
        description = CHECKS[name].description if name in CHECKS else ""
        shown = int(value) if name in COUNTS else value
        rows.append((name, shown, description, verdict.remark(name)))
    others = {k: why for k, why in verdict.reasons.items() if k not in verdict.statistics and k != "density"}
    return rows + [(name, None, "", why) for name, why in others.items()]
