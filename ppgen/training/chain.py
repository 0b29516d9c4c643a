"""`ChainTrainer`: the steps of one chain, from the weights that the programs hold to a `Chain`."""

import math
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ppgen.infer.distributed import Ranks
from ppgen.infer.finite_steps import NUMERICAL_ERRORS
from ppgen.infer.parameters import EvalMode, ProgramState, snapshot
from ppgen.infer.svi import SVI, UNTRAINABLE
from ppgen.tracing.programs import validation
from ppgen.training.callbacks import TrainingStep
from ppgen.training.checkpoint import Checkpoint
from ppgen.training.interrupt import InterruptHandler
from ppgen.training.loading import AnyBatches
from ppgen.training.memory import is_out_of_memory, memory_error
from ppgen.training.monitor import NonFiniteError, TrainingMonitor
from ppgen.training.nonfinite import find_nonfinite
from ppgen.training.options import Loss, TrainingOptions
from ppgen.training.progress import ProgressReport
from ppgen.training.progressive import GrowthController
from ppgen.training.recovery import RATE_FACTOR
from ppgen.training.result import Chain
from ppgen.training.sources import dead_workers
from ppgen.training.training_failures import critic_properties
from ppgen.utils.user_warnings import warn_user

__all__ = ["ChainTrainer"]

SYNCHRONIZATIONS = 100  # a run reads its losses back from the device about so many times


