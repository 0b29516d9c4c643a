"""Weights of loss terms that depend on the training step, as tensor functions, so that a compiled step follows them.

With the progress p = step / steps, clamped to [0, 1]:

    Ramp(end)                      start + (end - start) p
    Ramp(end, shape="sigmoid")     start + (end - start) tanh(5 p) / tanh(5)
    Ramp(end, shape="cubic")       start + (end - start) p^3, which is slow at first
    Anneal(end, cycles=4)          `cycles` ramps in a row, each of which rises over the first half of its cycle

The cycles are those of Fu et al. 2019, equation 5, https://arxiv.org/abs/1903.10145. The sigmoid is
2 / (1 + exp(-10 p)) - 1 of Ganin et al. 2016, section 5.2.2, https://arxiv.org/abs/1505.07818, scaled by 1.00009 so
that it ends at `end`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Anneal", "Ramp", "Schedule"]


class Schedule(ABC):
    """A weight as a function of the training step.

    Args:
        steps: the number of steps until the schedule ends; None for the length of the run, which `ppgen.fit` sets.

    Raises:
        ValueError: for a number of steps below 1.
    """

    def __init__(self, steps: int | None) -> None:
        if steps is not None and not (isinstance(steps, int) and steps >= 1):
            raise ValueError(f"{type(self).__name__}: steps must be a whole number of at least 1, got {steps!r}")
        self.steps = steps

    @abstractmethod
    def at(self, progress: Tensor) -> Tensor:
        """The weight, a scalar tensor.

        Args:
            progress: p in [0, 1], a scalar tensor.
        """

    def ends(self, total: int) -> int:
        """The step after which the weight is constant.

        Args:
            total: the number of steps of the run.
        """
        return total if self.steps is None else self.steps

    def __call__(self, step: Tensor, total: int | None = None) -> Tensor:
        """The weight at a step, a scalar tensor.

        Args:
            step: the number of steps taken, an integer scalar tensor.
            total: the number of steps of the run.

        Raises:
            ValueError: if neither the schedule nor the run has a number of steps.
        """
        steps = self.steps if self.steps is not None else total
        if steps is None:
            raise ValueError(
                f"{self} needs the length of the run: give it steps=, or train with ppgen.fit, which sets it"
            )
        return self.at((step.to(torch.get_default_dtype()) / steps).clamp(max=1.0))


class Ramp(Schedule):
    """A weight that changes from `start` to `end` and then stays constant.

    Args:
        end: the last weight.
        start: the first weight.
        steps: the number of steps until `end`; the length of the run if left out.
        shape: "linear", "sigmoid" or "cubic".

    Raises:
        ValueError: for a number of steps below 1, or an unknown shape.

    Example:
        >>> import torch
        >>> import ppgen
        >>> beta = ppgen.Ramp(1.0, steps=100)
        >>> [float(beta(torch.tensor(step))) for step in (0, 50, 100, 200)]
        [0.0, 0.5, 1.0, 1.0]
        >>> warm_up = ppgen.Reconstruction() + beta * ppgen.Rate()
    """

    def __init__(self, end: float, *, start: float = 0.0, steps: int | None = None, shape: str = "linear") -> None:
        super().__init__(steps)
        _check_shape(self, shape)
        self.end, self.start, self.shape = end, start, shape

    def at(self, progress: Tensor) -> Tensor:
        """The weight at progress p."""
        return self.start + (self.end - self.start) * _SHAPES[self.shape](progress)

    def __repr__(self) -> str:
        return f"Ramp({self.start:g} -> {self.end:g})"


class Anneal(Schedule):
    """A weight that changes from `start` to `end` several times (cyclical annealing).

    Args:
        end: the last weight of a cycle.
        start: the first weight of a cycle.
        steps: the number of steps of all cycles together; the length of the run if left out.
        cycles: the number of cycles.
        rise: the fraction of a cycle after which the weight is `end` and stays constant.
        shape: "linear", "sigmoid" or "cubic".

    Raises:
        ValueError: for a number of steps or cycles below 1, a fraction out of range, or an unknown shape.
    """

    def __init__(
        self,
        end: float,
        *,
        start: float = 0.0,
        steps: int | None = None,
        cycles: int = 4,
        rise: float = 0.5,
        shape: str = "linear",
    ) -> None:
        super().__init__(steps)
        _check_shape(self, shape)
        if not (isinstance(cycles, int) and cycles >= 1 and 0 < rise <= 1):
            raise ValueError(
                f"Anneal: cycles must be a whole number of at least 1, and rise in (0, 1]; got {cycles=}, {rise=}"
            )
        self.end, self.start, self.cycles, self.rise, self.shape = end, start, cycles, rise, shape

    def at(self, progress: Tensor) -> Tensor:
        """The weight at progress p."""
        within = torch.where(progress < 1, torch.frac(progress * self.cycles), torch.ones_like(progress))
        return self.start + (self.end - self.start) * _SHAPES[self.shape]((within / self.rise).clamp(max=1.0))

    def ends(self, total: int) -> int:
        """The step after which the last cycle has risen."""
        steps = super().ends(total)
        return math.ceil(steps - (1 - self.rise) * steps / self.cycles)

    def __repr__(self) -> str:
        return f"Anneal({self.start:g} -> {self.end:g}, {self.cycles} cycles)"


def _check_shape(schedule: Schedule, shape: str) -> None:
    if shape not in _SHAPES:
        known = ", ".join(map(repr, _SHAPES))
        raise ValueError(f"{type(schedule).__name__}: shape must be one of {known}, got {shape!r}")


_SHAPES = {"linear": lambda p: p, "sigmoid": lambda p: torch.tanh(5 * p) / math.tanh(5), "cubic": lambda p: p**3}
