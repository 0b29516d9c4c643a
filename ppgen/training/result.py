"""What a fit leaves behind: the weights of each chain, the way they came, and what can be asked of them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from ppgen.infer.adversarial import networks
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.infer.parameters import CRITIC, Evaluation, Parameters, State, restore, snapshot, tell_apart
from ppgen.losses.objective import Objective
from ppgen.tracing.sites import Program
from ppgen.tracing.traces import Traces
from ppgen.training.batches import as_tensors
from ppgen.training.training_failures import TrainingWarning, training_warnings

__all__ = ["Chain", "Fitted", "chains_from", "chains_stored", "rules"]

FORMAT = 1
ARRAYS = ("history", "validation", "adversarial_metrics")
KEPT_AS_FACTS = ("stop_reason", "best_step", "seconds", "interrupted", "compiled")  # of a chain; the rest are arrays


@dataclass
class Chain:
    """One restart.

    Attributes:
        weights: parameters and buffers by name.
        history: arrays (steps,): "loss", and each term by its name if there are several.
        validation: arrays "step" and "loss", the loss on held-out data; empty without such.
        signals: of a game, arrays (steps,): each critic's loss and the norms of all players' gradients.
        stop_reason: why the run ended.
        best_step: the step after which the weights were these, the last one unless an earlier one was gone back to.
        seconds: how long it took.
        compiled: what was decided about compiling its step; empty if that would not have paid.
    """

    weights: dict[str, Tensor]
    history: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    stop_reason: str
    best_step: int
    seconds: float
    interrupted: bool = False
    compiled: str = ""
    adversarial_metrics: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """The loss of the weights: the last on validation data, or else the mean over the last tenth of the steps."""
        checked = self.validation["loss"][self.validation["step"] <= self.best_step]
        losses = checked[-1:] if len(checked) else self.history["loss"][: self.best_step]
        loss = float(np.mean(losses[-max(1, len(losses) // 10) :])) if len(losses) else math.inf
        return loss if math.isfinite(loss) else math.inf


def chains_stored(chains: list[Chain]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Chains as tensors, and facts of each, for a file."""
    tensors: dict[str, Tensor] = {}
    for i, chain in enumerate(chains):
        tensors |= {f"{i}/weights/{k}": v for k, v in chain.weights.items()}
        for kind in ARRAYS:
            arrays = getattr(chain, kind)
            tensors |= {f"{i}/{kind}/{k}": torch.as_tensor(np.asarray(v, dtype=float)) for k, v in arrays.items()}
    return tensors, [{key: getattr(chain, key) for key in KEPT_AS_FACTS} for chain in chains]


def chains_from(tensors: dict[str, Tensor], facts: list[dict[str, Any]]) -> list[Chain]:
    """The chains that `chains_stored` stored."""
    parts: list[dict] = [{"weights": {}, **{kind: {} for kind in ARRAYS}, **about} for about in facts]
    for key, tensor in tensors.items():
        number, kind, name = key.split("/", 2)
        parts[int(number)][kind][name] = tensor if kind == "weights" else tensor.numpy()
    return [Chain(**part) for part in parts]


def rules(loss: Any) -> dict[str, Any]:
    """What `training_warnings` is to know of a loss's critics: their ceilings, and which of them are meant to fail."""
    critics = getattr(loss, "critics", {})
    return {
        "upper_bounds": {name: term.critic.upper_bound for name, (term, *_) in critics.items()},
        "aligned": {name for name, (term, *_) in critics.items() if term.aligns},
    }


