"""The steps of a run: batches in, and everything that is watched, said, kept and stopped on the way."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.infer.parameters import Evaluation, State, snapshot
from ppgen.infer.svi import SVI
from ppgen.training.batches import Batches
from ppgen.training.checkpoint import Checkpoint, Interrupt
from ppgen.training.monitor import NotFinite, TrainingMonitor
from ppgen.training.progressive import Grower
from ppgen.training.result import Chain, rules
from ppgen.training.training_failures import training_warnings

__all__ = ["Training", "TrainingStep"]

CHECKS = 100  # a run reads its losses back about so many times
KEPT = 10  # at every so many of these, its checkpoint is written


@dataclass
class TrainingStep:
    """What a callback sees after a step. ``moment.stop("why")`` ends the chain there.

    `values` is the loss term by term; `adversarial_metrics`, of a game, the critics' losses and the norms of the gradients. Of a
    growing run, `level` is where its networks stand, and `stage_done` says that this was the last step of a stage.
    """

    step: int
    epoch: int
    chain: int
    svi: SVI
    values: dict[str, Tensor]
    watch: TrainingMonitor
    grower: Grower | None = None
    reason: str | None = None

    @property
    def level(self) -> float | None:
        return None if self.grower is None else self.grower.level

    @property
    def stage_done(self) -> bool:
        return self.grower is not None and self.step in self.grower.ends

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside, the programs are in eval mode and have the weights that the run would end with now."""
        with torch.random.fork_rng(), torch.no_grad(), self.watch.averaged(), Evaluation():
            yield

    @property
    def adversarial_metrics(self) -> dict[str, Tensor]:
        return self.svi.adversarial_metrics

    @property
    def loss(self) -> float:
        """The step's loss, read back from the device."""
        return float(sum(self.values.values()))

    def stop(self, reason: str) -> None:
        self.reason = reason


@dataclass
class Training:
    """One setting of `ppgen.fit`, run once a chain: `model` and `guide` on `batches`, for `total` steps.

    `file` is written as it goes, `grower` takes networks through their scales; the rest are `fit`'s own options.
    """

    loss: Any
    batches: Batches
    held_out: tuple[Tensor, ...] | None
    total: int
    patience: int | None
    callbacks: Sequence[Callable[[TrainingStep], None]]
    ema: float | None
    progress: bool
    restarts: int
    state: State
    grower: Grower | None
    file: Checkpoint

    def chain(self, number: int, svi: SVI) -> Chain:
        """Trains one chain from the weights that the programs hold."""
        watch = TrainingMonitor(self.state, ema=self.ema, patience=self.patience)
        self.file.begin(svi, watch)
        interrupted = False
        try:
            try:
                reason = self._train(number, svi, watch)
            except KeyboardInterrupt:
                reason, interrupted = f"interrupted at step {watch.steps}", True
            watch.read_back()
            if self.file.stopped:
                self._keep(number, svi, watch)
        except NotFinite as error:
            watch.finish()
            if watch.good == 0:
                raise FloatingPointError(f"{error}; nothing was learned, the weights are as they were") from None
            reason = str(error)
            warnings.warn(f"{error}; the weights are those of step {watch.best_step}", stacklevel=3)
        else:
            watch.finish()
        if self.grower is not None:
            self.grower.settle()
        known = set(map(id, self.state.leaves.values()))
        if late := [name for name, leaf in svi.player.leaves.items() if id(leaf) not in known]:
            warnings.warn(
                f"parameters appeared after the first batch: {', '.join(late)}; they trained, but are neither kept nor "
                "saved: let the programs make all parameters on every batch",
                stacklevel=3,
            )
        return Chain(
            weights=snapshot(self.state.tensors),
            history={k: np.asarray(v) for k, v in watch.history.items()},
            validation={k: np.asarray(v) for k, v in watch.validation.items()},
            stop_reason=reason,
            best_step=watch.best_step,
            seconds=watch.seconds,
            interrupted=interrupted,
            compiled=svi.said,
            adversarial_metrics={k: np.asarray(v) for k, v in watch.adversarial_metrics.items()},
        )

    def _train(self, number: int, svi: SVI, watch: TrainingMonitor) -> str:
        """Takes the steps; returns why they ended."""
        if watch.verdict:
            return f"{watch.verdict}, at step {watch.steps}"
        every = max(1, self.total // CHECKS)
        validate_every = max(len(self.batches), every)
        label = "fit" if self.restarts == 1 else f"fit {number + 1}/{self.restarts}"
        said, spoken = "", set[str]()
        known = rules(self.loss)
        bar = tqdm(
            total=self.total, initial=watch.steps, desc=label, unit="step", disable=None if self.progress else True
        )
        with bar, Interrupt() as interrupt:
            for step, (epoch, batch) in enumerate(self._stream(watch.steps), start=watch.steps + 1):
                if self.grower is not None and (stage_steps := self.grower.before(step)):
                    svi.renew(stage_steps)
                values = svi.update(*batch)
                if svi.said != said and not bar.disable:
                    said = svi.said
                    bar.write(f"{label}: {said}", file=sys.stderr)
                watch.saw(values, svi.adversarial_metrics)
                moment = TrainingStep(step, epoch, number, svi, values, watch, self.grower)
                try:
                    for callback in self.callbacks:
                        callback(moment)
                except KeyboardInterrupt:
                    interrupt.asked = True
                done = step == self.total
                if step == 1 or step % every == 0 or done:
                    watch.read_back()
                    seen = training_warnings(watch.adversarial_metrics, over=done, **known)
                    for finding in seen:
                        if finding.sign not in spoken and not bar.disable:
                            bar.write(f"{label}: at step {step}, {finding}", file=sys.stderr)
                        spoken.add(finding.sign)
                    signs = dict.fromkeys(finding.sign for finding in seen)
                    bar.set_postfix_str(", ".join([watch.summary(every), *map(str.upper, signs)]), refresh=False)
                bar.update()
                if self.held_out is not None and (step % validate_every == 0 or done):
                    watch.validate(partial(self._evaluate, svi))
                self.file.stopped = interrupt.asked or moment.reason is not None
                if not (self.file.stopped or done) and (step == 1 or step % (KEPT * every) == 0):
                    self._keep(number, svi, watch)
                if interrupt.asked:
                    raise KeyboardInterrupt
                if reason := moment.reason or watch.verdict:
                    return f"{reason}, at step {step}"
        return f"ran its {self.total} steps"

    def _keep(self, number: int, svi: SVI, watch: TrainingMonitor) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.file.path is not None:
            for callback in self.callbacks:
                if callable(flush := getattr(callback, "flush", None)):
                    flush()
            self.file.write(self.file.path, number, svi, watch)

    def _stream(self, taken: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Epoch and batch of each step that is still to come."""
        first, within = divmod(taken, len(self.batches))
        epochs = ((epoch, batch) for epoch in count(first) for batch in self.batches.epoch(epoch))
        return islice(epochs, within, within + self.total - taken)

    def _evaluate(self, svi: SVI) -> float:
        """The loss on held-out data, in eval mode."""
        assert self.held_out is not None
        with torch.random.fork_rng(), Evaluation():
            torch.manual_seed(0)  # the same draws every time, so that validations compare
            return svi.evaluate_loss(*self.held_out)
