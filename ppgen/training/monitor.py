"""`TrainingMonitor`: the losses of a chain and its weights: the last good, the best, and their moving average."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ppgen.infer.checkpoint_file import with_prefix
from ppgen.infer.optimizers import ParameterOptimizer
from ppgen.infer.parameters import ProgramState, restore, snapshot
from ppgen.training.convergence import Convergence, improves
from ppgen.training.recovery import Recovery

__all__ = ["NonFiniteError", "TrainingMonitor"]

RECENT = 10  # an improvement in the last part in so many of a run is recent


class NonFiniteError(Exception):
    """The first step, or too many later ones, are not finite; the message says which, and why."""


class TrainingMonitor:
    """Records the losses of one chain, and keeps the weights that it may end with.

    Losses stay on the device until `synchronize`, so that a step does not wait for the one before.

    Args:
        state: the tensors of the programs.
        ema: the decay of the moving average of the weights, or None for no average.
        convergence: follows the losses; one that never ends a chain if left out.
        selects: whether the chain ends with the best weights on held-out data.
        optimizers: returns the optimizers, whose states go back with the weights after bad steps.

    Attributes:
        history: one number a step: "loss", and each term by name if there are several.
        adversarial_metrics: one number a step: each critic's loss, and the gradient norm of each network.
        validation: "step" and "loss" of each validation.
        steps: the number of recorded steps.
        recovery: the steps that were skipped, and the weights to go back to.
        bad_step: the last step that was skipped and its terms, in words.
        best_step: the step whose weights the chain ends with.
    """

    def __init__(
        self,
        state: ProgramState,
        *,
        ema: float | None = None,
        convergence: Convergence | None = None,
        selects: bool = False,
        optimizers: Callable[[], Sequence[ParameterOptimizer]] = list,
    ) -> None:
        self.state, self.ema, self.selects = state, ema, selects
        self.convergence = Convergence() if convergence is None else convergence
        self.history: dict[str, list[float]] = {"loss": []}
        self.adversarial_metrics: dict[str, list[float]] = {}
        self.validation: dict[str, list[float]] = {"step": [], "loss": []}
        self.best_step = self.steps = 0
        self.bad_step = ""
        self._average = snapshot(state.tensors) if ema is not None else None
        averages = {f"average {name}": tensor for name, tensor in (self._average or {}).items()}
        self.recovery = Recovery(state.tensors | averages, optimizers)
        self._best, self._best_loss = 0, np.inf
        self._best_weights: dict[str, Tensor] | None = None
        self._best_parts: list[float] = []
        self._last_parts: list[float] = []
        self._rows: list[int] = []
        self._failed = False
        self._start_time = time.perf_counter()
        self._pending: deque[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]] = deque()

    def record(self, values: dict[str, Tensor], adversarial_metrics: dict[str, Tensor], taken: Tensor) -> None:
        """Records one step, without waiting for the device, and updates the moving average.

        Args:
            values: the loss term by term.
            adversarial_metrics: of adversarial training; empty otherwise.
            taken: whether the step was taken, a boolean scalar. If not, averages stay as they are.
        """
        self._pending.append((values, adversarial_metrics, taken))
        self.steps += 1
        waits = not taken.is_cpu
        if not waits:
            self.synchronize()
        if self._average is None or not (waits or taken):
            return
        assert self.ema is not None
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        parameters = self.state.parameters
        with torch.no_grad():
            if waits:  # a weight of zero changes nothing
                for name, leaf in parameters.items():
                    self._average[name].lerp_(leaf.detach(), (taken * (1 - decay)).to(leaf))
            else:
                get_ema_multi_avg_fn(decay)([self._average[k] for k in parameters], list(parameters.values()), None)
            for name, buffer in self.state.buffers.items():
                self._average[name].copy_(buffer)

    def synchronize(self) -> None:
        """Reads the losses recorded since the last call, and whether the steps were taken.

        Raises:
            NonFiniteError: if the first step was not taken.
        """
        while self._pending:
            values, adversarial_metrics, taken = self._pending.popleft()
            numbers = {name: float(value) for name, value in values.items()}
            loss = sum(numbers.values())
            self.history["loss"].append(loss)
            metrics = {name: float(metric) for name, metric in adversarial_metrics.items()}
            for name in self.adversarial_metrics | metrics:  # a step that failed may lack some
                self.adversarial_metrics.setdefault(name, []).append(metrics.get(name, np.nan))
            if len(numbers) > 1 or len(self.history) > 1:
                terms = dict.fromkeys(name for name in self.history if name != "loss")
                for name in terms | (numbers if len(numbers) > 1 else {}):
                    self.history.setdefault(name, []).append(numbers.get(name, np.nan))
            good = bool(taken)
            self.recovery.count(taken=good)
            if not good:
                parts = numbers if len(numbers) > 1 else {}
                parts |= {name: metric for name, metric in metrics.items() if not np.isfinite(metric)}
                text = ", ".join(f"{name} {number:g}" for name, number in parts.items())
                cause = "the norm of a gradient is not finite, and " if np.isfinite(loss) else ""
                step = len(self.history["loss"])
                self.bad_step = f"{cause}the loss is {loss:g} at step {step}" + (text and f" ({text})")
                if len(self.history["loss"]) == 1:
                    self.fail(self.bad_step)

    def keep(self) -> None:
        """Keeps the weights from time to time, after losses were read.

        Raises:
            NonFiniteError: if the weights are not finite after the first step.
        """
        if self.steps == 1 and (bad := self.recovery.bad_parameters()):
            self.fail(f"parameters are no longer finite after step 1: {', '.join(bad[:3])}")
        self.recovery.keep(self.steps)

    def fail(self, reason: str) -> None:
        """Ends the chain with the weights that were kept.

        Args:
            reason: why, in words.

        Raises:
            NonFiniteError: always.
        """
        self._failed = True
        self._pending.clear()
        raise NonFiniteError(reason)

    def validate(self, evaluate: Callable[[], tuple[list[float], list[int]]]) -> None:
        """Records the loss on held-out data, under the averaged weights if there is an average.

        Args:
            evaluate: computes the loss of each part of these data, and the number of its rows.
        """
        with self.averaged_weights():
            parts, rows = evaluate()
            loss = parts[0] if len(parts) == 1 else float(np.average(parts, weights=rows))
            if self.steps >= self.convergence.begin and loss < self._best_loss:
                self._best, self._best_loss, self._best_parts = self.steps, loss, parts
                self._best_weights = snapshot(self.state.tensors)
        self.convergence.check(self.steps, parts, rows)
        self._last_parts, self._rows = parts, rows
        self.validation["step"].append(self.steps)
        self.validation["loss"].append(loss)

    def return_to_best(self) -> None:
        """Puts the best weights on held-out data into the programs and the average, if there are any."""
        if self._best_weights is None:
            return
        restore(self.state.tensors, self._best_weights)
        if self._average is not None:
            restore(self._average, self._best_weights)
        self.recovery.replaced(self.steps)

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
        return self.convergence.reason if self.convergence.ended else None

    @property
    def unfinished(self) -> str:
        """What the losses on held-out data say about a run that ended by its count, in words; empty for nothing."""
        checks, best, last = self.validation["loss"], self._best_parts, self._last_parts
        if len(checks) < 2 or not best or not last:
            return ""
        ago = self.steps // RECENT
        if self.steps - self._best > ago and not self.selects and improves(last, best, self._rows):
            return (
                f"long after the best held-out loss, {self._best_loss:.4g} at step {self._best} (now {checks[-1]:.4g})"
            )
        recent = self.steps - self.convergence.since <= ago
        return f"while the held-out loss was still improving ({checks[-1]:.4g})" if recent else ""

    @property
    def seconds(self) -> float:
        """The time that the chain has trained, in seconds."""
        return time.perf_counter() - self._start_time

    def finish(self) -> list[str]:
        """Puts into the programs the weights that the chain ends with.

        They are the best ones on validation data if it `selects`; else those that were kept, if the chain
        failed or its last ones are not finite; else the averaged ones if there is an average.

        Returns:
            The names of the parameters for whose values the chain does not end with the last weights.
        """
        self.best_step = self.steps
        if self.selects and self._best_weights is not None:
            self.best_step = self._best
            restore(self.state.tensors, self._best_weights)
            return []
        if (bad := self.recovery.bad_parameters()) or self._failed:
            self.best_step = self.recovery.step
            self.recovery.go_back()
        if self._average is not None:
            restore(self.state.tensors, self._average)
        return bad

    def summary(self, last: int) -> str:
        """The mean loss and the mean loss of each critic over the last steps, and the last validation loss.

        Args:
            last: the number of steps to average.
        """
        critics = {k: v for k, v in self.adversarial_metrics.items() if k.startswith("critic ")}
        losses = {"loss": self.history["loss"], **critics}
        parts = [f"{name} {_mean(values[-last:]):.4g}" for name, values in losses.items()]
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
        kept, recovery = self.recovery.to_tensors(self.steps)
        return tensors | {f"kept/{name}": tensor for name, tensor in kept.items()}, {
            "recovery": recovery,
            "steps": self.steps,
            "best": self._best,
            "best_loss": self._best_loss,
            "parts": {"best": self._best_parts, "last": self._last_parts, "rows": self._rows},
            "convergence": self.convergence.state(),
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
        self.steps = metadata["steps"]
        if self._average is not None:
            restore(self._average, with_prefix(tensors, "average"))
        self._best, self._best_loss = metadata["best"], metadata["best_loss"]
        parts = metadata.get("parts") or {"best": [], "last": [], "rows": []}  # which earlier files lack
        self._best_parts, self._last_parts, self._rows = parts["best"], parts["last"], parts["rows"]
        self.convergence.restore(metadata.get("convergence", {}))
        if best := with_prefix(tensors, "best"):
            self._best_weights = snapshot(self.state.tensors)
            restore(self._best_weights, best)
        self.recovery.restore(with_prefix(tensors, "kept"), metadata.get("recovery", {}), self.steps)
        self._start_time = time.perf_counter() - metadata["seconds"]


def _mean(losses: list[float]) -> float:
    """The mean of those that are finite: skipped steps may have another loss."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return float(np.mean(finite)) if finite else np.nan
