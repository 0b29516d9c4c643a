"""A check of whether a subset of the rows stands for all of them."""

from ppgen.diagnostics.checks.check import BAD, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.posterior.laplace import Laplace
from ppgen.posterior.many_rows import MAX_ROW_ERROR

__all__ = ["ROW_ERROR"]


def row_error(draws: PosteriorDraws) -> Finding | None:
    """The error of log p, in nats, if it was estimated from a subset of the rows."""
    rows = draws.fit.metadata.get("rows")
    if rows is None:
        return None
    if rows["error"] <= MAX_ROW_ERROR:
        return Finding(rows["error"])
    if rows.get("unit") == Laplace.unit:
        reason = f"above {MAX_ROW_ERROR}: given the others, {rows['all']} latents are not Gaussian enough"
    elif "integrated" in rows:
        reason = f"above {MAX_ROW_ERROR}: {rows['subset']} points do not give the density by all {rows['all']} groups"
    else:
        reason = f"above {MAX_ROW_ERROR}: {rows['subset']} of {rows['all']} rows do not stand for all in the weights"
    return Finding(rows["error"], reason, BAD, advise=True)


ROW_ERROR = Check(
    "row_error",
    "The standard deviation, in nats, of log p as estimated from a part of rows or groups, at draws of the posterior.",
    row_error,
    f"It should be at most {MAX_ROW_ERROR}.",
    advice=("a larger budget; then a posterior that is narrower, from a model with fewer latents for the same rows",),
)
