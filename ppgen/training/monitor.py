"""What is watched while a chain trains: its losses, and its weights: the last good, the best, their moving average."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ppgen.infer.checkpoint_file import under
from ppgen.infer.parameters import State, restore, snapshot

__all__ = ["NotFinite", "TrainingMonitor"]


class NotFinite(Exception):
    """A loss or a weight is NaN or infinite; the message says which, and at which step."""


class TrainingMonitor:
    """The record of one chain.

    Args:
        state: what the programs hold.
        ema: decay of the moving average of the weights, or None for none.
        patience: stop after so many validations without a new best, and go back to the best; None for never.

    Attributes:
        history: a number a step: "loss", and each term by its name if there are several.
        signals: a number a step of what a game shows besides: its critics' losses, the players' gradients.
        validation: "step" and "loss" of each validation.
        steps: how many there were.
        good: the last step at which losses and weights were read back and finite.
        kept: the step whose weights the chain ends with.
    """

    def __init__(self, state: State, *, ema: float | None = None, patience: int | None = None):
        self.state, self.ema, self.patience = state, ema, patience
        self.history: dict[str, list[float]] = {"loss": []}
        self.adversarial_metrics: dict[str, list[float]] = {}
        self.validation: dict[str, list[float]] = {"step": [], "loss": []}
        self.good = self.best_step = self.steps = 0
        self._good_weights = snapshot(state.tensors)
        self._average = snapshot(state.tensors) if ema is not None else None
        self._best, self._best_loss = 0, np.inf
        self._best_weights: dict[str, Tensor] | None = None
        self._failed = False
        self._began = time.perf_counter()
        self._pending: deque[tuple[dict[str, Tensor], dict[str, Tensor]]] = deque()

    def saw(self, values: dict[str, Tensor], adversarial_metrics: dict[str, Tensor]) -> None:
        """Takes note of a step, its loss by term and a game's signals still on the device; averages the weights."""
        self._pending.append((values, adversarial_metrics))
        self.steps += 1
        if self._average is None:
            return
        assert self.ema is not None
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        leaves = self.state.leaves
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)([self._average[k] for k in leaves], list(leaves.values()), None)
            for name, buffer in self.state.buffers.items():
                self._average[name].copy_(buffer)

    def read_back(self) -> None:
        """Reads the losses since the last time.

        Raises:
            NotFinite: if one of them, or a weight now, is NaN or infinite.
        """
        while self._pending:
            values, adversarial_metrics = self._pending.popleft()
            numbers = {name: float(value) for name, value in values.items()}
            loss = sum(numbers.values())
            if not np.isfinite(loss):
                terms = ", ".join(f"{name} {number:g}" for name, number in numbers.items())
                self._fail(f"the loss is {loss} at step {len(self.history['loss']) + 1} ({terms})")
            self.history["loss"].append(loss)
            for name, signal in adversarial_metrics.items():
                self.adversarial_metrics.setdefault(name, []).append(float(signal))
            if len(numbers) > 1:
                for name, number in numbers.items():
                    self.history.setdefault(name, []).append(number)
        bad = [k for k, leaf in self.state.leaves.items() if leaf.requires_grad and not leaf.isfinite().all()]
        if bad:
            self._fail(f"parameters are no longer finite after step {self.steps}: {', '.join(bad[:3])}")
        restore(self._good_weights, self.state.tensors)  # in place: fresh memory costs more than the copy
        self.good = self.steps

    def _fail(self, why: str) -> None:
        self._failed = True
        self._pending.clear()
        raise NotFinite(why)

    def validate(self, evaluate: Callable[[], float]) -> None:
        """Takes the loss on held-out data, under the averaged weights where there are such."""
        with self.averaged():
            loss = evaluate()
            if loss < self._best_loss:
                self._best, self._best_loss, self._best_weights = self.steps, loss, snapshot(self.state.tensors)
        self.validation["step"].append(self.steps)
        self.validation["loss"].append(loss)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average of the weights in the programs, where there is one; the live ones again afterward."""
        if self._average is None:
            yield
            return
        live = snapshot(self.state.tensors)
        restore(self.state.tensors, self._average)
        try:
            yield
        finally:
            restore(self.state.tensors, live)

    @property
    def verdict(self) -> str | None:
        """Why to stop now, if there is a reason."""
        since = sum(step > self._best for step in self.validation["step"])
        if self.patience is None or since < self.patience:
            return None
        return f"no better validation loss in {since} checks"

    @property
    def seconds(self) -> float:
        """How long the chain has trained."""
        return time.perf_counter() - self._began

    def stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that it knows, losses read back, as tensors and facts for a file; `go_on` takes them.

        Raises:
            NotFinite: as `read_back`.
        """
        self.read_back()
        tensors: dict[str, Tensor] = {}
        for kind, numbers in (("history", self.history), ("adversarial_metrics", self.adversarial_metrics)):
            tensors |= {f"{kind}/{name}": torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()}
        for kind, weights in (("average", self._average), ("best", self._best_weights)):
            tensors |= {f"{kind}/{name}": tensor for name, tensor in (weights or {}).items()}
        facts = {"steps": self.steps, "best": self._best, "best_loss": self._best_loss}
        return tensors, facts | {"validation": self.validation, "seconds": self.seconds}

    def go_on(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Takes back what `stored` gave; the programs hold the weights of then already."""
        self.history = {name: numbers.tolist() for name, numbers in under(tensors, "history").items()}
        self.adversarial_metrics = {
            name: numbers.tolist() for name, numbers in under(tensors, "adversarial_metrics").items()
        }
        self.validation = facts["validation"]
        self.steps = self.good = facts["steps"]
        restore(self._good_weights, self.state.tensors)
        if self._average is not None:
            restore(self._average, under(tensors, "average"))
        self._best, self._best_loss = facts["best"], facts["best_loss"]
        if best := under(tensors, "best"):
            self._best_weights = snapshot(self.state.tensors)
            restore(self._best_weights, best)
        self._began = time.perf_counter() - facts["seconds"]

    def summary(self, last: int) -> str:
        """The mean loss of the last steps, each critic's, and the last validation."""
        means = {
            "loss": self.history["loss"],
            **{k: v for k, v in self.adversarial_metrics.items() if k.startswith("critic ")},
        }
        words = [f"{name} {np.mean(losses[-last:]):.4g}" for name, losses in means.items()]
        words += [f"validation {loss:.4g}" for loss in self.validation["loss"][-1:]]
        return ", ".join(words)

    def finish(self) -> None:
        """Leaves in the programs the weights that the chain ends with."""
        self.best_step = self.steps
        if self.patience is not None and self._best_weights is not None:
            self.best_step = self._best
            restore(self.state.tensors, self._best_weights)
        elif self._failed:
            self.best_step = self.good
            restore(self.state.tensors, self._good_weights)
        elif self._average is not None:
            restore(self.state.tensors, self._average)
