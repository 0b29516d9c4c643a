"""What a fit leaves behind: the weights of each chain, the way they came, and what can be asked of them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor

from ppgen.batches import as_tensors
from ppgen.draws import Draws
from ppgen.infer.checkpoint import CheckpointError, read, write
from ppgen.infer.critics import networks
from ppgen.infer.parameters import CRITIC, Evaluation, Parameters, State, restore, snapshot, tell_apart
from ppgen.objective import Objective
from ppgen.referee import Finding, findings
from ppgen.sites import Program

__all__ = ["Chain", "Fit", "chains_from", "chains_stored", "rules"]

FORMAT = 1
ARRAYS = ("history", "validation", "signals")
KEPT_AS_FACTS = ("stopped", "kept", "seconds", "interrupted", "compiled")  # of a chain; the rest are arrays


@dataclass
class Chain:
    """One restart.

    Attributes:
        weights: parameters and buffers by name.
        history: arrays (steps,): "loss", and each term by its name if there are several.
        validation: arrays "step" and "loss", the loss on held-out data; empty without such.
        signals: of a game, arrays (steps,): each critic's loss and the norms of all players' gradients.
        stopped: why the run ended.
        kept: the step after which the weights were these, the last one unless an earlier one was gone back to.
        seconds: how long it took.
        compiled: what was decided about compiling its step; empty if that would not have paid.
    """

    weights: dict[str, Tensor]
    history: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    stopped: str
    kept: int
    seconds: float
    interrupted: bool = False
    compiled: str = ""
    signals: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """The loss of the weights: the last on validation data, or else the mean over the last tenth of the steps."""
        checked = self.validation["loss"][self.validation["step"] <= self.kept]
        losses = checked[-1:] if len(checked) else self.history["loss"][: self.kept]
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
    """What `findings` is to know of a loss's critics: their ceilings, and which of them are meant to fail."""
    critics = getattr(loss, "critics", {})
    return {
        "ceilings": {name: term.critic.ceiling for name, (term, *_) in critics.items()},
        "aligned": {name for name, (term, *_) in critics.items() if term.aligns},
    }


@dataclass
class Fit:
    """A model and a guide with the weights that fit left, one set a chain.

    The live programs hold one set at a time; `use` changes which. `example` is the batch on which the programs showed
    what they hold, of zeros after `load`.
    """

    model: Program
    guide: Program
    loss: ELBO | Callable[..., Tensor] | None
    chains: list[Chain] = field(repr=False)
    example: tuple[Tensor, ...] = field(repr=False)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def best(self) -> int:
        """The chain of lowest final loss."""
        return int(np.argmin([chain.final for chain in self.chains]))

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The best chain's history."""
        return self.chains[self.best].history

    def findings(self, chain: int | None = None) -> list[Finding]:
        """What a game's losses and gradients show of it (see `ppgen.referee`): nothing of a loss without critics.

        Args:
            chain: the best if left out.
        """
        return findings(self.chains[self.best if chain is None else chain].signals, **rules(self.loss))

    def use(self, chain: int) -> None:
        """Loads a chain's weights into the live programs.

        Raises:
            IndexError: if there is no such chain.
        """
        if not 0 <= chain < len(self.chains):
            raise IndexError(f"chain {chain}: there are chains 0 to {len(self.chains) - 1}")
        tensors = self._state().tensors
        restore(tensors, self._weights(chain, tensors))

    @contextmanager
    def evaluating(self, chain: int | None = None) -> Iterator[None]:
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
        with self.evaluating():
            return self.loss.breakdown(self.model, self.guide, *self.tensors(data))

    def to_arviz(self, *data: Any, **options: Any):
        """The posterior on data as ArviZ reads it; see `ppgen.diagnostics.to_arviz`, which takes the options."""
        from ppgen.diagnostics.arviz import to_arviz  # late: ArviZ is slow to import

        return to_arviz(self, *self.tensors(data), **options)

    def diagnose(self, *data: Any, **options: Any):
        """Whether the posterior on data can be trusted; see `ppgen.diagnostics.diagnose`, which takes the options."""
        from ppgen.diagnostics.verdict import diagnose  # late: ArviZ is slow to import

        return diagnose(self, *self.tensors(data), **options)

    def report(self, path: str | PathLike, *data: Any, **options: Any) -> Path:
        """Writes one HTML page: the posterior on data, the verdict and its figures, training. Returns its path.

        See `ppgen.report.report_of_fit`, which takes the options.
        """
        from ppgen.report import report_of_fit, write_report  # late: ArviZ and matplotlib are slow to import

        return write_report(path, report_of_fit(self, *self.tensors(data), **options))

    @property
    def num_data(self) -> int:
        """Full size of the plate "data", 1 for programs without one: losses are averages over so many."""
        with self.evaluating(), torch.no_grad(), torch.random.fork_rng():
            return Draws(self.model, self.guide, self.example).num_data

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
            "facts": self.facts,
        }
        write(path, tensors, facts)

    @classmethod
    def load(
        cls,
        path: str | PathLike,
        model: Program,
        guide: Program,
        *,
        loss: ELBO | Callable[..., Tensor] | None = None,
        device: str | torch.device | None = None,
    ) -> "Fit":
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
        fit = cls(model, guide, loss, chains_from(tensors, stored["chains"]), example, stored["facts"])
        fit.use(fit.best)
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
