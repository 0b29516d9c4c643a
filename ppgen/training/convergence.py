"""When a chain has converged: the checks of a loss on held-out data, or windows of the loss of the steps themselves.

A check gives the loss of some parts of the held-out rows, always the same parts under the same random numbers, so that
two checks are compared pair by pair: an improvement counts if the mean of the differences is above its standard error.
Without held-out rows, the halves of a window of steps are compared, each as a mean over blocks of steps whose spread
gives the standard error, for consecutive losses are not independent. Global latents have to stop moving too, since a
loss may be flat along them: draws of the guide by the same random numbers, at several times of the window. Windows grow
while something changes, since what is slow takes long to be seen in the noise.

A plateau is `patience` steps without an improvement, or a window without one. A run of no given length lowers its
learning rates at plateaus, `LOWERINGS` times, and ends at the next one. With `decay`, rates fall to zero instead after
the first plateau, and the run ends there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "CHECK_STEPS",
    "DECAY_SHARE",
    "FLAT_STEPS",
    "GAME_CHECK_STEPS",
    "GAME_DECAY_SHARE",
    "GAME_PATIENCE",
    "LOWERED_RATE",
    "MAX_STEPS",
    "PATIENCE",
    "PATIENCE_STEPS",
    "SCHEDULE_PASSES",
    "SCHEDULE_STEPS",
    "Convergence",
    "improves",
]

MAX_STEPS = 30_000  # the ceiling of a run of no given length
PATIENCE = 5  # passes over the data
PATIENCE_STEPS = 300  # and at least so many steps, whatever a pass is
FLAT_STEPS = 1000  # of a run of no given length: what is slow is hidden by the noise of steps
GAME_PATIENCE = 2  # times as much where critics train, since samples get better and worse in turns
CHECK_STEPS = 30, 1000  # between two checks: a pass over the data, but no fewer and no more
GAME_CHECK_STEPS = 100  # no fewer where critics train, since samples change slowly and a check draws many
SCHEDULE_PASSES, SCHEDULE_STEPS = 10, 1000  # how long the schedules of weights are that last for the run; the larger
LOWERINGS = 2
LOWERED_PATIENCE = 0.5  # of the patience, at lower rates, whose steps have less noise
WORSE_PATIENCE = 0.3  # of the patience, where all checks are worse than the best by more than their noise
LOWERED_RATE = 0.2  # the factor on the learning rates
DECAY_SHARE = 0.25  # of the steps so far, over which rates fall to zero
GAME_DECAY_SHARE = 1.0  # where critics train, since at constant rates samples go around in circles
WINDOW, WINDOW_GROWTH, BLOCKS = 300, 1.5, 5  # steps of the first window, growth, and blocks of each half
RELATIVE = 1e-6  # differences of losses that are rounding
LEVEL_SHARE = 0.02  # of the standard error of the loss itself, below which an improvement means nothing
WINDOW_ERRORS = 2.0  # standard errors by which the later half of a window has to be better
MOVED, MOVING_SHARE = 1.5, 0.1  # spreads by which a number moves between halves (a drift: 3.5), and the share that may


class Convergence:
    """Follows the losses of one chain.

    Args:
        patience: the number of steps without an improvement that are a plateau; None for no plateaus.
        lowers: whether plateaus lower the learning rates before one ends the run.
        decay: the factor on learning rates by the progress from 0 to 1 of their decay to zero at the end, or None.
        decay_share: the steps of this decay, as a share of those before it; at least `patience`.
        begin: the number of steps before which losses do not count, since weights in the loss change.
        held_out: whether losses are those of checks; otherwise those of the steps.

    Attributes:
        since: the step of the last improvement.
        lowered: how often the learning rates were lowered.
        plateau_at: the step of the last plateau, 0 for none.
        ended: whether the run has converged.
    """

    def __init__(
        self,
        *,
        patience: int | None = None,
        lowers: bool = False,
        decay: Callable[[float], float] | None = None,
        decay_share: float = DECAY_SHARE,
        begin: int = 0,
        held_out: bool = True,
    ) -> None:
        self.patience, self.lowers, self.begin, self.held_out = patience, lowers, begin, held_out
        self.decay, self.decay_share = decay, decay_share
        self.since, self.lowered, self.plateau_at, self.ended = begin, 0, 0, False
        self._reference: list[float] = []
        self._worse_since: int | None = None
        self._window = float(WINDOW)
        self._path: list[list[float]] = []

    def check(self, step: int, parts: Sequence[float], weights: Sequence[float]) -> bool:
        """Notes the loss on held-out data; returns whether it has improved.

        Args:
            step: the number of the step.
            parts: the loss of each part of the data.
            weights: the rows of each part.
        """
        if step < self.begin:
            return False
        if not improves(self._reference, parts, weights):
            worse = not np.isfinite(parts).all() or improves(parts, self._reference, weights)
            self._worse_since = (self._worse_since or step) if worse else None
            return False
        self._reference, self.since, self._worse_since = list(parts), step, None
        return True

    def note(self, draws: list[float]) -> None:
        """Notes the guide's draws of global latents, the same random numbers each time, that have to stop moving.

        Args:
            draws: the numbers; empty without global latents.
        """
        self._path.append(draws)

    def plateau(self, step: int, losses: Sequence[float]) -> bool:
        """Whether a plateau ends at a step: then rates are to be lowered, unless the run has `ended`.

        Args:
            step: the number of the step.
            losses: the losses of all steps so far, which are read if nothing is held out.
        """
        if self.patience is None or self.ended:
            return False
        if self.decaying:
            self.ended = step >= self.plateau_at + self._decay_steps(self.plateau_at)
            return self.ended
        if self.held_out:
            found = self._waited(step, self.patience)
        else:
            found = self._window_ends(step, losses)
        if found:
            self.plateau_at, self._worse_since = step, None
            self.ended = not self.lowers or (self.decay is None and self.lowered == LOWERINGS)
            self.lowered += not self.ended
        return found

    @property
    def least_steps(self) -> int:
        """The steps of a run of no given length, if its loss never improves; at least one."""
        wait = (self.patience or 1) if self.held_out else WINDOW
        if self.decay is not None:
            return self.begin + wait + self._decay_steps(self.begin + wait)
        return self.begin + wait + LOWERINGS * (math.ceil(LOWERED_PATIENCE * wait) if self.held_out else wait)

    @property
    def decaying(self) -> bool:
        """Whether learning rates fall to zero."""
        return self.lowers and self.decay is not None and self.plateau_at > 0 and not self.ended

    def rate(self, step: int) -> float:
        """The factor on the learning rates after a step.

        Args:
            step: the number of the step.
        """
        if self.decay is not None and self.decaying:
            return self.decay(min((step - self.plateau_at) / self._decay_steps(self.plateau_at), 1.0))
        return LOWERED_RATE**self.lowered if self.decay is None else 1.0

    @property
    def reason(self) -> str:
        """Why the run ended, in words."""
        what = "the held-out loss" if self.held_out else "the loss"
        since = f"since step {self.since}" if self.held_out else "beyond its noise"
        if not self.lowers:
            return f"{what} has not improved {since}"
        lowered = f"although learning rates were lowered {self.lowered} times"
        rates = lowered if self.decay is None else "and learning rates fell to zero"
        return f"converged: {what} has not improved {since}, {rates}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON values."""
        return {
            "since": self.since,
            "lowered": self.lowered,
            "plateau_at": self.plateau_at,
            "ended": self.ended,
            "reference": self._reference,
            "window": self._window,
            "worse_since": self._worse_since,
            "path": self._path,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint.

        Args:
            state: what `state` returned; empty for files of earlier versions.
        """
        for name, value in state.items():
            setattr(self, f"_{name}" if hasattr(self, f"_{name}") else name, value)

    def _decay_steps(self, plateau: int) -> int:
        """The steps over which rates fall to zero after a plateau."""
        return max(self.patience or 1, math.ceil(self.decay_share * plateau))

    def _waited(self, step: int, patience: float) -> bool:
        """Whether the last improvement is too long ago, or all checks of a while have been worse than the best."""
        patience = patience * LOWERED_PATIENCE if self.lowered else patience
        if step - max(self.since, self.plateau_at) >= patience:
            return True
        return self.lowers and self._worse_since is not None and step - self._worse_since >= WORSE_PATIENCE * patience

    def _window_ends(self, step: int, losses: Sequence[float]) -> bool:
        """Whether a window ends at a step in which the loss has not improved."""
        begin = max(self.since, self.plateau_at)
        if step - begin < self._window:
            return False
        first, second = np.array_split(np.asarray(losses[begin:step], dtype=float), 2)
        drifting = not self.lowered and drifts(np.asarray(self._path))  # at lower rates noise settles, which takes long
        moving, self._path = falls(first, second) or drifting, []
        if moving:
            self.since, self._window = step, self._window * WINDOW_GROWTH
            return False
        self._window = float(WINDOW)
        return True


def improves(reference: Sequence[float], parts: Sequence[float], weights: Sequence[float]) -> bool:
    """Whether a check is better than a reference by more than the noise of their difference.

    Args:
        reference: the loss of each part of the data at the reference; empty for none.
        parts: the loss of each part now.
        weights: the rows of each part.
    """
    now, share = np.asarray(parts, dtype=float), np.asarray(weights, dtype=float) / np.sum(weights)
    mean = float(share @ now)
    if not math.isfinite(mean):
        return False
    if len(reference) != len(now) or not np.isfinite(reference).all():
        return True
    gain = np.asarray(reference, dtype=float) - now
    noise = standard_error(gain, share) + LEVEL_SHARE * standard_error(now, share) + RELATIVE * abs(mean)
    return float(share @ gain) > noise


def falls(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether losses are lower in the second half of a window, by more than their noise.

    Args:
        first: the losses of the first half.
        second: those of the second half.
    """
    means = [[_mean(block) for block in np.array_split(half, BLOCKS)] for half in (first, second)]
    before, after = np.asarray(means)
    error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / BLOCKS)
    return float(before.mean() - after.mean()) > WINDOW_ERRORS * error + RELATIVE * abs(float(after.mean()))


