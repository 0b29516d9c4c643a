"""One row of the table of checks, and the result of a check.

A check reads a fit's posterior draws and returns a statistic, how much it lowers the verdict, and why.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ppgen.diagnostics.checks.draws import PosteriorDraws

__all__ = ["BAD", "GOOD", "RICHER", "UNKNOWN", "WEIGHTED", "Check", "Finding", "worst_level"]

GOOD, WEIGHTED, BAD = LEVELS = "good", "usable with weights", "not to be trusted"
UNKNOWN = "without a density to judge by"
RICHER = 'a richer guide: guide="auto", AutoMultivariateNormal, or AutoFlow'


def worst_level(levels: list[str]) -> str:
    """The worst of some levels, `GOOD` if there are none."""
    return max(levels, key=LEVELS.index, default=GOOD)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        value: the statistic; None if it could not be computed.
        reason: what is wrong, in words; empty if nothing is.
        level: the best verdict that this finding allows. A reason at the level `GOOD` only explains a bad verdict
            that other checks have found, and is dropped from a good one.
        advise: whether the advice of the check applies.
        note: why a value beyond its usual bound is good all the same; shown whatever the verdict.
    """

    value: float | None = None
    reason: str = ""
    level: str = GOOD
    advise: bool = False
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A row of `ppgen.diagnostics.CHECKS`.

    Attributes:
        name: the name of the statistic.
        meaning: what the statistic measures, in one sentence.
        compute: the function from posterior draws to a finding; None where the check does not apply.
        bound: the values that are acceptable, in words; empty if the statistic is reported and not judged.
        advice: what to try next if the check fails.
        guide_advice: the same about the guide and its training; left out after ``guide="auto"``, which chooses both.
        of_weights: whether it reads importance weights, which draws of a sampler have not.
    """

    name: str
    meaning: str
    compute: Callable[[PosteriorDraws], Finding | None]
    bound: str = ""
    advice: tuple[str, ...] = ()
    guide_advice: tuple[str, ...] = ()
    of_weights: bool = False

    @property
    def judged(self) -> bool:
        """Whether the check can lower the verdict."""
        return bool(self.bound)

    @property
    def description(self) -> str:
        """The meaning and the bound, as reports show them."""
        return f"{self.meaning} {self.bound or 'It is reported and not judged.'}"
