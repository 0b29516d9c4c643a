"""Stopping and going on: the file that holds a whole run while it trains, and a Ctrl-C that lets a step end."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro.optim.lr_scheduler
import torch
from torch import Tensor

from ppgen.infer.checkpoint_file import CheckpointError, read, under, write
from ppgen.infer.parameters import State, restore, snapshot
from ppgen.infer.svi import SVI
from ppgen.losses.objective import Objective
from ppgen.training.monitor import TrainingMonitor
from ppgen.training.result import Chain, chains_from, chains_stored

__all__ = ["Checkpoint", "Interrupt", "position"]

FORMAT = "run 1"
ROWS = 8  # by which data are known again


class Checkpoint:
    """The file that a run goes on from, if it is there, and that holds it while it trains; without a path, nothing.

    Args:
        path: of the file.
        asked: what the run is, by option, in what JSON holds.
        state: what the programs hold as the run begins.
        data: what is trained on.

    Attributes:
        number: the chain to begin with or to go on with.
        steps: how many it has made.
        chains: those before it; `fit` adds to them.
        start: what the programs held when the run began.
        stopped: set by `fit` when a chain was stopped after a step, and can go on.

    Raises:
        CheckpointError: if the file is damaged, or no checkpoint of a run.
        ValueError: if it is of another run.
    """

    def __init__(self, path: str | os.PathLike | None, asked: dict[str, Any], state: State, data: tuple[Tensor, ...]):
        self.path = None if path is None else Path(path)
        self.asked, self.state = asked, state
        self.number = self.steps = 0
        self.chains: list[Chain] = []
        self.start = snapshot(state.tensors)
        self.stopped = False
        self._rows = {str(i): part[:: max(1, len(part) // ROWS)][:ROWS] for i, part in enumerate(data)}
        self._found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        if self.path is None or not self.path.is_file():
            return
        tensors, facts = self._found = _read(self.path)
        if differences := list(self._differences(tensors, facts)):
            raise ValueError(
                f"{self.path}: a checkpoint of another run; {'; '.join(differences)}. Go on with what was given then, "
                "or delete the file for a new run"
            )
        self.number, self.steps = facts["number"], facts["watch"]["steps"]
        self.chains = chains_from(under(tensors, "chains"), facts["chains"])
        self.start = under(tensors, "start") or self.start

    def begin(self, svi: SVI, watch: TrainingMonitor) -> None:
        """To be called before a chain's first step; what was found goes into its programs, players and record.

        Raises:
            ValueError: if an optimizer is another, or one of Pyro's schedulers; nothing is written to the programs.
        """
        self.stopped = False
        for player in svi.players if self.path else ():
            if isinstance(player.optim, pyro.optim.lr_scheduler.PyroLRScheduler):
                raise ValueError(
                    "checkpoint: callbacks move Pyro's learning-rate schedulers, of which a checkpoint knows nothing; "
                    "give an optimizer and fit's lr_scheduler="
                )
        if self._found is None:
            return
        (tensors, facts), self._found = self._found, None
        for i, (player, about) in enumerate(zip(svi.players, facts["players"], strict=True)):
            player.go_on(self.state.leaves, under(tensors, f"players/{i}"), about)
        restore(self.state.tensors, under(tensors, "live"))
        watch.go_on(under(tensors, "watch"), facts["watch"])
        if isinstance(svi.objective, Objective):
            svi.objective.step.fill_(facts["step"])
        torch.set_rng_state(tensors["random/cpu"])
        if self._gpu is not None:
            torch.cuda.set_rng_state(tensors["random/cuda"], self._gpu)
        self.steps = 0  # of the next chain

    def write(self, path: Path, number: int, svi: SVI, watch: TrainingMonitor) -> None:
        """Writes the run as it is after a step, whole or not at all.

        Raises:
            NotFinite: of `TrainingMonitor.read_back`. ValueError, TypeError: for what a checkpoint does not hold.
        """
        watched, about_watch = watch.stored()
        chains, about_chains = chains_stored(self.chains)
        random = {"cpu": torch.get_rng_state()}
        if self._gpu is not None:
            random["cuda"] = torch.cuda.get_rng_state(self._gpu)
        parts = {"live": snapshot(self.state.tensors), "watch": watched, "chains": chains, "random": random}
        parts |= {"data": self._rows, "start": self.start if self.asked["restarts"] > 1 else {}}
        names = {id(leaf): name for name, leaf in self.state.leaves.items()}
        players = [player.stored(names) for player in svi.players]
        parts |= {f"players/{i}": tensors for i, (tensors, _) in enumerate(players)}
        facts = {
            "format": FORMAT,
            "asked": self._described(),
            "number": number,
            "chains": about_chains,
            "watch": about_watch,
            "players": [about for _, about in players],
            "step": int(svi.objective.step) if isinstance(svi.objective, Objective) else None,
        }
        write(path, {f"{part}/{k}": v for part, tensors in parts.items() for k, v in tensors.items()}, facts)

    def remove(self) -> None:
        """To be called when the run is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def _gpu(self) -> torch.device | None:
        """The GPU that the run is on, if it is on one."""
        held = (*self.state.tensors.values(), *self._rows.values())
        return next((tensor.device for tensor in held if tensor.is_cuda), None)

    def _described(self) -> dict[str, Any]:
        """What is to be equal in the run that goes on."""
        leaves = {
            f"parameter {name}": f"{leaf.dtype} {tuple(leaf.shape)}{'' if leaf.requires_grad else ', frozen'}"
            for name, leaf in self.state.leaves.items()
        }
        buffers = {f"buffer {name}": f"{b.dtype} {tuple(b.shape)}" for name, b in self.state.buffers.items()}
        return self.asked | leaves | buffers

    def _differences(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Iterator[str]:
        then, now = facts["asked"], self._described()
        for key in dict.fromkeys([*then, *now]):
            if key not in then or key not in now or then[key] != now[key]:
                yield f"{key}: {then.get(key, 'none')} then, {now.get(key, 'none')} now"
        if then["data"] == now["data"]:
            for key, rows in under(tensors, "data").items():
                mine = self._rows[key].cpu()
                if not torch.allclose(rows.double(), mine.double(), rtol=1e-4, atol=1e-6, equal_nan=True):
                    yield f"data: its part {key} has other rows"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = read(path)
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of a run, or of another version of ppgen")
    return tensors, facts


def position(path: str | os.PathLike) -> tuple[int, int]:
    """Chain and step at which a checkpoint stands.

    Raises:
        FileNotFoundError: if there is none. CheckpointError: if it is damaged.
    """
    _, facts = _read(Path(path))
    return facts["number"], facts["watch"]["steps"]


class Interrupt:
    """Inside ``with``, Ctrl-C sets `asked` and goes no further; pressed again, it is a KeyboardInterrupt as ever.

    In another thread than the main one, or where Ctrl-C is somebody else's, nothing changes.
    """

    asked = False

    def __enter__(self) -> "Interrupt":
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
