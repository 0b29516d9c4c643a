"""The result of training: `Chain`, one restart's weights and losses, and `Fitted`, the programs with all chains."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ppgen.infer.adversarial import build_critics
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.infer.parameter_scope import ParameterScope
from ppgen.infer.parameters import CRITIC, CollectParameters, EvalMode, ProgramState, restore, separate_names, snapshot
from ppgen.losses.objective import Objective
from ppgen.tracing.sites import Program, quote_names
from ppgen.tracing.traces import Traces
from ppgen.training.checkpoint_files import CheckpointFiles
from ppgen.training.conversion import as_tensors, cast_like
from ppgen.training.frames import FrameArguments, is_frame
from ppgen.training.missing import check_missing
from ppgen.training.options import check_device
from ppgen.training.stored import ARRAYS, CHAIN, DTYPES, check_stored
from ppgen.training.training_failures import TrainingWarning, critic_properties, training_warnings

__all__ = ["Chain", "Fitted", "chains_from_tensors", "chains_to_tensors"]

FORMAT = 2


@dataclass
class Chain:
    """One restart.

    Attributes:
        weights: parameters and buffers by name.
        history: arrays (steps,): "loss", and each term by name if there are several.
        validation: arrays "step" and "loss", the loss on held-out data; empty without validation.
        stop_reason: why the chain ended.
        best_step: the step after which the weights were these: the last one, unless training went back to an earlier
            one.
        seconds: the time it took.
        interrupted: whether Ctrl-C, SIGTERM or SIGHUP ended it.
        failed: whether it ended since its steps were not finite; the weights are those of an earlier step.
        skipped: the number of steps that were not finite and were left out; `history` has the losses that they had.
        compiled: what was decided about compiling its step; empty if compiling would not have paid.
        adversarial_metrics: arrays (steps,) of adversarial training: each critic's loss, and the gradient norm of each
            network; empty otherwise.
    """

    weights: dict[str, Tensor]
    history: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    stop_reason: str
    best_step: int
    seconds: float
    interrupted: bool = False
    compiled: str = ""
    failed: bool = False
    skipped: int = 0
    adversarial_metrics: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """The loss of the weights: the last validation loss, or else the mean over the last tenth of the steps."""
        validated = self.validation["loss"][self.validation["step"] <= self.best_step]
        losses = validated[-1:] if len(validated) else self.history["loss"][: self.best_step]
        if self.skipped:
            losses = losses[np.isfinite(losses)]
        loss = float(np.mean(losses[-max(1, len(losses) // 10) :])) if len(losses) else math.inf
        return loss if math.isfinite(loss) else math.inf


def chains_to_tensors(chains: list[Chain]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Chains as tensors, and JSON metadata for each, to be stored in a file.

    Args:
        chains: the chains.
    """
    tensors: dict[str, Tensor] = {}
    for i, chain in enumerate(chains):
        tensors |= {f"{i}/weights/{k}": v for k, v in chain.weights.items()}
        for kind in ARRAYS:
            arrays = getattr(chain, kind)
            tensors |= {f"{i}/{kind}/{k}": torch.as_tensor(np.asarray(v, dtype=float)) for k, v in arrays.items()}
    return tensors, [{key: getattr(chain, key) for key in CHAIN} for chain in chains]


def chains_from_tensors(tensors: dict[str, Tensor], metadata: list[dict[str, Any]]) -> list[Chain]:
    """The chains that `chains_to_tensors` converted.

    Args:
        tensors: the tensors.
        metadata: the metadata of each chain.
    """
    fields: list[dict] = [{"weights": {}, **{kind: {} for kind in ARRAYS}, **about} for about in metadata]
    for key, tensor in tensors.items():
        number, kind, name = key.split("/", 2)
        fields[int(number)][kind][name] = tensor if kind == "weights" else tensor.numpy()
    return [Chain(**values) for values in fields]