def drifts(path: np.ndarray) -> bool:
    """Whether numbers have another mean in the second half of a window, by more than they spread within the halves.

    Dhaka et al. 2020 compare iterates of variational inference in this way, by R-hat: https://arxiv.org/abs/2009.00666

    Args:
        path: the numbers at several times (times, numbers).
    """
    if len(path) < 4 or not path.size:
        return False
    first, second = np.array_split(path, 2)
    spread = np.sqrt((first.var(0, ddof=1) + second.var(0, ddof=1)) / 2)
    moved = np.abs(first.mean(0) - second.mean(0)) > MOVED * spread + RELATIVE * np.abs(second).mean(0)
    return float(moved.mean()) > MOVING_SHARE


def standard_error(values: np.ndarray, share: np.ndarray) -> float:
    """The standard error of the weighted mean of parts; 0 for a single one, which does not show it.

    Args:
        values: the value of each part.
        share: their weights, which sum to one.
    """
    if len(values) == 1:
        return 0.0
    spread = float(share @ (values - share @ values) ** 2) * len(values) / (len(values) - 1)
    return math.sqrt(spread * float(share @ share))


def _mean(block: np.ndarray) -> float:
    """The mean of the losses that are finite: skipped steps may have another one."""
    finite = block[np.isfinite(block)]
    return float(finite.mean()) if len(finite) else math.inf
