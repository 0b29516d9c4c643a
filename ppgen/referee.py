"""A watch on games: whether programs and critics still learn from each other, told from their losses and gradients.

With e the critic's edge, minus its loss (its value less the penalty), and c the largest value its divergence can have:

    critic won        the mean of e is above 0.9 c: it tells data from draws with near certainty
    critic collapsed  its gradient is below a thousandth of what it was, and e is about 0: it gives every row one number
    nothing to learn  the programs' gradient is below a thousandth of what it was, while the critic has an edge
    circles           e swings slowly, by more than half of its mean, and by far more than its noise explains
    critic diverges   its gradient is over a hundred times what it was, and above all of the first half's

"Is" is the last tenth of the steps, "was" the median of those before. These are signs, not proofs: what they show
happened, what comes of it the samples say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Finding", "findings"]

LEAST = 200  # steps, before which nothing is said
SHARE = 10  # the window is one part in so many
BLOCKS = 10  # in which a slow swing is looked for

Array = np.ndarray
Series = Sequence[float] | Array


@dataclass(frozen=True)
class Finding:
    """What was seen of one player of a game, and what is known to help."""

    sign: str
    player: str
    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.sign} ({self.player}): {self.seen}. What helps: {self.remedy}"


REMEDIES = {
    "critic won": (
        "a penalty on the critic's slope (r1_gan, r3_gan, wgan_gp), noise on both samples, or a lower learning rate of "
        "the critic than of the programs"
    ),
    "critic collapsed": "a lower learning rate of the critic, a looser clip, or a gradient penalty in its place",
    "nothing to learn": (
        "a loss that does not saturate, a penalty on the critic's slope, or Wasserstein-1 (wgan_gp), whose slope does "
        "not die where the laws lie apart"
    ),
    "circles": (
        "a zero-centred penalty (r1_gan, r3_gan), averaged weights (ema=0.999), a decaying rate (schedule='cosine'), "
        "less momentum"
    ),
    "critic diverges": "lower learning rates, or a constraint on the critic (SpectralNorm, a gradient penalty)",
}


def findings(signals: Mapping[str, Series], ceilings: Mapping[str, float | None] | None = None) -> list[Finding]:
    """What a game's signals show, worst first; nothing while they are few.

    Args:
        signals: arrays (steps,) as `Chain.signals` has them: "critic NAME", "gradient of critic NAME" and "gradient of
            the programs".
        ceilings: by critic's name, the largest value that its divergence can have, None where it has none.
    """
    found: list[Finding] = []
    programs = np.asarray(signals.get("gradient of the programs", ()), dtype=float)
    for key, losses in signals.items():
        if not key.startswith("critic ") or len(losses) < LEAST:
            continue
        name = key.removeprefix("critic ")
        edge = -np.asarray(losses, dtype=float)
        slope = np.asarray(signals.get(f"gradient of {key}", np.ones_like(edge)), dtype=float)
        found += _of_critic(name, edge, slope, programs, (ceilings or {}).get(name))
    order = list(REMEDIES)
    return sorted(found, key=lambda finding: order.index(finding.sign))


def _of_critic(name: str, edge: Array, slope: Array, programs: Array, ceiling: float | None) -> list[Finding]:
    window = max(LEAST // 2, len(edge) // SHARE)
    now, before = edge[-window:], edge[:-window]
    mean = float(now.mean())
    scale = ceiling if ceiling is not None else float(np.abs(before).max())
    found: list[Finding] = []

    def say(sign: str, seen: str, player: str = f"critic {name}") -> None:
        found.append(Finding(sign, player, seen, REMEDIES[sign]))

    slope_now, slope_was = float(slope[-window:].mean()), float(np.median(slope[:-window]))
    if ceiling is not None and mean > 0.9 * ceiling:
        say("critic won", f"its edge is {mean:.3g} of at most {ceiling:.3g}")
    if slope_now < 1e-3 * slope_was and abs(mean) <= 0.02 * scale:
        say("critic collapsed", f"its gradient fell from {slope_was:.2g} to {slope_now:.2g}, its edge is {mean:.2g}")
    if len(programs) == len(edge) and mean > 0.1 * scale:
        theirs, once = float(programs[-window:].mean()), float(np.median(programs[:-window]))
        if theirs < 1e-3 * once:
            say("nothing to learn", f"their gradient fell from {once:.2g} to {theirs:.2g}", "programs")
    if slope_now > max(100 * slope_was, float(slope[: len(slope) // 2].max())):
        say("critic diverges", f"its gradient rose from {slope_was:.2g} to {slope_now:.2g}")
    low, high, circles = _swing(edge[-2 * window :])
    if circles and high - low > 0.05 * scale:
        say("circles", f"its edge swings between {low:.3g} and {high:.3g}")
    return found


def _swing(edge: Array) -> tuple[float, float, bool]:
    """Lowest and highest block mean of the edge, its trend taken out, and whether they swing rather than flicker."""
    steps = np.arange(len(edge))
    rest = edge - np.polyval(np.polyfit(steps, edge, 1), steps) + edge.mean()
    blocks = np.stack(np.array_split(rest[: len(rest) // BLOCKS * BLOCKS], BLOCKS))
    means, noise = blocks.mean(1), float(np.sqrt(blocks.var(1).mean() / blocks.shape[1]))
    low, high = float(means.min()), float(means.max())
    # the range of ten independent means is above five of their deviations once in a hundred times
    return low, high, high - low > max(10 * noise, abs(float(edge.mean())))
