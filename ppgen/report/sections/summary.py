"""The section that all reports begin with: the question, and the results in numbers."""

from ppgen.report.context import FitContext
from ppgen.report.page import Section, Table

__all__ = ["summary"]


def summary(context: FitContext) -> Section:
    """The question that the report answers, and the results in numbers."""
    fit = context.fit
    chain = fit.chains[fit.best]
    if fit.stored_draws:  # by a sampler, whose chains are one result
        of_sampler = {"chains": len(fit.chains), "seconds": chain.seconds, "reason for stopping": chain.stop_reason}
        rows = list({**context.numbers, **of_sampler}.items())
        return Section("Summary", context.question, [Table(("result", "value"), rows)])
    validated = len(chain.validation.get("loss", ())) > 0
    over = "on validation data" if validated else "over the last tenth of the steps"
    rows = [(f"loss {over} ({context.unit})", chain.final), *context.numbers.items()]
    if len(fit.chains) > 1:
        rows.append(("chain", f"{fit.best}, the best of {len(fit.chains)}"))
    rows += [
        ("steps", len(chain.history["loss"])),
        ("seconds", chain.seconds),
        ("reason for stopping", chain.stop_reason),
    ]
    if "length" in fit.metadata:
        rows.append(("length", fit.metadata["length"]))
    if "auto" not in fit.metadata:  # guide="auto" has no training step to compile
        rows.append(("compilation", chain.compiled or "The step was not compiled, as that would have taken longer."))
    return Section("Summary", context.question, [Table(("result", "value"), rows)])
