"""Progressive growing: the schedule of resolutions, and the controller that applies it to growing networks.

Reference: Karras et al. 2018, https://arxiv.org/abs/1710.10196.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppgen.nets import growing_parts

__all__ = ["GrowthController", "ProgressiveGrowing"]


@dataclass(frozen=True)
class ProgressiveGrowing:
    """A schedule that takes growing networks (`ppgen.nets.Growing`) from their smallest scale to the last one.

    A run has one stage for each scale. A new scale fades in linearly over the first part of its stage, and is constant
    for the rest (Karras et al. 2018, section 2 and figure 2, where both parts are of equal length).

    Args:
        fade: the fraction of a stage in which its scale fades in, from 0 (at once) to 1.
        stages: the relative lengths of the stages, the smallest scale's first; equal lengths if None.

    Raises:
        ValueError: for a fraction or a length out of range.

    Example:
        >>> import ppgen
        >>> growth = ppgen.ProgressiveGrowing(stages=(1, 1, 2))  # lengths, relative to each other
        >>> growth.ends(1000, scales=3)
        [250, 500, 1000]
    """

    fade: float = 0.5
    stages: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fade <= 1:
            raise ValueError(f"ProgressiveGrowing: fade must be a fraction of a stage, from 0 to 1, got {self.fade}")
        if self.stages is not None and not (self.stages and all(length > 0 for length in self.stages)):
            raise ValueError(
                f"ProgressiveGrowing: stages must be positive lengths, one for each scale, got {self.stages}"
            )

    def ends(self, total: int, scales: int) -> list[int]:
        """The last step of each stage, counted from 1.

        Args:
            total: the number of steps of the run.
            scales: the number of scales of the networks.

        Raises:
            ValueError: if there are not as many stages as scales, or fewer steps than stages.
        """
        lengths = (1.0,) * scales if self.stages is None else self.stages
        if len(lengths) != scales:
            raise ValueError(
                f"ProgressiveGrowing: there are {len(lengths)} stages {tuple(lengths)}, and the networks have {scales} "
                "scales"
            )
        if total < scales:
            raise ValueError(f"ProgressiveGrowing: {total} steps are fewer than the {scales} scales of the networks")
        whole = sum(lengths)
        ends = [round(total * reached / whole) for reached in itertools.accumulate(lengths)]
        for stage in range(scales):  # each stage has at least one step
            ends[stage] = min(max(ends[stage], ends[stage - 1] + 1 if stage else 1), total - (scales - 1 - stage))
        return ends

    def level(self, step: int, ends: Sequence[int]) -> float:
        """The level of the networks at a step: a whole number for a complete scale, a fraction while one fades in.

        Args:
            step: the step, counted from 1.
            ends: the last step of each stage.
        """
        stage = next(stage for stage, end in enumerate(ends) if step <= end)
        if stage == 0:
            return 0.0
        before = ends[stage - 1]
        fading = self.fade * (ends[stage] - before)
        return stage - 1 + (min((step - before) / fading, 1.0) if fading else 1.0)


class GrowthController:
    """Applies a schedule of resolutions to the growing networks among some modules.

    Args:
        schedule: the schedule.
        modules: all modules of the programs and the critics.
        total: the number of steps of the run.

    Attributes:
        stage_ends: the last step of each stage.
        level: the current level of the networks; None before the first step.

    Raises:
        ValueError: if no network grows, if they differ in the number of scales, or if the schedule does not fit.
    """

    def __init__(self, schedule: ProgressiveGrowing, modules: Sequence[nn.Module], total: int) -> None:
        self.schedule, self.parts = schedule, growing_parts(modules)
        scales = {part.top + 1 for part in self.parts}
        if not scales:
            raise ValueError(
                "growth: no network of the programs or their critics grows; give network='growing', or a subclass of "
                "ppgen.nets.Growing"
            )
        if len(scales) > 1:
            several = " and ".join(map(str, sorted(scales)))
            raise ValueError(f"growth: networks of {several} scales cannot grow together; give all the same number")
        self.stage_ends = schedule.ends(total, scales.pop())
        self.level: float | None = None
        self._stage: int | None = None

    def advance_to(self, step: int) -> int | None:
        """Sets the networks to the level of a step.

        Args:
            step: the step, counted from 1.

        Returns:
            The number of steps left in the stage if a new stage begins, otherwise None.
        """
        self.level = self.schedule.level(step, self.stage_ends)
        stage = math.ceil(self.level)  # at its first step a stage has already faded in a little
        for part in self.parts:
            part.grow(self.level, fading=True)
        before, self._stage = self._stage, stage
        return self.stage_ends[stage] - step + 1 if stage != before else None

    def finish(self) -> None:
        """Stops computing the branches that have faded out."""
        for part in self.parts:
            part.grow(float(part.level))
