"""The checks behind a verdict: one row each, evaluated in this order.

A new check is a `Check` in a file of this package and a row here. Verdicts, reports and `describe_checks` take its
name, meaning and bound from the row.
"""

from ppgen.diagnostics.checks.batches import LIKELIHOOD_SHARE
from ppgen.diagnostics.checks.check import Check
from ppgen.diagnostics.checks.convergence import UNCONVERGED_NATS
from ppgen.diagnostics.checks.field_skew import FIELD_SKEW
from ppgen.diagnostics.checks.mixing import BETA, ESS_BULK, ESS_TAIL, MEMORY
from ppgen.diagnostics.checks.modes import MISSED_MODE_MASS
from ppgen.diagnostics.checks.moments import LOG_RATIO, SHIFT
from ppgen.diagnostics.checks.restarts import R_HAT, RESTARTS
from ppgen.diagnostics.checks.row_subset import ROW_ERROR
from ppgen.diagnostics.checks.weights import BAD_ROWS, ESS_RATIO, MISSED_TAIL_MASS, PARETO_K

__all__ = ["CHECKS", "describe_checks"]

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        LIKELIHOOD_SHARE,
        ROW_ERROR,
        FIELD_SKEW,
        PARETO_K,
        MISSED_TAIL_MASS,
        BAD_ROWS,
        ESS_RATIO,
        RESTARTS,
        R_HAT,
        ESS_BULK,
        ESS_TAIL,
        BETA,
        MEMORY,
        SHIFT,
        LOG_RATIO,
        MISSED_MODE_MASS,
        UNCONVERGED_NATS,
    )
}


def describe_checks() -> str:
    """The table of checks as text: a line for each statistic, with its meaning and its bound."""
    width = max(map(len, CHECKS))
    return "\n".join(f"{name:<{width}}  {check.description}" for name, check in CHECKS.items())
