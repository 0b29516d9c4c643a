"""Weights that move with training: functions of the step tensor, so that a compiled step sees them move.

With p = step / steps, the progress, clipped to [0, 1]:

    Ramp(end)                      start + (end - start) p
    Ramp(end, shape="sigmoid")     start + (end - start) tanh(5 p) / tanh(5)
    Ramp(end, shape="cubic")       start + (end - start) p^3, which is slow at first
    Anneal(end, cycles=4)          `cycles` ramps in a row, each rising over the first half   Fu et al. 2019, equation 5

The sigmoid is 2 / (1 + exp(-10 p)) - 1 of Ganin et al. 2016, section 5.2.2, scaled by 1.00009 to end at `end`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Anneal", "Ramp", "Schedule"]


class Schedule(ABC):
    """A weight as a function of the step. ``steps=None`` means the length of the run, which ppgen.fit knows."""

    def __init__(self, steps: int | None):
        if steps is not None and not (isinstance(steps, int) and steps >= 1):
            raise ValueError(f"{type(self).__name__}: steps is a whole number from 1 on, got {steps!r}")
        self.steps = steps

    @abstractmethod
    def at(self, progress: Tensor) -> Tensor:
        """The weight at progress p in [0, 1], a scalar tensor."""

    def __call__(self, step: Tensor, total: int | None = None) -> Tensor:
        """The weight at a step (integer scalar tensor) of a run of `total` steps.

        Raises:
            ValueError: if neither the schedule nor the run says how many steps there are.
        """
        steps = self.steps if self.steps is not None else total
        if steps is None:
            raise ValueError(
                f"{self} needs the length of the run: give it steps=, or train with ppgen.fit, which knows it"
            )
        return self.at((step.to(torch.get_default_dtype()) / steps).clamp(max=1.0))


class Ramp(Schedule):
    """From `start` to `end` within `steps` steps, in a straight line or by another `shape`; constant after."""

    def __init__(self, end: float, *, start: float = 0.0, steps: int | None = None, shape: str = "linear"):
        super().__init__(steps)
        _check_shape(self, shape)
        self.end, self.start, self.shape = end, start, shape

    def at(self, progress: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * _SHAPES[self.shape](progress)

    def __repr__(self) -> str:
        return f"Ramp({self.start:g} -> {self.end:g})"


class Anneal(Schedule):
    """`cycles` ramps from `start` to `end`, each rising for `rise` of its cycle and constant for the rest."""

    def __init__(
        self,
        end: float,
        *,
        start: float = 0.0,
        steps: int | None = None,
        cycles: int = 4,
        rise: float = 0.5,
        shape: str = "linear",
    ):
        super().__init__(steps)
        _check_shape(self, shape)
        if not (isinstance(cycles, int) and cycles >= 1 and 0 < rise <= 1):
            raise ValueError(f"Anneal: cycles is a whole number from 1 on, 0 < rise <= 1; got {cycles=}, {rise=}")
        self.end, self.start, self.cycles, self.rise, self.shape = end, start, cycles, rise, shape

    def at(self, progress: Tensor) -> Tensor:
        within = torch.where(progress < 1, torch.frac(progress * self.cycles), torch.ones_like(progress))
        return self.start + (self.end - self.start) * _SHAPES[self.shape]((within / self.rise).clamp(max=1.0))

    def __repr__(self) -> str:
        return f"Anneal({self.start:g} -> {self.end:g}, {self.cycles} cycles)"


def _check_shape(schedule: Schedule, shape: str) -> None:
    if shape not in _SHAPES:
        known = ", ".join(map(repr, _SHAPES))
        raise ValueError(f"{type(schedule).__name__}: shape is one of {known}, got {shape!r}")


_SHAPES = {"linear": lambda p: p, "sigmoid": lambda p: torch.tanh(5 * p) / math.tanh(5), "cubic": lambda p: p**3}
