"""`TrainingOptions`: the options of `ppgen.fit`, checked once, before training starts."""

import math
import os
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ppgen.infer.compile.step import Compile
from ppgen.infer.optimizers import OptimizerFactory
from ppgen.training.callbacks import TrainingStep
from ppgen.training.convergence import MAX_STEPS
from ppgen.training.progressive import ProgressiveGrowing

__all__ = ["DECAYS", "Loss", "TrainingOptions", "check_device"]

Loss: TypeAlias = PyroELBO | Callable[..., Tensor]

WITH_DEFAULTS = ("distribute", "checkpoint_seconds", "checkpoint_keep")  # which says nothing about what was given

# the factor on every learning rate, by the progress of the run from 0 to 1
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of `ppgen.fit`, which documents each of them.

    Raises:
        TypeError: for a number that has to be an integer and is none.
        ValueError: for a value out of range, or options that contradict each other.
    """

    loss: Loss | None = None
    optim: PyroOptim | OptimizerFactory | None = None
    steps: int | None = None
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    validation: Any = None
    score: Callable[[], float | Sequence[float]] | None = None
    patience: int | None = None
    callbacks: Sequence[Callable[[TrainingStep], None]] = ()
    seed: int = 0
    restarts: int | None = None
    device: str | torch.device | None = None
    progress: bool = True
    checkpoint: str | os.PathLike | None = None
    checkpoint_seconds: float = 60.0
    checkpoint_keep: int = 2
    ema: float | None = None
    clip_norm: float | None = None
    lr_scheduler: Literal["linear", "cosine"] | Callable | None = None
    compile: Compile = "auto"
    growth: ProgressiveGrowing | None = None
    distribute: Literal["rows", "chains"] | None = "rows"
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"fit: give steps or epochs, not both (got steps={self.steps}, epochs={self.epochs})")
        if self.max_steps is not None and not self.converges:
            raise ValueError(
                f"fit: max_steps={self.max_steps} is the ceiling of a run until convergence, which has no steps and no "
                "epochs: give one of the three"
            )
        for name in ("steps", "epochs", "max_steps", "batch_size", "restarts", "patience", "seed", "checkpoint_keep"):
            count = getattr(self, name)
            if count is not None and not isinstance(count, Integral):
                raise TypeError(f"fit: {name} must be an integer, got {count!r}; int({count!r}) rounds down")
        for name in ("steps", "epochs", "max_steps", "restarts", "patience", "checkpoint_keep"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"fit: {name} must be at least 1, got {count}")
        check_device(self.device)
        if self.seed < 0:
            raise ValueError(f"fit: seed must be at least 0, got {self.seed}")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(
                "fit: checkpoint_seconds must be at least 0, or math.inf for checkpoints at validations only, got "
                f"{self.checkpoint_seconds}"
            )
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"fit: budget must be a positive number of seconds, got {self.budget}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"fit: ema must be a decay in [0, 1), such as 0.99, got {self.ema}")
        if self.patience is not None and self.holds_nothing_out and not self.converges:
            raise ValueError("fit: patience needs held-out rows, and validation=0 holds none out; give validation=0.1")
        if self.score is not None and self.validation is not None:
            raise ValueError("fit: score takes the place of the loss on validation data; give one of the two")
        if self.growth is not None and self.converges:
            raise ValueError("fit: growth divides the length of a run into stages; give steps or epochs")
        if self.patience is not None and self.growth is not None:
            raise ValueError(
                "fit: patience compares losses, and those of a growing run are of different resolutions; give one of "
                "patience and growth"
            )
        if self.distribute not in ("rows", "chains", None):
            raise ValueError(f'fit: distribute must be "rows", "chains" or None, got {self.distribute!r}')
        if isinstance(self.lr_scheduler, str) and self.lr_scheduler not in DECAYS:
            names = ", ".join(map(repr, DECAYS))
            raise ValueError(f"fit: lr_scheduler must be {names}, a function or None, got {self.lr_scheduler!r}")

    @property
    def converges(self) -> bool:
        """Whether the run has no length and ends when it has converged."""
        return self.steps is None and self.epochs is None

    @property
    def holds_nothing_out(self) -> bool:
        """Whether the user asked that no row be held out."""
        return isinstance(self.validation, int | float) and self.validation == 0

    @property
    def num_chains(self) -> int:
        """The number of chains of a run with a guide."""
        return 1 if self.restarts is None else self.restarts

    def given(self) -> list[str]:
        """The names of the options that are neither None nor empty."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            name
            for name, value in values.items()
            if name not in WITH_DEFAULTS and value is not None and not (isinstance(value, list | tuple) and not value)
        ]

    def total_steps(self, batches: Sized) -> int:
        """The number of steps of one chain, or the ceiling of a run until convergence.

        Args:
            batches: the batches of one pass over the data, which are counted if there are `epochs`.
        """
        if self.converges:
            return MAX_STEPS if self.max_steps is None else self.max_steps
        return self.epochs * len(batches) if self.epochs is not None else self.steps or 0

    @property
    def decay(self) -> Callable[[float], float] | None:
        """The factor on learning rates by the progress of the decay at the end of a run until convergence, or None."""
        return DECAYS[self.lr_scheduler] if self.converges and isinstance(self.lr_scheduler, str) else None

    def scheduler(self, total_steps: int) -> Callable | None:
        """The learning-rate scheduler as a function of an optimizer, or None for constant learning rates.

        Args:
            total_steps: the number of steps of one chain.
        """
        if not isinstance(self.lr_scheduler, str):
            return self.lr_scheduler
        if self.converges:  # the decay begins when the loss no longer improves
            return None
        decay = DECAYS[self.lr_scheduler]
        return partial(LambdaLR, lr_lambda=lambda step: decay(min(step / total_steps, 1.0)))


def check_device(device: str | torch.device | None) -> None:
    """Raises a ValueError for a device that this machine does not have.

    Args:
        device: The device, or None for the default one.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # torch's, for names and for what is not built
        raise ValueError(f"device must be one of this machine, such as 'cpu', got {str(device)!r}") from error
