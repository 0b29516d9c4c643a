"""`TrainingMonitor`: the losses of a chain and its weights: the last finite, the best, and their moving average."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ppgen.infer.checkpoint_file import with_prefix
from ppgen.infer.parameters import ProgramState, restore, snapshot

__all__ = ["NonFiniteError", "TrainingMonitor"]


class NonFiniteError(Exception):
    """A loss or a weight is NaN or infinite; the message names it and the step."""


class TrainingMonitor:
    """Records the losses of one chain, and keeps the weights that it may end with.

    Losses stay on the device until `synchronize`, so that a step does not wait for the one before.

    Args:
        state: the tensors of the programs.
        ema: the decay of the moving average of the weights, or None for no average.
        patience: the number of validations without a new best after which to stop; None for never.

    Attributes:
        history: one number a step: "loss", and each term by name if there are several.
        adversarial_metrics: one number a step: each critic's loss, and the gradient norm of each network.
        validation: "step" and "loss" of each validation.
        steps: the number of recorded steps.
        last_finite_step: the last step after which `synchronize` found finite losses and weights.
        best_step: the step whose weights the chain ends with.
    """

    def __init__(self, state: ProgramState, *, ema: float | None = None, patience: int | None = None) -> None:
        self.state, self.ema, self.patience = state, ema, patience
        self.history: dict[str, list[float]] = {"loss": []}
        self.adversarial_metrics: dict[str, list[float]] = {}
        self.validation: dict[str, list[float]] = {"step": [], "loss": []}
        self.last_finite_step = self.best_step = self.steps = 0
        self._last_finite_weights = snapshot(state.tensors)
        self._average = snapshot(state.tensors) if ema is not None else None
        self._best, self._best_loss = 0, np.inf
        self._best_weights: dict[str, Tensor] | None = None
        self._failed = False
        self._start_time = time.perf_counter()
        self._pending: deque[tuple[dict[str, Tensor], dict[str, Tensor]]] = deque()

    def record(self, values: dict[str, Tensor], adversarial_metrics: dict[str, Tensor]) -> None:
        """Records one step, without waiting for the device, and updates the moving average.

        Args:
            values: the loss term by term.
            adversarial_metrics: of adversarial training; empty otherwise.
        """
        self._pending.append((values, adversarial_metrics))
        self.steps += 1
        if self._average is None:
            return
        assert self.ema is not None
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        parameters = self.state.parameters
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)([self._average[k] for k in parameters], list(parameters.values()), None)
            for name, buffer in self.state.buffers.items():
                self._average[name].copy_(buffer)

    def synchronize(self) -> None:
        """Reads the losses recorded since the last call, and copies the weights.

        Raises:
            NonFiniteError: if one of the losses, or a weight now, is NaN or infinite.
        """
        while self._pending:
            values, adversarial_metrics = self._pending.popleft()
            numbers = {name: float(value) for name, value in values.items()}
            loss = sum(numbers.values())
            if not np.isfinite(loss):
                terms = ", ".join(f"{name} {number:g}" for name, number in numbers.items())
                self._fail(f"the loss is {loss} at step {len(self.history['loss']) + 1} ({terms})")
            self.history["loss"].append(loss)
            for name, metric in adversarial_metrics.items():
                self.adversarial_metrics.setdefault(name, []).append(float(metric))
            if len(numbers) > 1:
                for name, number in numbers.items():
                    self.history.setdefault(name, []).append(number)
        trained = {name: leaf for name, leaf in self.state.parameters.items() if leaf.requires_grad}
        if bad := [name for name, leaf in trained.items() if not leaf.isfinite().all()]:
            self._fail(f"parameters are no longer finite after step {self.steps}: {', '.join(bad[:3])}")
        restore(self._last_finite_weights, self.state.tensors)  # in place: new memory costs more than the copy
        self.last_finite_step = self.steps

    def _fail(self, reason: str) -> None:
        self._failed = True
        self._pending.clear()
        raise NonFiniteError(reason)

    def validate(self, evaluate: Callable[[], float]) -> None:
        """Records the loss on held-out data, under the averaged weights if there is an average.

        Args:
            evaluate: computes that loss.
        """
        with self.averaged_weights():
            loss = evaluate()
            if loss < self._best_loss:
                self._best, self._best_loss, self._best_weights = self.steps, loss, snapshot(self.state.tensors)
        self.validation["step"].append(self.steps)
        self.validation["loss"].append(loss)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averaged weights into the programs, if there is an average, and the current ones back after."""
        if self._average is None:
            yield
            return
        current = snapshot(self.state.tensors)
        restore(self.state.tensors, self._average)
        try:
            yield
        finally:
            restore(self.state.tensors, current)

    @property
    def best_now(self) -> bool:
        """Whether the last validation was at this step and is the best so far."""
        return bool(self.steps) and self._best == self.steps

    @property
    def stop_reason(self) -> str | None:
        """Why the chain should stop early, or None."""
        since_best = sum(step > self._best for step in self.validation["step"])
        if self.patience is None or since_best < self.patience:
            return None
        return f"no better validation loss in {since_best} checks"

    @property
    def seconds(self) -> float:
        """The time that the chain has trained, in seconds."""
        return time.perf_counter() - self._start_time

    def finish(self) -> None:
        """Puts into the programs the weights that the chain ends with.

        They are the best ones on validation data if there is a `patience`; else the last finite ones if a loss was not
        finite; else the averaged ones if there is an average.
        """
        self.best_step = self.steps
        if self.patience is not None and self._best_weights is not None:
            self.best_step = self._best
            restore(self.state.tensors, self._best_weights)
        elif self._failed:
            self.best_step = self.last_finite_step
            restore(self.state.tensors, self._last_finite_weights)
        elif self._average is not None:
            restore(self.state.tensors, self._average)

    def summary(self, last: int) -> str:
        """The mean loss and the mean loss of each critic over the last steps, and the last validation loss.

        Args:
            last: the number of steps to average.
        """
        critics = {k: v for k, v in self.adversarial_metrics.items() if k.startswith("critic ")}
        losses = {"loss": self.history["loss"], **critics}
        parts = [f"{name} {np.mean(values[-last:]):.4g}" for name, values in losses.items()]
        parts += [f"validation {loss:.4g}" for loss in self.validation["loss"][-1:]]
        return ", ".join(parts)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Synchronizes, and returns the whole record as tensors and JSON metadata, from which `restore` continues.

        Raises:
            NonFiniteError: see `synchronize`.
        """
        self.synchronize()
        tensors: dict[str, Tensor] = {}
        for kind, numbers in (("history", self.history), ("adversarial_metrics", self.adversarial_metrics)):
            tensors |= {f"{kind}/{name}": torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()}
        for kind, weights in (("average", self._average), ("best", self._best_weights)):
            tensors |= {f"{kind}/{name}": tensor for name, tensor in (weights or {}).items()}
        return tensors, {
            "steps": self.steps,
            "best": self._best,
            "best_loss": self._best_loss,
            "validation": self.validation,
            "seconds": self.seconds,
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Continues a record. The programs must hold the weights of that step already.

        Args:
            tensors: as `to_tensors` returned them.
            metadata: as `to_tensors` returned it.
        """
        self.history = {name: numbers.tolist() for name, numbers in with_prefix(tensors, "history").items()}
        metrics = with_prefix(tensors, "adversarial_metrics")
        self.adversarial_metrics = {name: numbers.tolist() for name, numbers in metrics.items()}
        self.validation = metadata["validation"]
        self.steps = self.last_finite_step = metadata["steps"]
        restore(self._last_finite_weights, self.state.tensors)
        if self._average is not None:
            restore(self._average, with_prefix(tensors, "average"))
        self._best, self._best_loss = metadata["best"], metadata["best_loss"]
        if best := with_prefix(tensors, "best"):
            self._best_weights = snapshot(self.state.tensors)
            restore(self._best_weights, best)
        self._start_time = time.perf_counter() - metadata["seconds"]
