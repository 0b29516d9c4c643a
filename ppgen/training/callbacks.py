"""`TrainingStep`: the argument of a callback of `ppgen.fit`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppgen.infer.parameters import EvalMode
from ppgen.infer.svi import SVI
from ppgen.training.monitor import TrainingMonitor
from ppgen.training.progressive import GrowthController

__all__ = ["TrainingStep"]


@dataclass
class TrainingStep:
    """One completed step of a run. A callback may call ``step.stop("reason")`` to end the chain.

    Attributes:
        number: the number of this step in its chain, counted from 1.
        epoch: the number of its epoch, counted from 0.
        chain: the number of its chain (restart), counted from 0.
        svi: the `ppgen.SVI` that takes the steps.
        values: the loss term by term, scalar tensors on the programs' device.
        stop_reason: the reason given to `stop`, or None.
    """

    number: int
    epoch: int
    chain: int
    svi: SVI
    values: dict[str, Tensor]
    monitor: TrainingMonitor = field(repr=False)
    growth: GrowthController | None = field(default=None, repr=False)
    stop_reason: str | None = None

    @property
    def loss(self) -> float:
        """The loss of this step. Reading it waits for the device."""
        return float(sum(self.values.values()))

    @property
    def adversarial_metrics(self) -> dict[str, Tensor]:
        """In adversarial training, each critic's loss and the gradient norm of each network; empty otherwise."""
        return self.svi.adversarial_metrics

    @property
    def level(self) -> float | None:
        """In progressive growing, the level of the networks; None otherwise."""
        return None if self.growth is None else self.growth.level

    @property
    def stage_done(self) -> bool:
        """Whether this step is the last one of a stage of progressive growing."""
        return self.growth is not None and self.number in self.growth.stage_ends

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Puts the programs in eval mode, with the averaged weights if `fit` has an `ema`, and restores them after."""
        with torch.random.fork_rng(), torch.no_grad(), self.monitor.averaged_weights(), EvalMode():
            yield

    def stop(self, reason: str) -> None:
        """Ends the chain after this step; `Chain.stop_reason` reports the reason."""
        self.stop_reason = reason