@dataclass
class Fitted:
    """A model and a guide with the weights that fit left, one set a chain.

    The live programs hold one set at a time; `select_chain` changes which. `example` is the batch on which the programs showed
    what they hold, of zeros after `load`.
    """

    model: Program
    guide: Program
    loss: PyroELBO | Callable[..., Tensor] | None
    chains: list[Chain] = field(repr=False)
    example: tuple[Tensor, ...] = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def best(self) -> int:
        """The chain of lowest final loss."""
        return int(np.argmin([chain.final for chain in self.chains]))

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The best chain's history."""
        return self.chains[self.best].history

    def training_warnings(self, chain: int | None = None) -> list[TrainingWarning]:
        """What a game's losses and gradients show of it (see `ppgen.training.training_failures`): nothing of a loss without critics.

        Args:
            chain: the best if left out.
        """
        return training_warnings(
            self.chains[self.best if chain is None else chain].adversarial_metrics, **rules(self.loss)
        )

    def select_chain(self, chain: int) -> None:
        """Loads a chain's weights into the live programs.

        Raises:
            IndexError: if there is no such chain.
        """
        if not 0 <= chain < len(self.chains):
            raise IndexError(f"chain {chain}: there are chains 0 to {len(self.chains) - 1}")
        tensors = self._state().tensors
        restore(tensors, self._weights(chain, tensors))

    @contextmanager
    def eval_mode(self, chain: int | None = None) -> Iterator[None]:
        """The programs in eval mode, under the weights of `chain` if given; as they were after."""
        tell_apart(self.model, self.guide)
        tensors = self._state().tensors if chain is not None else {}
        live = snapshot(tensors)
        if chain is not None:
            restore(tensors, self._weights(chain, tensors))
        try:
            with Evaluation(), Parameters():  # which keeps frozen parameters frozen
                yield
        finally:
            restore(tensors, live)

    def breakdown(self, *data: Any) -> dict[str, float]:
        """The loss on data term by term, in eval mode.

        Raises:
            TypeError: if the loss is not a ppgen objective.
        """
        if not isinstance(self.loss, Objective):
            raise TypeError(f"breakdown: the loss is {type(self.loss).__name__}, not a sum of ppgen terms")
        with self.eval_mode():
            return self.loss.breakdown(self.model, self.guide, *self.tensors(data))

    @property
    def num_data(self) -> int:
        """Full size of the plate "data", 1 for programs without one: losses are averages over so many."""
        with self.eval_mode(), torch.no_grad(), torch.random.fork_rng():
            return Traces(self.model, self.guide, self.example).num_data

    def tensors(self, data: tuple) -> tuple[Tensor, ...]:
        """Data as the programs take them: where they were trained, and floating parts in the type of then.

        One argument may be all of them, as `fit` takes data: a tuple or a Dataset.

        Raises:
            TypeError, ValueError: for data of another kind, NaN or infinite values, and parts of different lengths.
        """
        if not data:
            return ()
        floats = [part.dtype for part in self.example if part.is_floating_point()]
        parts = as_tensors(data[0] if len(data) == 1 else data, dtype=floats[0] if floats else None)
        return tuple(part.to(self.example[0].device) for part in parts)

    def save(self, path: str | PathLike) -> None:
        """Writes all chains to one safetensors file, whole or not at all."""
        tensors, chains = chains_stored(self.chains)
        facts = {
            "format": FORMAT,
            "loss": str(self.loss),
            "example": [(tuple(part.shape), str(part.dtype).removeprefix("torch.")) for part in self.example],
            "chains": chains,
            "schedule": [int(self.loss.step), self.loss.total] if isinstance(self.loss, Objective) else None,
            "metadata": self.metadata,
        }
        write(path, tensors, facts)

    @classmethod
    def load(
        cls,
        path: str | PathLike,
        model: Program,
        guide: Program,
        *,
        loss: PyroELBO | Callable[..., Tensor] | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Reads what `save` wrote, into programs built as they were then.

        Args:
            loss: the loss of then, for `breakdown`; a ppgen objective goes on at the step where it was.
            device: where the programs are; torch's default device if left out.

        Raises:
            FileNotFoundError: if there is no file.
            CheckpointError: if it is damaged, or not a fit.
            LookupError, ValueError: if the programs' parameters differ from the stored ones, or the programs do not run
                on the batches of then; nothing is written to them.
        """
        tensors, stored = read(path)
        if stored.get("format") != FORMAT:
            raise CheckpointError(f"{path}: format {stored.get('format')!r}; this version reads format {FORMAT}")
        shapes = [(shape, getattr(torch, dtype)) for shape, dtype in stored["example"]]
        example = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes)
        fit = cls(model, guide, loss, chains_from(tensors, stored["chains"]), example, stored["metadata"])
        fit.select_chain(fit.best)
        if isinstance(loss, Objective) and stored["schedule"]:
            step, loss.total = stored["schedule"]
            loss.step.fill_(step)
        return fit

    def _weights(self, chain: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A chain's weights; those of critics are left out where there is no loss that has them."""
        weights = self.chains[chain].weights
        if any(name.startswith(CRITIC) for name in tensors):
            return weights
        return {name: tensor for name, tensor in weights.items() if not name.startswith(CRITIC)}

    def _state(self) -> State:
        """The programs' tensors, found on a batch of the shape that they were trained on."""
        try:
            critics = networks(self.loss, self.model, self.guide, self.example)
            return State.of(self.model, self.guide, self.example, critics=critics)
        except (RuntimeError, TypeError) as error:
            batch = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in self.example)
            raise ValueError(f"the programs do not run on a batch like the one trained on, {batch}: {error}") from error
