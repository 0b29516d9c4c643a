"""A schedule of resolution: which scale a run is at when, and what takes its networks there."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppgen.nets import growing_parts

__all__ = ["Grower", "ProgressiveGrowing"]


@dataclass(frozen=True)
class ProgressiveGrowing:
    """Takes growing networks (`ppgen.nets.Growing`) from their smallest scale to the last one during a run.

    A run has a stage for each scale. In the first `fade` of a stage its scale fades in, in a straight line; for the
    rest of it, it stands (Karras et al. 2018, section 2 and figure 2, who give both the same number of images).

    Args:
        fade: the share of a stage, from 0 (scales jump in) to 1.
        stages: how long the stages are, relative to each other, the smallest scale's first; all alike if None.

    Raises:
        ValueError: for a share or a length out of range.
    """

    fade: float = 0.5
    stages: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fade <= 1:
            raise ValueError(f"Growth: fade is a share of a stage, from 0 to 1, got {self.fade}")
        if self.stages is not None and not (self.stages and all(length > 0 for length in self.stages)):
            raise ValueError(f"Growth: stages are positive lengths, one a scale, got {self.stages}")

    def ends(self, total: int, scales: int) -> list[int]:
        """The last step of each stage of a run of `total` steps, counted from 1.

        Raises:
            ValueError: if there are not as many stages as scales, or fewer steps than stages.
        """
        lengths = (1.0,) * scales if self.stages is None else self.stages
        if len(lengths) != scales:
            raise ValueError(f"Growth: {len(lengths)} stages {tuple(lengths)}, and the networks have {scales} scales")
        if total < scales:
            raise ValueError(f"Growth: {total} steps are fewer than the {scales} scales of the networks")
        whole = sum(lengths)
        ends = [round(total * reached / whole) for reached in itertools.accumulate(lengths)]
        for stage in range(scales):  # each has a step
            ends[stage] = min(max(ends[stage], ends[stage - 1] + 1 if stage else 1), total - (scales - 1 - stage))
        return ends

    def level(self, step: int, ends: Sequence[int]) -> float:
        """The level at a step, counted from 1, of stages that end so."""
        stage = next(stage for stage, end in enumerate(ends) if step <= end)
        if stage == 0:
            return 0.0
        before = ends[stage - 1]
        fading = self.fade * (ends[stage] - before)
        return stage - 1 + (min((step - before) / fading, 1.0) if fading else 1.0)


class Grower:
    """Takes the growing networks among some modules through a run.

    Attributes:
        ends: the last step of each stage.
        level: where the networks are; None before the first step.

    Raises:
        ValueError: if none of them grows, they have not all the same number of scales, or the growth does not fit.
    """

    def __init__(self, growth: ProgressiveGrowing, modules: Sequence[nn.Module], total: int) -> None:
        self.growth, self.parts = growth, growing_parts(modules)
        scales = {part.top + 1 for part in self.parts}
        if not scales:
            raise ValueError(
                "growth: no network of the programs or their critics grows; take network='growing', or a subclass of "
                "ppgen.nets.Growing"
            )
        if len(scales) > 1:
            several = " and ".join(map(str, sorted(scales)))
            raise ValueError(f"growth: networks of {several} scales do not grow together; give all equally many")
        self.ends = growth.ends(total, scales.pop())
        self.level: float | None = None
        self._stage: int | None = None

    def before(self, step: int) -> int | None:
        """Goes to the level of a step; returns how many steps its stage has from there, if it is another stage."""
        self.level = self.growth.level(step, self.ends)
        stage = math.ceil(self.level)  # a stage's first step has faded in by something
        for part in self.parts:
            part.grow(self.level, fading=True)
        before, self._stage = self._stage, stage
        return self.ends[stage] - step + 1 if stage != before else None

    def settle(self) -> None:
        """What has faded out is worked out no more."""
        for part in self.parts:
            part.grow(float(part.level))
