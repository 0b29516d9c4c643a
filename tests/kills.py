"""A child process trains a program and is killed by SIGKILL at a chosen event; the run is then resumed.

An `Event` is a kind and a count: ("step", 3) is the end of the third step, before its checkpoint. No event is a time,
so that each kill is the same in every run. Children are forked from a server that has imported everything.
"""

import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import torch
from distributed_cases import CASES, interpreted
from torch import Tensor

import ppgen
from ppgen.infer.checkpoint_file import read
from ppgen.infer.compile.building import Build
from ppgen.infer.compile.policy import CompilePolicy
from ppgen.infer.compile.step import CompiledStep
from ppgen.infer.distributed import Ranks, joined
from ppgen.training.checkpoint import Checkpoint
from ppgen.training.checkpoint_files import CheckpointFiles

PROGRAMS = ("vae", "wgan_gp", "dann", "flow", "diffusion", "global_latents", "growing")
STEPS = 16  # checkpoints are written after steps 1, 5, 9 and 13
SECONDS = 120  # after which a child is taken for dead

Event = tuple[str, int]

# (kind, how often it happens at least in a run)
KINDS = {
    "step": STEPS,  # the end of a step
    "inside": STEPS,  # a step, between its critics and its programs
    "writing": 5,  # a checkpoint, and at last the weights, of which half is written
    "fsync": 10,  # before a file or a folder is synced
    "link": 3,  # before the file becomes the previous one
    "replace": 7,  # before a file is renamed
    "replaced": 7,  # after it is renamed, before the folder is synced
    "trained": 1,  # before the weights are written
    "saved": 1,  # between weights and removal
    "removing": 2,  # before the first checkpoint; between the removal of the one before and that of the newest
}


def events(*, compiled: bool) -> list[Event]:
    """All events at which a run can be killed."""
    kinds = KINDS | ({"compile": 1} if compiled else {})
    return [(kind, count) for kind, counts in kinds.items() for count in range(1, counts + 1)]


def random_events(number: int, seed: int, *, compiled: bool) -> list[Event]:
    """Some of the events; the kinds that happen once are among them if there is room."""
    found = events(compiled=compiled)
    chosen = [event for event in found if KINDS.get(event[0], 1) == 1] if number >= 10 else []
    others = [event for event in found if event not in chosen]
    return chosen + random.Random(seed).sample(others, number - len(chosen))


