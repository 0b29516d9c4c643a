"""A watch on games: whether programs and critics still learn from each other, told from their losses and gradients.

With e the critic's edge, minus its loss (its value less the penalty), and c the largest value its divergence can have:

    critic won        the mean of e is above 0.9 c: it tells data from draws with near certainty
    critic collapsed  its gradient is below a thousandth of what it was, and e is about 0: it gives every row one number
    nothing to learn  the programs' gradient is below a thousandth of what it was, while the critic has an edge
    circles           e swings slowly, by more than half of its mean, and by far more than its noise explains
    critic diverges   its gradient is over a hundred times what it was, and above all of the first half's

Where features of two domains are aligned, the critic is meant to fail, for the right reason: it could tell the domains
apart once, and no longer can. There a critic that has won has another name and another remedy:

    critic never fooled         e is above half of c, and as high as it ever was, when the run ends
    critic at chance too early  e was never above a thousandth of c, nor beyond its noise: nothing was ever told apart,
                                so that nothing was aligned
    features collapsed          all rows get one feature; this no loss shows: `ppgen.diagnostics.features_collapsed`

"Is" is the last tenth of the steps, "was" the median of those before; the peak of e is that of means of as many steps.
These are signs, not proofs: what they show happened, what comes of it the samples say.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TrainingWarning", "training_warnings"]

LEAST = 200  # steps, before which nothing is said
SHARE = 10  # the window is one part in so many
CHANCE = 1e-3  # of its ceiling, below which an edge is none; a penalized critic's is small when it is well
BLOCKS = 10  # in which a slow swing is looked for

Array = np.ndarray
Series = Sequence[float] | Array


@dataclass(frozen=True)
class TrainingWarning:
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
    "critic never fooled": (
        "a larger alpha, or more steps, so that its ramp ends before the rates do; a lower rate of the critic or a "
        "penalty on its slope (weight), so that the features find a way; wider features"
    ),
    "critic at chance too early": (
        "a ramp of alpha from 0, so that there are features to align; a critic that learns faster, wider or with a "
        "smaller penalty; or nothing, if the rows themselves cannot be told apart (classifier_test)"
    ),
    "features collapsed": (
        "a smaller alpha or a longer ramp, so that labels are learned before features are aligned; a distance that "
        "does not grow with the features' scale (jensen_shannon); norm='layer' in the network of features"
    ),
    "critic collapsed": "a lower learning rate of the critic, a looser clip, or a gradient penalty in its place",
    "nothing to learn": (
        "a loss that does not saturate, a penalty on the critic's slope, or Wasserstein-1 (wgan_gp), whose slope does "
        "not die where the laws lie apart"
    ),
    "circles": (
        "a zero-centered penalty (r1_gan, r3_gan), averaged weights (ema=0.999), a decaying rate (lr_scheduler='cosine'), "
        "less momentum"
    ),
    "critic diverges": "lower learning rates, or a constraint on the critic (SpectralNorm, a gradient penalty)",
}


def training_warnings(
    adversarial_metrics: Mapping[str, Series],
    upper_bounds: Mapping[str, float | None] | None = None,
    *,
    aligned: Collection[str] = (),
    over: bool = True,
) -> list[TrainingWarning]:
    """What a game's signals show, worst first; nothing while they are few.

    Args:
        signals: arrays (steps,) as `Chain.adversarial_metrics` has them: "critic NAME", "gradient of critic NAME" and "gradient of
            the programs".
        ceilings: by critic's name, the largest value that its divergence can have, None where it has none.
        aligned: names of critics that are meant to fail.
        over: whether the run has ended; a critic that is yet to be fooled is no sign before.
    """
    found: list[TrainingWarning] = []
    programs = np.asarray(adversarial_metrics.get("gradient of the programs", ()), dtype=float)
    for key, losses in adversarial_metrics.items():
        if not key.startswith("critic ") or len(losses) < LEAST:
            continue
        name = key.removeprefix("critic ")
        edge = -np.asarray(losses, dtype=float)
        slope = np.asarray(adversarial_metrics.get(f"gradient of {key}", np.ones_like(edge)), dtype=float)
        upper_bound = (upper_bounds or {}).get(name)
        found += _of_critic(name, edge, slope, programs, upper_bound, won=name not in aligned)
        if name in aligned and upper_bound is not None:
            found += _of_aligned(name, edge, upper_bound, over)
    order = list(REMEDIES)
    return sorted(found, key=lambda finding: order.index(finding.sign))


def _of_aligned(name: str, edge: Array, upper_bound: float, over: bool) -> list[TrainingWarning]:
    """Of a critic that is meant to fail."""
    window = _window(edge)
    parts = np.array_split(edge, len(edge) // window)
    means, now = [float(part.mean()) for part in parts], float(edge[-window:].mean())
    # of ten means of noise, one is four standard errors above zero once in three thousand times
    noise = [4 * float(part.std()) / len(part) ** 0.5 for part in parts]
    peak = max(means)
    if not any(mean > max(CHANCE * upper_bound, least) for mean, least in zip(means, noise, strict=True)):
        sign, seen = "critic at chance too early", f"its edge was never above {peak:.2g}, of at most {upper_bound:.3g}"
    elif over and now > max(upper_bound / 2, 0.9 * peak):
        sign, seen = "critic never fooled", f"its edge is {now:.3g} of at most {upper_bound:.3g}, and was {peak:.3g}"
    else:
        return []
    return [TrainingWarning(sign, f"critic {name}", seen, REMEDIES[sign])]


def _window(edge: Array) -> int:
    """How many steps are called "now"."""
    return max(LEAST // 2, len(edge) // SHARE)


def _of_critic(
    name: str, edge: Array, slope: Array, programs: Array, upper_bound: float | None, *, won: bool
) -> list[TrainingWarning]:
    window = _window(edge)
    now, before = edge[-window:], edge[:-window]
    mean = float(now.mean())
    scale = upper_bound if upper_bound is not None else float(np.abs(before).max())
    found: list[TrainingWarning] = []

    def say(sign: str, seen: str, player: str = f"critic {name}") -> None:
        found.append(TrainingWarning(sign, player, seen, REMEDIES[sign]))

    slope_now, slope_was = float(slope[-window:].mean()), float(np.median(slope[:-window]))
    if won and upper_bound is not None and mean > 0.9 * upper_bound:
        say("critic won", f"its edge is {mean:.3g} of at most {upper_bound:.3g}")
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