@dataclass
class Fitted:
    """A model and a guide with trained weights, one set for each chain.

    The programs hold the weights of one chain at a time, which `select_chain` changes.

    Attributes:
        model: the model.
        guide: the guide.
        loss: the loss, or None if it is unknown.
        chains: the chains.
        example: a batch of the shape of the training batches; zeros after `load`.
        metadata: JSON values that are saved with the fit.
        missing_chains: the number of chains that were asked for and are not there, since their first step failed or a
            signal came before them.
        checkpoint: the checkpoints of the run, which `save` deletes once the fit is on disk; None if they are to stay,
            since the run is not complete or a callback stopped its last chain.
        row_subset: for a fit of many rows by ``guide="auto"``, a program on some of them whose density estimates that
            of all rows (`ppgen.posterior.row_chunks.RowSubset`, or of groups `MarginalProgram`); None otherwise, and
            after `load`.
        scope: the parameters of the programs, which are also in Pyro's store under names that are free there.
    """

    model: Program
    guide: Program
    loss: PyroELBO | Callable[..., Tensor] | None
    chains: list[Chain] = field(repr=False)
    example: tuple[Tensor, ...] = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    scope: ParameterScope = field(default_factory=ParameterScope, repr=False, compare=False)
    missing_chains: int = field(default=0, repr=False)
    checkpoint: CheckpointFiles | None = field(default=None, repr=False, compare=False)
    row_subset: Any = field(default=None, repr=False, compare=False)

    @property
    def best(self) -> int:
        """The number of the chain with the lowest final loss."""
        return int(np.argmin([chain.final for chain in self.chains]))

    @property
    def complete(self) -> bool:
        """Whether all chains that were asked for came to their ends: none was interrupted, failed or is missing."""
        return not self.missing_chains and not any(chain.interrupted or chain.failed for chain in self.chains)

    @property
    def stored_draws(self) -> int:
        """How many draws of the posterior by a sampler the guide holds in each chain; 0 for other guides."""
        return int(self.metadata["guide"]["options"]["count"]) if "refined" in self.metadata else 0

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The loss of the best chain by step, and each term by name if there are several."""
        return self.chains[self.best].history

    def training_warnings(self, chain: int | None = None) -> list[TrainingWarning]:
        """Failures of adversarial training, see `ppgen.training.training_failures`; none for a loss without critics.

        Args:
            chain: the number of the chain; the best one if left out.
        """
        metrics = self.chains[self.best if chain is None else chain].adversarial_metrics
        return training_warnings(metrics, critic_properties(self.loss))

    def select_chain(self, chain: int) -> None:
        """Loads the weights of a chain into the programs.

        Args:
            chain: the number of the chain.

        Raises:
            IndexError: if there is no such chain.
        """
        self._check_chain(chain)
        with self.scope.open():
            tensors = self._state().tensors
            restore(tensors, self._weights(chain, tensors))
        self.scope.publish()

    @contextmanager
    def eval_mode(self, chain: int | None = None) -> Iterator[None]:
        """Puts the programs in eval mode, and restores their mode and weights after.

        Args:
            chain: the number of the chain whose weights the programs hold inside; if left out, they stay the same.

        Raises:
            IndexError: if there is no such chain.
        """
        if chain is not None:
            self._check_chain(chain)
        with self.scope.open():
            separate_names(self.model, self.guide)
            tensors = self._state().tensors if chain is not None else {}
            current = snapshot(tensors)
            if chain is not None:
                restore(tensors, self._weights(chain, tensors))
            try:
                with EvalMode(), CollectParameters():  # which keeps frozen parameters frozen
                    yield
            finally:
                restore(tensors, current)

    def breakdown(self, *data: Any) -> dict[str, float]:
        """The loss on data term by term, in eval mode.

        Args:
            *data: the data, as `fit` takes them.

        Raises:
            TypeError: if the loss is not a ppgen objective.
        """
        if not isinstance(self.loss, Objective):
            raise TypeError(f"breakdown: the loss is {type(self.loss).__name__}, not a sum of ppgen terms")
        with self.eval_mode():
            return self.loss.breakdown(self.model, self.guide, *self.tensors(data))

    @property
    def frame(self) -> FrameArguments | None:
        """The columns that the programs take by name, for a fit to a frame; None for other fits."""
        return FrameArguments.from_dict(self.metadata["frame"]) if "frame" in self.metadata else None

    @property
    def num_data(self) -> int:
        """The full size of the plate "data", by which losses are divided; 1 for programs without that plate."""
        with self.eval_mode(), torch.no_grad(), torch.random.fork_rng():
            return Traces(self.model, self.guide, self.example).num_data

    def tensors(self, data: tuple) -> tuple[Any, ...]:
        """Converts data to tensors on the device of the training batches, each of the type that it had there.

        Args:
            data: the arguments of the programs, None for those that are absent. A single argument may be a tuple or a
                Dataset of all of them, as for `fit`; or a frame, if the fit was one to a frame.

        Raises:
            TypeError: see `ppgen.training.conversion.as_tensors`.
            ValueError: see `ppgen.training.conversion.as_tensors`; for fractions where the fit had integers; for a
                frame see `ppgen.training.frames.FrameArguments.tensors`.
        """
        if not data:
            return ()
        if len(data) == 1 and is_frame(data[0]) and self.frame is not None:
            return self._columns(self.frame, data[0])
        whole = data[0] if len(data) == 1 else data
        parts = whole if isinstance(whole, tuple | list) else (whole,)
        given = [part for part in parts if part is not None]
        if not given:
            return (None,) * len(parts)
        floats = [part.dtype for part in self.example if part.is_floating_point()]
        source = tuple(given) if len(given) < len(parts) else whole
        found: tuple[Tensor | None, ...] = as_tensors(source, dtype=floats[0] if floats else None, allow_nan=True)
        if len(found) == len(given):  # otherwise a Dataset
            rest = iter(found)
            found = tuple(None if part is None else next(rest) for part in parts)
        tensors = self._like_example(found)
        check_missing(self.model, tensors, source)
        return tensors

    def _columns(self, arguments: FrameArguments, frame: Any) -> tuple[Any, ...]:
        """The columns of a frame; those that the program only observes may be absent."""
        columns = arguments.tensors(frame)
        tensors = self._like_example(columns)
        check_missing(self.model, tensors, arguments.numbers(tensors), name="frame")
        return tensors

    def _like_example(self, parts: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        """Moves data to the device of the training batches, and converts each part to the type that it had there."""
        converted: list[Tensor | None] = []
        for i, part in enumerate(parts):
            if part is not None and i < len(self.example):
                part = cast_like(part, self.example[i], f"data[{i}]").to(self.example[i].device)
            converted.append(part)
        return tuple(converted)

    def save(self, path: str | PathLike) -> None:
        """Writes all chains to one safetensors file, which is replaced as a whole or stays as it was.

        Then the checkpoints of the run are deleted, which `fit` keeps until what they hold is on disk.

        Args:
            path: the file.
        """
        tensors, chains = chains_to_tensors(self.chains)
        stored = {
            "format": FORMAT,
            "loss": str(self.loss),
            "example": [(tuple(part.shape), str(part.dtype).removeprefix("torch.")) for part in self.example],
            "chains": chains,
            "missing_chains": self.missing_chains,
            "schedule": [int(self.loss.step), self.loss.total] if isinstance(self.loss, Objective) else None,
            "metadata": self.metadata,
            "medians": self._medians(),
        }
        write(path, tensors, stored)
        if self.checkpoint is not None:
            self.checkpoint.remove()
            self.checkpoint = None

    @classmethod
    def load(
        cls,
        path: str | PathLike,
        model: Program,
        guide: Program,
        *,
        loss: PyroELBO | Callable[..., Tensor] | None = None,
        data: Any = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Reads a file that `save` wrote, into programs that were built the same way.

        Args:
            path: the file.
            model: the model, whose weights are replaced.
            guide: the guide, whose weights are replaced.
            loss: the loss of the fit, which `breakdown` needs; the schedules of a ppgen objective continue at the step
                where they were.
            data: the data of the fit, or a batch of them, for programs that read values of their data, such as the
                number of groups; zeros of their shapes if left out.
            device: the device of the programs; torch's default device if left out.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if the file is damaged, from an earlier version, or not a fit.
            LookupError: if the programs have other parameters than the file. They are unchanged then.
            ValueError: if parameters have other shapes than in the file, or the programs do not run on a batch of the
                stored shape. They are unchanged then. Also for a device that this machine does not have.
        """
        check_device(device)
        tensors, stored = read(path)
        if (found := stored.get("format")) != FORMAT:
            raise CheckpointError(
                f"{path}: not a fit, or of another version of ppgen (format {found!r}; this version reads {FORMAT!r}); "
                "fit the programs again, or read the file with the version that wrote it"
            )
        check_stored(path, "fit", tensors, stored)
        shapes = [(shape, DTYPES[dtype]) for shape, dtype in stored["example"]]
        example = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes)
        chains = chains_from_tensors(tensors, stored["chains"])
        missing = stored.get("missing_chains") or 0  # which earlier files lack
        fit = cls(model, guide, loss, chains, example, stored["metadata"], missing_chains=missing)
        if data is not None:
            fit.example = fit.tensors((data,))
        try:
            fit._rebuild_programs(path)
            fit.select_chain(fit.best)
            fit._check_medians(stored["medians"])
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if data is not None:
                raise
            if not example:
                raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
            raise ValueError(
                f"{path}: {str(error).splitlines()[0]}. If the programs read values of their data, such as x.max(), "
                "give the data: load(..., data=x), or data=(x, y)"
            ) from error
        loss = fit.loss
        if isinstance(loss, Objective) and stored["schedule"]:
            step, loss.total = stored["schedule"]
            loss.step.fill_(step)
        return fit

    def _rebuild_programs(self, path: str | PathLike) -> None:
        """Replaces what stands for a program by the program; here nothing does."""

    def _medians(self) -> dict[str, float]:
        """The mean of each latent's median under the best chain's autoguide; empty for other guides."""
        if not isinstance(self.guide, AutoGuide):
            return {}
        try:
            with self.eval_mode(self.best), torch.no_grad(), torch.random.fork_rng():
                medians = self.guide.median(*self.example)
        except (NotImplementedError, AttributeError, TypeError):  # of an AutoGuideList, for example
            return {}
        return {name: float(value.double().mean()) for name, value in medians.items()}

    def _check_medians(self, stored: dict[str, float]) -> None:
        """Checks that the guide maps its weights to the same latents as when it was saved.

        An autoguide takes the supports of its latents from the first data that it sees, here zeros if `load` was given
        none.

        Raises:
            ValueError: naming the latents that differ.
        """
        found = self._medians()
        changed = [
            k for k, v in stored.items() if k not in found or not math.isclose(found[k], v, rel_tol=1e-4, abs_tol=1e-6)
        ]
        if changed:
            raise ValueError(f"{quote_names(changed)} has another support than in the fit")

    def _check_chain(self, chain: int) -> None:
        if not 0 <= chain < len(self.chains):
            raise IndexError(f"chain {chain}: there are chains 0 to {len(self.chains) - 1}")

    def _weights(self, chain: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a chain, without those of critics if the loss is unknown."""
        weights = self.chains[chain].weights
        if any(name.startswith(CRITIC) for name in tensors):
            return weights
        return {name: tensor for name, tensor in weights.items() if not name.startswith(CRITIC)}

    def _state(self) -> ProgramState:
        """The tensors of the programs, found by running them on `example`."""
        try:
            critics = build_critics(self.loss, self.model, self.guide, self.example)
            return ProgramState.from_programs(self.model, self.guide, self.example, critics=critics)
        except (RuntimeError, TypeError) as error:
            batch = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in self.example)
            raise ValueError(
                f"the programs do not run on a batch of the shape they were trained on, {batch}: {error}"
            ) from error
