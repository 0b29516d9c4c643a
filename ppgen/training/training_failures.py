"""Failures of adversarial training, detected from the losses and gradients of critics and programs.

Let V be a critic's objective, minus its loss (the estimate of the divergence less the penalty), and c the largest
value that the divergence can have:

    critic won           the mean of V is above 0.9 c: the critic separates data from samples almost surely
    critic collapsed     its gradient is below a thousandth of what it was, and V is about 0: its output is constant
    vanishing gradients  the programs' gradient is below a thousandth of what it was, while V is clearly above 0
    oscillation          V oscillates slowly, by more than half of its mean and by far more than its noise explains
    critic diverges      its gradient is over a hundred times what it was, and above its maximum in the first half

Where a loss aligns the features of two domains, the critic should fail, because the features no longer separate the
domains. There "critic won" is replaced by two other warnings:

    critic never fooled         at the end of the run V is above half of c, and near its maximum
    critic at chance too early  V was never above a thousandth of c, nor above its noise: the critic never separated
                                the domains, so nothing was aligned
    features collapsed          all rows have one feature; losses do not show it, `ppgen.evaluation.features_collapsed`
                                does

"Is" means the last tenth of the steps, "was" the median of the steps before; the maximum of V is that of means over
windows of the same length. The warnings are heuristics: judge the consequences by samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["ADVICE", "CriticProperties", "TrainingWarning", "critic_properties", "training_warnings"]

MIN_STEPS = 200  # fewer steps give no warnings
WINDOW_FRACTION = 10  # the last window is one part in so many
CHANCE = 1e-3  # of c; a smaller objective is at chance. The objective of a penalized critic is small in a good run
BLOCKS = 10  # of the last two windows, whose means show a slow oscillation

Array = np.ndarray
Series = Sequence[float] | Array


@dataclass(frozen=True)
class TrainingWarning:
    """A detected failure of training.

    Args:
        name: the kind of failure, a key of `ADVICE`.
        subject: the network or the domain that it is about.
        observed: the numbers that show it.
        advice: known fixes.
    """

    name: str
    subject: str
    observed: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name} ({self.subject}): {self.observed}. Known fixes: {self.advice}"


@dataclass(frozen=True)
class CriticProperties:
    """What the warnings need to know about the critics of a loss.

    Args:
        upper_bounds: by critic, the largest value that its divergence can have, or None if it is unbounded.
        aligning: the critics that should fail, since their loss aligns two domains.
    """

    upper_bounds: Mapping[str, float | None] = field(default_factory=dict)
    aligning: frozenset[str] = frozenset()


def critic_properties(loss: Any) -> CriticProperties:
    """The properties of the critics of a loss; empty for a loss without critics.

    Args:
        loss: a ppgen objective, or any other loss.
    """
    terms = {name: first for name, (first, *_) in getattr(loss, "critics", {}).items()}
    return CriticProperties(
        {name: term.critic.upper_bound for name, term in terms.items()},
        frozenset(name for name, term in terms.items() if term.is_alignment),
    )


ADVICE = {
    "critic won": (
        "a gradient penalty on the critic (r1_gan, r3_gan, wgan_gp), noise on both samples, or a lower learning rate "
        "for the critic than for the programs"
    ),
    "critic never fooled": (
        "a larger alpha, or more steps, so that alpha reaches its end before the learning rates decay; a lower "
        "learning rate of the critic or a gradient penalty on it (weight); wider features"
    ),
    "critic at chance too early": (
        "an alpha that starts at 0, so that there are features to align; a critic that learns faster, is wider or has "
        "a smaller penalty; or nothing, if the domains themselves cannot be distinguished (classifier_test)"
    ),
    "features collapsed": (
        "a smaller alpha or a slower ramp, so that labels are learned before features are aligned; a distance that "
        "does not grow with the scale of the features (jensen_shannon); norm='layer' in the feature network"
    ),
    "critic collapsed": "a lower learning rate of the critic, weaker weight clipping, or a gradient penalty instead",
    "vanishing gradients": (
        "a non-saturating loss, a gradient penalty on the critic, or the Wasserstein-1 distance (wgan_gp), whose "
        "gradient does not vanish where the distributions do not overlap"
    ),
    "oscillation": (
        "a zero-centered gradient penalty (r1_gan, r3_gan), averaged weights (ema=0.999), a decaying learning rate "
        "(lr_scheduler='cosine'), less momentum"
    ),
    "critic diverges": "lower learning rates, or a constraint on the critic (SpectralNorm, a gradient penalty)",
}


def training_warnings(
    adversarial_metrics: Mapping[str, Series],
    critics: CriticProperties | None = None,
    *,
    finished: bool = True,
) -> list[TrainingWarning]:
    """The warnings about a run so far, worst first; none for fewer than `MIN_STEPS` steps.

    Args:
        adversarial_metrics: arrays (steps,) as in `Chain.adversarial_metrics`: "critic NAME", "gradient of critic NAME"
            and "gradient of the programs".
        critics: the properties of the critics.
        finished: whether the run has ended. "critic never fooled" is reported only then.
    """
    critics = CriticProperties() if critics is None else critics
    found: list[TrainingWarning] = []
    all_programs = np.asarray(adversarial_metrics.get("gradient of the programs", ()), dtype=float)
    for key, losses in adversarial_metrics.items():
        if not key.startswith("critic "):
            continue
        name = key.removeprefix("critic ")
        objective = -np.asarray(losses, dtype=float)
        gradient = np.asarray(adversarial_metrics.get(f"gradient of {key}", np.ones_like(objective)), dtype=float)
        taken = np.isfinite(objective) & np.isfinite(gradient)  # others were skipped
        if len(all_programs) == len(objective):
            taken &= np.isfinite(all_programs)
        programs = all_programs[taken] if len(all_programs) == len(taken) else all_programs
        objective, gradient = objective[taken], gradient[taken]
        if len(objective) < MIN_STEPS:
            continue
        upper_bound = critics.upper_bounds.get(name)
        aligning = name in critics.aligning
        found += _critic_warnings(name, objective, gradient, programs, upper_bound, aligning=aligning)
        if aligning and upper_bound is not None:
            found += _alignment_warnings(name, objective, upper_bound, finished)
    order = list(ADVICE)
    return sorted(found, key=lambda warning: order.index(warning.name))


def _alignment_warnings(name: str, objective: Array, upper_bound: float, finished: bool) -> list[TrainingWarning]:
    """Warnings about a critic that should fail."""
    window = _window(objective)
    parts = np.array_split(objective, len(objective) // window)
    means, now = [float(part.mean()) for part in parts], float(objective[-window:].mean())
    # of ten means of noise, one exceeds four standard errors about once in three thousand runs
    noise = [4 * float(part.std()) / len(part) ** 0.5 for part in parts]
    peak = max(means)
    if not any(mean > max(CHANCE * upper_bound, least) for mean, least in zip(means, noise, strict=True)):
        kind = "critic at chance too early"
        observed = f"its objective was never above {peak:.2g}, of at most {upper_bound:.3g}"
    elif finished and now > max(upper_bound / 2, 0.9 * peak):
        kind = "critic never fooled"
        observed = f"its objective is {now:.3g} of at most {upper_bound:.3g}, and was {peak:.3g} at its maximum"
    else:
        return []
    return [TrainingWarning(kind, f"critic {name}", observed, ADVICE[kind])]


def _window(objective: Array) -> int:
    """The number of steps that count as the end of the run."""
    return max(MIN_STEPS // 2, len(objective) // WINDOW_FRACTION)


def _critic_warnings(
    name: str, objective: Array, gradient: Array, programs: Array, upper_bound: float | None, *, aligning: bool
) -> list[TrainingWarning]:
    """Warnings about any critic; `gradient` and `programs` are gradient norms."""
    window = _window(objective)
    mean, before = float(objective[-window:].mean()), objective[:-window]
    scale = upper_bound if upper_bound is not None else float(np.abs(before).max())
    found: list[TrainingWarning] = []

    def add(kind: str, observed: str, subject: str = f"critic {name}") -> None:
        found.append(TrainingWarning(kind, subject, observed, ADVICE[kind]))

    now, was = float(gradient[-window:].mean()), float(np.median(gradient[:-window]))
    if not aligning and upper_bound is not None and mean > 0.9 * upper_bound:
        add("critic won", f"its objective is {mean:.3g} of at most {upper_bound:.3g}")
    if now < 1e-3 * was and abs(mean) <= 0.02 * scale:
        add("critic collapsed", f"its gradient fell from {was:.2g} to {now:.2g}, and its objective is {mean:.2g}")
    if len(programs) == len(objective) and mean > 0.1 * scale:
        programs_now, programs_was = float(programs[-window:].mean()), float(np.median(programs[:-window]))
        if programs_now < 1e-3 * programs_was:
            add("vanishing gradients", f"their gradient fell from {programs_was:.2g} to {programs_now:.2g}", "programs")
    if now > max(100 * was, float(gradient[: len(gradient) // 2].max())):
        add("critic diverges", f"its gradient rose from {was:.2g} to {now:.2g}")
    low, high, oscillates = _oscillation(objective[-2 * window :])
    if oscillates and high - low > 0.05 * scale:
        add("oscillation", f"its objective oscillates between {low:.3g} and {high:.3g}")
    return found


def _oscillation(objective: Array) -> tuple[float, float, bool]:
    """The lowest and the highest block mean of the detrended objective, and whether they differ by more than noise."""
    steps = np.arange(len(objective))
    detrended = objective - np.polyval(np.polyfit(steps, objective, 1), steps) + objective.mean()
    blocks = np.stack(np.array_split(detrended[: len(detrended) // BLOCKS * BLOCKS], BLOCKS))
    means, noise = blocks.mean(1), float(np.sqrt(blocks.var(1).mean() / blocks.shape[1]))
    low, high = float(means.min()), float(means.max())
    # the range of ten independent means exceeds five of their standard deviations about once in a hundred runs
    return low, high, high - low > max(10 * noise, abs(float(objective.mean())))
