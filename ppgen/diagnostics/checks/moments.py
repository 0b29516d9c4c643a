"""Checks of how far the importance weights move the latents' means and standard deviations."""

import math
from collections.abc import Callable

from ppgen.diagnostics.checks.check import BAD, RICHER, WEIGHTED, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.posterior.importance import MAX_SHIFT

__all__ = ["LOG_RATIO", "SHIFT", "monte_carlo_error"]

MAX_CORRECTABLE_SHIFT = 0.5  # up to which weights can correct them
BOUND = f"It should be at most {MAX_SHIFT}, and at most {MAX_CORRECTABLE_SHIFT} for weights to correct it."


def monte_carlo_error(moment: str, ess: float) -> float:
    """Twice the standard error of `shift` or `log_ratio` with this effective sample size, for normal latents."""
    return 2 / math.sqrt(ess if moment == "shift" else 2 * ess)


def moment_check(moment: str) -> Callable[[PosteriorDraws], Finding | None]:
    """The check of one moment, "shift" or "log_ratio"."""

    def compute(draws: PosteriorDraws) -> Finding | None:
        if draws.per_datum or moment not in draws.moment_shifts:
            return None
        value, error = draws.moment_shifts[moment], monte_carlo_error(moment, float(draws.ess))
        noise = f"(plus {error:.2f} for Monte Carlo error)"
        if value > MAX_CORRECTABLE_SHIFT + error:
            reason = f"above {MAX_CORRECTABLE_SHIFT} {noise}: the weights move the draws too far to correct them"
            return Finding(value, reason, BAD, advise=True)
        wider = 0.0 if draws.tails is None else draws.tails.certain_shifts[moment]
        if wider > MAX_CORRECTABLE_SHIFT:
            reason = f"draws from wider distributions move it by more than {MAX_CORRECTABLE_SHIFT}; weights do not"
            return Finding(value, reason, BAD, advise=True)
        if value > MAX_SHIFT + error:
            return Finding(value, f"above {MAX_SHIFT} {noise}: the weights move the guide's draws", WEIGHTED)
        return Finding(value)

    return compute


SHIFT = Check(
    "shift",
    "The largest distance by which the weights move the mean of a latent, in standard deviations.",
    moment_check("shift"),
    BOUND,
    guide_advice=(RICHER,),
    of_weights=True,
)
LOG_RATIO = Check(
    "log_ratio",
    "The largest |log ratio| of a latent's standard deviations with and without weights.",
    moment_check("log_ratio"),
    BOUND,
    guide_advice=(RICHER,),
    of_weights=True,
)
