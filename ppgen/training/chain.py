"""`ChainTrainer`: the steps of one chain, from the weights that the programs hold to a `Chain`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ppgen.infer.distributed import Ranks
from ppgen.infer.finite_steps import NUMERICAL_ERRORS
from ppgen.infer.parameters import EvalMode, ProgramState, snapshot
from ppgen.infer.svi import SVI, UNTRAINABLE
from ppgen.losses.match import without_critics
from ppgen.tracing.programs import validation
from ppgen.training.callbacks import TrainingStep
from ppgen.training.checkpoint import Checkpoint
from ppgen.training.convergence import (
    CHECK_STEPS,
    DECAY_SHARE,
    FLAT_STEPS,
    GAME_CHECK_STEPS,
    GAME_DECAY_SHARE,
    GAME_PATIENCE,
    LOWERED_RATE,
    PATIENCE,
    PATIENCE_STEPS,
    Convergence,
)
from ppgen.training.held_out import global_draws
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
        total: the number of steps of a chain, or the ceiling of a run until convergence.
        begin: the number of steps after which the weights of the loss are constant.
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
    begin: int
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
            self.state,
            ema=self.options.ema,
            convergence=self._convergence(),
            selects=self._selects,
            optimizers=lambda: svi.optimizers,
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
        if not (interrupted or failed) and monitor.steps == self.total and (missed := self._missed(monitor)):
            reason = f"{reason}, {missed}"
            warn_user(self._advice(reason))
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
        least, most = CHECK_STEPS
        synchronize_every = max(1, least if self.options.converges else self.total // SYNCHRONIZATIONS)
        apart = GAME_CHECK_STEPS if self._is_game and self._selects else least
        validate_every = max(min(self.batches.known_length, most), min(apart, max(1, self.total // SYNCHRONIZATIONS)))
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
                validated = self._checks and (i % validate_every == 0 or last)
                if validated:
                    monitor.validate(partial(self._validation_loss, svi))
                self._follow(svi, monitor, batch)
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
        return f"{'reached the ceiling of' if self.options.converges else 'completed'} {self.total} steps"

    @property
    def expected_steps(self) -> int:
        """The number of steps of a chain, or the least of one until convergence."""
        return min(self.total, self._convergence().least_steps) if self.options.converges else self.total

    def _convergence(self) -> Convergence:
        """What decides when the chain ends."""
        options, one_pass = self.options, max(1, self.batches.known_length)
        patience = None if options.patience is None else max(options.patience * one_pass, PATIENCE_STEPS)
        if patience is None and options.converges:
            patience = max(PATIENCE * one_pass, FLAT_STEPS) * (GAME_PATIENCE if self._is_game else 1)
        return Convergence(
            patience=patience,
            lowers=options.converges,
            decay=options.decay,
            decay_share=GAME_DECAY_SHARE if self._is_game else DECAY_SHARE,
            begin=self.begin,
            held_out=self._checks,
        )

    def _follow(self, svi: SVI, monitor: TrainingMonitor, batch: tuple[Tensor, ...]) -> None:
        """Lowers the learning rates where the loss has stopped improving, from the best weights on."""
        convergence, step = monitor.convergence, monitor.steps
        factor = 1.0
        if convergence.decaying:
            factor = convergence.rate(step) / convergence.rate(step - 1)
        elif not self._checks:
            if convergence.patience is None or step % CHECK_STEPS[0]:  # when losses have been read
                return
            convergence.note(global_draws(svi.guide, batch))
        if convergence.plateau(step, monitor.history["loss"]) and not convergence.ended:
            monitor.return_to_best()
            factor = 1.0 if convergence.decaying else LOWERED_RATE
        if factor not in (0.0, 1.0):
            for optimizer in svi.optimizers:
                optimizer.scale_rates(factor)

    def _missed(self, monitor: TrainingMonitor) -> str:
        """What a chain that took all of its steps has missed, in words; empty for nothing."""
        if monitor.convergence.ended or monitor.steps < PATIENCE_STEPS:  # so few steps are not meant to converge
            return ""
        if self.options.converges:
            return "before it had converged"
        return "" if self._is_game and self.options.score is None else monitor.unfinished  # its loss does not tell

    def _advice(self, reason: str) -> str:
        """A warning of what was missed, with its remedy."""
        if self.options.converges:
            return f"fit: {reason}: give a larger max_steps, or a larger learning rate"
        remedy = "more steps" if "still improving" in reason else "patience= to keep the best weights"
        return f"fit: {reason}: give {remedy}, or neither steps nor epochs to train until convergence"

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

    def _validation_loss(self, svi: SVI) -> tuple[list[float], list[int]]:
        """The loss on each part of the held-out data, in eval mode, and the number of its rows; or the user's score.

        A game is judged by a distance of samples in the place of its critics, where this decides about its length.
        """
        if self.options.score is not None:
            return self._score(self.options.score)
        assert self.held_out is not None
        losses, rows = [], []
        self._validating = True  # also when an error ends this, which then is that of a validation
        with self._judged(svi), torch.random.fork_rng(), EvalMode():
            torch.manual_seed(self.ranks.seed(0))  # the same numbers every time, so that validations compare
            for i, batch in enumerate(self.held_out.epoch(0)):
                rows.append(self.held_out.global_rows(i))
                self._rows = len(batch[0])
                self.ranks.see(self._rows, rows[-1])
                with self.ranks.shard():
                    loss = _loss(svi, batch) if len(batch[0]) else 0.0
                losses.append(self.ranks.mean(loss, len(batch[0]), rows[-1]))
        self._validating = False
        return losses, rows

    @contextmanager
    def _judged(self, svi: SVI) -> Iterator[None]:
        """Inside, a game whose length is not given has a distance of samples in the place of its critics."""
        objective = svi.objective
        if self._is_game and self._selects:
            svi.objective = without_critics(objective)
        try:
            yield
        finally:
            svi.objective = objective

    def _score(self, score: Callable[[], float | Sequence[float]]) -> tuple[list[float], list[int]]:
        """The user's score, of which rank 0's counts."""
        with torch.random.fork_rng(), torch.no_grad(), EvalMode():
            torch.manual_seed(0)  # the same numbers every time, so that scores compare
            value = score()
        parts = self.ranks.gather(np.atleast_1d(np.asarray(value, dtype=float)).tolist())[0]
        return parts, [1] * len(parts)

    @property
    def _selects(self) -> bool:
        """Whether checks choose the weights."""
        return self.options.converges or self.options.patience is not None

    @property
    def _checks(self) -> bool:
        """Whether there are checks of held-out data, or of a score."""
        return self.held_out is not None or self.options.score is not None

    @property
    def _is_game(self) -> bool:
        """Whether the loss has critics."""
        return bool(getattr(self.loss, "critics", None))

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