class Clock:
    """A clock that advances by a second each time it is read."""

    now = 0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killed_at(event: Event | None) -> Iterator[list[Callable]]:
    """Kills this process at an event; yields callbacks for `fit`."""
    kind, number = event or ("", 0)
    count = 0

    def happens(this: str) -> bool:
        nonlocal count
        count += this == kind
        return this == kind and count == number

    def before(target: Any, name: str, this: str, then: Callable = kill) -> Any:
        original = getattr(target, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if happens(this):
                then(*args)
            return original(*args, **kwargs)

        return patch.object(target, name, call)

    def after(target: Any, name: str, this: str) -> Any:
        original = getattr(target, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if happens(this):
                kill()
            return result

        return patch.object(target, name, call)

    def cut(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        kill()

    seen: dict[str, int] = {"fsync": 0}
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        seen["fsync"] += 1
        if happens("fsync"):
            kill()
        if seen["fsync"] % 2 and happens("writing"):  # files and folders are synced in turn
            cut(descriptor)
        synced(descriptor)

    def step(_: Any) -> None:
        if happens("step"):
            kill()
        for name in ("SIGTERM", "SIGHUP"):
            if happens(name):
                signal.raise_signal(getattr(signal, name))
            if happens(f"{name} twice"):
                signal.raise_signal(getattr(signal, name))
                signal.raise_signal(getattr(signal, name))

    with ExitStack() as stack:
        stack.enter_context(patch.object(os, "fsync", fsync))
        patches = {
            "inside": lambda: before(CompiledStep, "__call__", "inside"),
            "link": lambda: before(os, "link", "link"),
            "replace": lambda: before(os, "replace", "replace"),
            "replaced": lambda: after(os, "replace", "replaced"),
            "compile": lambda: before(Build, "known", "compile"),
            "trained": lambda: before(ppgen.Fit, "save", "trained"),
            "saved": lambda: before(CheckpointFiles, "remove", "saved"),
            "removing": lambda: after(CheckpointFiles, "_remove_others", "removing"),
        }
        if kind in patches:
            stack.enter_context(patches[kind]())
        yield [step]


def train(name: str, folder: Path, compile: Any, event: Event | None) -> None:
    """What a child does: it trains a program, or resumes it, and saves the fit."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pyro.clear_param_store()
    torch.manual_seed(0)
    case = CASES[name]()
    programs, whole = case.pop("programs"), case.pop("whole", False)
    options = {"steps": STEPS, "batch_size": None if whole else 24, "compile": compile, "progress": False} | case
    options |= {"steps": STEPS, "validation": 0.25} if name in ("vae", "flow") else {"steps": STEPS}
    checkpointing = {"checkpoint": folder / "run", "checkpoint_seconds": 5}
    clocks = patch.object(Checkpoint, "clock", Clock()), patch.object(CompilePolicy, "clock", Clock())
    with interpreted(), clocks[0], clocks[1], killed_at(event) as callbacks:
        options |= checkpointing | {"callbacks": callbacks}
        fit = ppgen.fit(programs.model, programs.guide, options.pop("data"), **options)
        if Ranks().first:
            fit.save(folder / "fit")


@functools.cache
def server() -> Any:
    """The processes that are forked from one that has imported this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills", "pandas", "ppgen.infer.compile.inductor"])  # slow to import
    return context


def run(target: Callable, *args: Any) -> int:
    """Runs a function in a child process; returns its exit code, that of a signal negative."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(ppgen.__file__).parents[1])])
    with patch.dict(os.environ, {"PYTHONPATH": paths}):  # for the server, which starts with the first child
        child = server().Process(target=target, args=args)
        child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        raise TimeoutError(f"{args}: a child did not end")
    return child.exitcode


@functools.cache
def whole(name: str, compile: Any) -> dict[str, Tensor]:
    """The weights and losses of a run that was never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        assert run(train, name, Path(folder), compile, None) == 0
        assert {path.name for path in Path(folder).iterdir()} == {"fit"}
        return read(Path(folder) / "fit")[0]


def assert_survives(name: str, event: Event, folder: Path, compile: Any = False) -> None:
    """Asserts that a run that is killed at an event, and resumed, equals the one that was never stopped."""
    assert run(train, name, folder, compile, event) == -signal.SIGKILL, f"{event} did not happen"
    if (folder / "fit").is_file():  # the weights stand before the checkpoint is removed
        assert_equal(read(folder / "fit")[0], whole(name, compile), compile)
    assert run(train, name, folder, compile, None) == 0
    assert_equal(read(folder / "fit")[0], whole(name, compile), compile)
    assert {path.name for path in folder.iterdir()} == {"fit"}, "files are left"


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], compile: Any) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if compile:
            torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-9, msg=f"{key} differs")
        else:
            assert torch.equal(found[key], tensor), key


def torchrun(name: str, folder: Path, rank: int = 0, event: Event = ("never", 1)) -> subprocess.CompletedProcess:
    """Two ranks train a program, or resume it; one of them is killed at an event."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(ppgen.__file__).parents[1])])
    command = [*launcher, __file__, name, str(folder), str(rank), event[0], str(event[1])]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def main(name: str, folder: str, rank: str, kind: str, number: str) -> None:
    """What each process of `torchrun` does."""
    with joined() as ranks:
        train(name, Path(folder), False, (kind, int(number)) if ranks.rank == int(rank) else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