@dataclass
class ChainTrainer:
    """Trains one chain at a time. The chains of a run share its parts.

    Args:
        options: the options of the run.
        loss: the loss.
        batches: the training data.
        held_out: the validation data, or None.
        total: the number of steps of a chain.
        state: the tensors of the programs and the critics.
        growth: applies the schedule of progressive growing, or None.
        checkpoint: the file of the run.
        ranks: the processes that train together.

    Attributes:
        interrupt: notes the signal that asked the current chain to end.
    """

    options: TrainingOptions
    loss: Loss
    batches: AnyBatches
    held_out: AnyBatches | None
    total: int
    state: ProgramState
    growth: GrowthController | None
    checkpoint: Checkpoint
    ranks: Ranks
    interrupt: InterruptHandler = field(init=False)

    def __post_init__(self) -> None:
        self._told = self._validating = False  # of a bad step; whether the loss on held-out data is being computed
        self._rows: int | None = None  # of the last batch
        self.interrupt = InterruptHandler(saves=self.checkpoint.files is not None)

    def train(self, number: int, svi: SVI) -> Chain:
        """Trains one chain from the weights that the programs hold.

        Args:
            number: the number of the chain, counted from 0.
            svi: takes its steps.

        Returns:
            The chain. The programs hold its weights.

        Raises:
            FloatingPointError: if the loss is not finite at the first step.
            ValueError: if the loss depends on no trainable parameter.
        """
        monitor = TrainingMonitor(
            self.state, ema=self.options.ema, patience=self.options.patience, optimizers=lambda: svi.optimizers
        )
        self._told = self._validating = False
        svi.buffers = list(self.state.buffers.values())
        self.checkpoint.begin_chain(svi, monitor)
        if self.growth is not None and monitor.steps:
            self.growth.advance_to(monitor.steps)
        interrupted = failed = False
        try:
            try:
                reason = self._take_steps(number, svi, monitor)
            except KeyboardInterrupt:
                reason, interrupted = f"{self.interrupt.reason} at step {monitor.steps}", True
            monitor.synchronize()
            if self.checkpoint.resumable:
                self._write_checkpoint(number, svi, monitor)
        except NonFiniteError as error:
            monitor.finish()
            if monitor.recovery.step == 0:
                raise FloatingPointError(f"{error}; no step was completed, and the weights are unchanged") from None
            reason, failed = str(error), True
            warn_user(f"{error}; the weights are those of step {monitor.best_step}")
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._report_memory(error, number, svi, monitor)
            raise
        else:
            if bad := monitor.finish():
                failed = not interrupted
                warn_user(f"{', '.join(bad[:3])} not finite after step {monitor.steps}; the weights are those of step "
                          f"{monitor.best_step}")  # fmt: skip
        if (skipped := monitor.recovery.skipped) > 1:
            warn_user(f"{skipped} of {monitor.steps} steps were skipped, since they were not finite")
        if self.growth is not None:
            self.growth.finish()
        self._warn_of_late_parameters(svi)
        return Chain(
            weights=snapshot(self.state.tensors),
            history={k: np.asarray(v) for k, v in monitor.history.items()},
            validation={k: np.asarray(v) for k, v in monitor.validation.items()},
            stop_reason=reason,
            best_step=monitor.best_step,
            seconds=monitor.seconds,
            interrupted=interrupted,
            failed=failed,
            skipped=skipped,
            compiled=svi.compile_status,
            adversarial_metrics={k: np.asarray(v) for k, v in monitor.adversarial_metrics.items()},
        )

    def _take_steps(self, number: int, svi: SVI, monitor: TrainingMonitor) -> str:
        """Takes the steps that are left, and returns why they ended."""
        if monitor.stop_reason:
            return f"{monitor.stop_reason}, at step {monitor.steps}"
        synchronize_every = max(1, self.total // SYNCHRONIZATIONS)
        validate_every = max(self.batches.known_length, synchronize_every)
        remaining = closing(self.batches.steps(monitor.steps, self.total, self.checkpoint.position))  # ends workers
        with (
            dead_workers(),
            self._progress(number, monitor.steps) as progress,
            self.interrupt as interrupt,
            remaining as batches,
        ):
            for i, (epoch, batch) in enumerate(batches, start=monitor.steps + 1):
                last = i == self.total
                if self.growth is not None and (stage_steps := self.growth.advance_to(i)):
                    svi.recompile(stage_steps)
                self._rows = len(batch[0]) if batch else None
                self.ranks.begin_step(self._rows, self.batches.global_rows(i - 1))
                values = svi.update(*batch)
                self.checkpoint.position = self.batches.position
                if not svi.trainable:
                    raise ValueError(f"fit: {UNTRAINABLE}")
                monitor.record(values, svi.adversarial_metrics, svi.taken)
                step = TrainingStep(i, epoch, number, svi, values, monitor, self.growth)
                try:
                    for callback in self.options.callbacks:
                        callback(step)
                except KeyboardInterrupt:
                    interrupt.requested = True
                if i == 1 or i % synchronize_every == 0 or last:
                    monitor.synchronize()
                    monitor.keep()
                    progress.summarize(monitor, last=synchronize_every, finished=last)
                self._recover(svi, monitor, batch)
                progress.advance(svi.compile_status)
                validated = self.held_out is not None and (i % validate_every == 0 or last)
                if validated:
                    monitor.validate(partial(self._validation_loss, svi))
                stopped = self.ranks.any("stop", step.stop_reason is not None)
                interrupted = self.ranks.any("interrupt", interrupt.requested)
                self.checkpoint.resumable = stopped or interrupted
                due = self.ranks.any("checkpoint", self.ranks.first and self.checkpoint.due(i, validated=validated))
                if due and not (self.checkpoint.resumable or last):  # `train` writes that of a stopped chain
                    self._write_checkpoint(number, svi, monitor)
                if interrupted:
                    raise KeyboardInterrupt
                if reason := (stopped and (step.stop_reason or "stopped by another rank")) or monitor.stop_reason:
                    return f"{reason}, at step {i}"
        return f"completed {self.total} steps"

    def _recover(self, svi: SVI, monitor: TrainingMonitor, batch: tuple[Tensor, ...]) -> None:
        """Tells of the first step that was skipped, and goes back after several in a row.

        Raises:
            NonFiniteError: if the chain has gone back often enough.
        """
        recovery = monitor.recovery
        if not recovery.skipped or (self._told and not recovery.due):
            return
        cause = find_nonfinite(svi, batch) if not svi.taken else "its batch is gone"
        if not self._told:
            self._told = True
            warn_user(f"{monitor.bad_step}, and the step is skipped: {cause}")
        if not recovery.due:
            return
        bad = f"{recovery.in_a_row} steps in a row are not finite: {monitor.bad_step}, {cause}"
        if recovery.exhausted:
            monitor.fail(f"{bad}; training has gone back {recovery.returns} times, and ends")
        recovery.go_back()
        warn_user(f"{bad}; training goes back to step {recovery.step}, and learns at {RATE_FACTOR:g} times its rates")

    def _report_memory(self, error: Exception, number: int, svi: SVI, monitor: TrainingMonitor) -> None:
        """Writes a checkpoint of the steps before one that memory was not enough for, and says what helps.

        Raises:
            MemoryError: always, or torch's error of the same kind.
        """
        saved = self.checkpoint.files is not None and monitor.steps > 0 and self.ranks.size == 1
        if saved:
            self._write_checkpoint(number, svi, monitor)
        what = f"validation after step {monitor.steps}" if self._validating else f"step {monitor.steps + 1}"
        raise memory_error(error, what, self._rows, checkpoint=saved) from error

    def _progress(self, number: int, steps: int) -> ProgressReport:
        chains = self.options.num_chains
        label = "fit" if chains == 1 else f"fit {number + 1}/{chains}"
        critics = critic_properties(self.loss)
        return ProgressReport(
            label, total=self.total, initial=steps, show=self.options.progress and self.ranks.first, critics=critics
        )

    def _validation_loss(self, svi: SVI) -> float:
        """The loss on held-out data, in eval mode: the mean over their batches, weighted by rows."""
        assert self.held_out is not None
        losses, rows = [], []
        self._validating = True
        with torch.random.fork_rng(), EvalMode():
            torch.manual_seed(self.ranks.seed(0))  # the same numbers every time, so that validations compare
            for i, batch in enumerate(self.held_out.epoch(0)):
                rows.append(self.held_out.global_rows(i))
                self._rows = len(batch[0])
                self.ranks.see(self._rows, rows[-1])
                with self.ranks.shard():
                    loss = _loss(svi, batch) if len(batch[0]) else 0.0
                losses.append(self.ranks.mean(loss, len(batch[0]), rows[-1]))
        self._validating = False
        return losses[0] if len(losses) == 1 else float(np.average(losses, weights=rows))

    def _write_checkpoint(self, number: int, svi: SVI, monitor: TrainingMonitor) -> None:
        if self.checkpoint.files is None:
            return
        random = self.ranks.gather(self.checkpoint.random_state())
        if not self.ranks.first:
            return
        for callback in self.options.callbacks:
            if callable(flush := getattr(callback, "flush", None)):
                flush()
        self.checkpoint.write(number, svi, monitor, random)

    def _warn_of_late_parameters(self, svi: SVI) -> None:
        known = set(map(id, self.state.parameters.values()))
        if late := [name for name, leaf in svi.optimizer.parameters.items() if id(leaf) not in known]:
            warn_user(
                f"parameters appeared after the first batch: {', '.join(late)}; they were trained, but the fit does "
                "not keep or save them: let the programs make all parameters on every batch"
            )


def _loss(svi: SVI, batch: tuple[Tensor, ...]) -> float:
    """The loss on held-out data; NaN where it fails for its numbers, as after an update that overflows."""
    try:
        return svi.evaluate_loss(*batch)
    except NUMERICAL_ERRORS:
        return math.nan
    except ValueError:  # perhaps of a distribution that checks its arguments
        with validation(False):
            loss = svi.evaluate_loss(*batch)
        if math.isfinite(loss):
            raise
        return loss
