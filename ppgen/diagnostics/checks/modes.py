"""A check for modes of the posterior that the guide misses."""

from ppgen.diagnostics.checks.check import BAD, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws, on_one_line

__all__ = ["MISSED_MODE_MASS"]

MAX_MISSED_MODE_MASS = 0.05


def missed_mode_mass(draws: PosteriorDraws) -> Finding | None:
    """The posterior mass at the mode that the guide misses most."""
    if (search := draws.mode_search) is None:
        return None
    if search.missed_mass <= MAX_MISSED_MODE_MASS:
        return Finding(search.missed_mass)
    reason = f"above {MAX_MISSED_MODE_MASS}: the guide misses a mode at {on_one_line(search.location)}"
    return Finding(search.missed_mass, reason, BAD, advise=True)


MISSED_MODE_MASS = Check(
    "missed_mode_mass",
    "The share of the posterior's mass at a mode that the guide misses, found by a search from other starting points.",
    missed_mode_mass,
    f"It should be at most {MAX_MISSED_MODE_MASS}.",
    advice=("more restarts, which find other modes; then a model whose modes are identified",),
)
