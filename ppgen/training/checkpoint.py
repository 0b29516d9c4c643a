"""`Checkpoint`: the file from which a stopped run continues. It holds everything that the next step depends on."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyro.optim.lr_scheduler
import torch
from torch import Tensor

from ppgen.infer.checkpoint_file import with_prefix
from ppgen.infer.distributed import Ranks
from ppgen.infer.parameters import ProgramState, restore, snapshot
from ppgen.infer.svi import SVI
from ppgen.losses.objective import Objective
from ppgen.training.checkpoint_files import CheckpointFiles
from ppgen.training.monitor import TrainingMonitor
from ppgen.training.result import Chain, chains_from_tensors, chains_to_tensors
from ppgen.utils.user_warnings import warn_user

__all__ = ["Checkpoint", "read_position"]

WRITING_SHARE = 0.01  # of the time, that checkpoints at validations may take
SAMPLE_ROWS = 8  # of the data, stored so that other data are recognized


class Checkpoint:
    """The checkpoint of one run. If it exists, the run continues from it; without files, nothing is written.

    Args:
        files: its files, or None.
        options: what must be the same when the run continues, by name, as JSON values.
        state: the tensors of the programs as the run begins.
        data: the training data.
        ranks: the processes that train together; one if left out.
        seconds: the time between two checkpoints.
        digest: computes the digest of the data, of all rows unless they are on disk and many; None if it is not known.

    Attributes:
        chain: the number of the chain to begin or to continue, counted from 0.
        steps: the number of steps that this chain has taken already.
        chains: the completed chains; the training loop appends to them.
        initial: the tensors of the programs when the run began, from which restarts are drawn.
        position: where the stream of batches is, as JSON, if they are not found by their number.
        resumable: whether the current chain was stopped after a step and can continue; the training loop sets it.

    Raises:
        CheckpointError: if the file is damaged, from an earlier version, or not a checkpoint.
        ValueError: if it belongs to another run; the message lists the differences.
    """

    clock: ClassVar = staticmethod(time.monotonic)

    def __init__(
        self,
        files: CheckpointFiles | None,
        options: dict[str, Any],
        state: ProgramState,
        data: tuple[Tensor, ...],
        ranks: Ranks | None = None,
        seconds: float = 60.0,
        digest: Callable[[], str | None] | None = None,
    ) -> None:
        self.ranks = Ranks(alone=True) if ranks is None else ranks
        self.files, self.options, self.state, self.seconds = files, options, state, seconds
        self._began, self._cost = self.clock(), 0.0  # of the last writing
        self._written: int | None = None  # the step of the last one that succeeded
        self._failing = False
        self.chain = self.steps = 0
        self.position: Any = None
        self.chains: list[Chain] = []
        self.initial = snapshot(state.tensors)
        self.resumable = False
        self._sample = {str(i): part[:: max(1, len(part) // SAMPLE_ROWS)][:SAMPLE_ROWS] for i, part in enumerate(data)}
        self._digest = None if self.files is None or digest is None else digest()
        self._stored: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        if self.files is None or not self.files.exist():
            return
        tensors, metadata = self._stored = self.files.read()
        self.files.forget()
        if differences := list(self._differences(tensors, metadata)):
            raise ValueError(
                f"{self.files.path}: a checkpoint of another run; {'; '.join(differences)}. Call fit as that run did, "
                "or delete the file to start a new run"
            )
        self.chain, self.steps = metadata["chain"], metadata["monitor"]["steps"]
        self.chains = chains_from_tensors(with_prefix(tensors, "chains"), metadata["chains"])
        self.initial = with_prefix(tensors, "initial") or self.initial

    def due(self, step: int, *, validated: bool) -> bool:
        """Whether to write a checkpoint after a step: the first one, when it is time, and at validations.

        At validations as often as writing takes no more than `WRITING_SHARE` of the time.

        Args:
            step: the number of the step in its chain.
            validated: whether the loss on held-out data was computed after it.
        """
        if self.files is None:
            return False
        since = self.clock() - self._began
        return step == 1 or since >= self.seconds or (validated and since >= self._cost / WRITING_SHARE)

    def begin_chain(self, svi: SVI, monitor: TrainingMonitor) -> None:
        """Restores the stored chain, if there is one, into its programs, optimizers and monitor.

        Must be called before the first step of each chain.

        Args:
            svi: the new chain's SVI.
            monitor: the new chain's monitor.

        Raises:
            ValueError: if an optimizer differs from the stored one, or is one of Pyro's schedulers. The programs are
                unchanged then.
        """
        self.resumable, self.position = False, None
        for optimizer in svi.optimizers if self.files else ():
            if isinstance(optimizer.optim, pyro.optim.lr_scheduler.PyroLRScheduler):
                raise ValueError(
                    "checkpoint: Pyro's learning-rate schedulers are advanced by callbacks, which a checkpoint does "
                    "not store; give an optimizer and fit's lr_scheduler="
                )
        if self._stored is None:
            return
        (tensors, metadata), self._stored = self._stored, None
        if len(svi.optimizers) != (count := len(metadata["optimizers"])):
            raise ValueError(f"checkpoint: it has {count} optimizers, and this run {len(svi.optimizers)}")
        for i, (optimizer, about) in enumerate(zip(svi.optimizers, metadata["optimizers"], strict=True)):
            optimizer.set_state(self.state.parameters, with_prefix(tensors, f"optimizers/{i}"), about)
        restore(self.state.tensors, with_prefix(tensors, "current"))
        monitor.restore(with_prefix(tensors, "monitor"), metadata["monitor"])
        self.position = metadata.get("position")
        if isinstance(svi.objective, Objective):
            if metadata["step"] is None:
                raise ValueError("checkpoint: it has no step of the schedules of weights, and this run's loss has them")
            svi.objective.step.fill_(metadata["step"])
        svi.restore_compile_decisions(metadata.get("compiled", []))  # which earlier files lack
        self._written = monitor.steps
        if metadata["ranks"] == self.ranks.size:
            torch.set_rng_state(tensors[f"random/{self.ranks.rank}/cpu"])
            if self._gpu is not None:
                torch.cuda.set_rng_state(tensors[f"random/{self.ranks.rank}/cuda"], self._gpu)
        else:
            torch.manual_seed(self.ranks.seed(self.options["seed"], metadata["chain"], self.steps))
        self.steps = 0  # of the next chain

    def random_state(self) -> dict[str, Tensor]:
        """The state of torch's generators on this rank."""
        random = {"cpu": torch.get_rng_state()}
        if self._gpu is not None:
            random["cuda"] = torch.cuda.get_rng_state(self._gpu)
        return random

    def write(self, number: int, svi: SVI, monitor: TrainingMonitor, random: list[dict[str, Tensor]]) -> None:
        """Writes the run as it is after a step. The file is replaced as a whole, or stays as it was, with a warning.

        Args:
            number: the number of the current chain.
            svi: its SVI.
            monitor: its monitor.
            random: what `random_state` returned on each rank.

        Raises:
            NonFiniteError: see `TrainingMonitor.synchronize`.
            TypeError: if an optimizer's state cannot be stored.
            ValueError: if a parameter appeared after the first batch.
        """
        assert self.files is not None
        self._began = self.clock()
        monitored, about_monitor = monitor.to_tensors()
        chains, about_chains = chains_to_tensors(self.chains)
        states = {f"{rank}/{kind}": state for rank, of in enumerate(random) for kind, state in of.items()}
        parts = {"current": snapshot(self.state.tensors), "monitor": monitored, "chains": chains, "random": states}
        parts |= {"data": self._sample, "initial": self.initial if self.options["restarts"] > 1 else {}}
        names = {id(leaf): name for name, leaf in self.state.parameters.items()}
        optimizers = [optimizer.get_state(names) for optimizer in svi.optimizers]
        parts |= {f"optimizers/{i}": tensors for i, (tensors, _) in enumerate(optimizers)}
        metadata = {
            "options": self._description(),
            "ranks": len(random),
            "chain": number,
            "chains": about_chains,
            "monitor": about_monitor,
            "optimizers": [about for _, about in optimizers],
            "position": self.position,
            "digest": self._digest,
            "compiled": svi.compile_decisions(),
            "step": int(svi.objective.step) if isinstance(svi.objective, Objective) else None,
        }
        stored = {f"{part}/{k}": v for part, tensors in parts.items() for k, v in tensors.items()}
        try:
            self.files.write(stored, metadata, best=monitor.best_now)
        except OSError as error:
            self._warn(number, monitor.steps, error)
        else:
            self._written, self._failing = monitor.steps, False
        self._cost = self.clock() - self._began

    def _warn(self, number: int, step: int, error: OSError) -> None:
        """Warns of a writing that failed, unless the one before failed too."""
        assert self.files is not None
        if not self._failing:
            newest = "there is none yet" if self._written is None else f"the newest is of step {self._written}"
            warn_user(
                f"{self.files.path}: the checkpoint of step {step} could not be written ({error}); training goes on, "
                f"and later checkpoints are tried; {newest}"
            )
        self._failing = True

    @property
    def _gpu(self) -> torch.device | None:
        """The GPU that the run is on, if any."""
        tensors = (*self.state.tensors.values(), *self._sample.values())
        return next((tensor.device for tensor in tensors if tensor.is_cuda), None)

    def _description(self) -> dict[str, Any]:
        """The options, parameters and buffers, which must be the same when the run continues."""
        leaves = {
            f"parameter {name}": f"{leaf.dtype} {tuple(leaf.shape)}{'' if leaf.requires_grad else ', frozen'}"
            for name, leaf in self.state.parameters.items()
        }
        buffers = {f"buffer {name}": f"{b.dtype} {tuple(b.shape)}" for name, b in self.state.buffers.items()}
        return self.options | leaves | buffers

    def _differences(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Iterator[str]:
        then, now = metadata["options"], self._description()
        for key in dict.fromkeys([*then, *now]):
            if key not in then or key not in now or then[key] != now[key]:
                yield f"{key}: {then.get(key, 'none')} then, {now.get(key, 'none')} now"
        if then["data"] == now["data"]:
            other = [key for key, rows in with_prefix(tensors, "data").items() if not self._has_rows(key, rows)]
            yield from (f"data: array {key} has other rows" for key in other)
            digest = metadata.get("digest")  # None in a file of an earlier version
            if not other and None not in (digest, self._digest) and digest != self._digest:
                yield f"data: other rows, or in another order (digest {digest:.12} then, {self._digest:.12} now)"

    def _has_rows(self, key: str, rows: Tensor) -> bool:
        """Whether the sample of an array is equal to rows, up to rounding."""
        current = self._sample[key].cpu() if key in self._sample else torch.empty(0)
        if rows.shape != current.shape:
            return False
        return torch.allclose(rows.double(), current.double(), rtol=1e-4, atol=1e-6, equal_nan=True)


def read_position(path: str | os.PathLike) -> tuple[int, int]:
    """The number of the chain and of its last step in a checkpoint.

    Args:
        path: the file, or `CheckpointFiles`, which keep what was read for the run that continues.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, from an earlier version, or not a checkpoint.
    """
    _, metadata = CheckpointFiles.at(path).read()
    return metadata["chain"], metadata["monitor"]["steps"]
