"""Runs that are killed with SIGKILL at any moment, and resumed, equal runs that were never stopped.

`.ci/run` takes a few random kills of each program, by the seed PPGEN_KILLS if it is set; `pytest -m soak` takes thirty.
"""

import os
import random

import pytest
from kills import PROGRAMS, Event, assert_equal, assert_survives, random_events, torchrun

from ppgen.infer.checkpoint_file import read

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")

EVENTS: list[Event] = [("step", 1)]  # before the first checkpoint
MORE_EVENTS: list[Event] = [
    ("saved", 1),
    ("writing", 2),
    ("replace", 4),  # the one before has the newest's place already
    ("trained", 1),
    ("writing", 5),
]


@pytest.mark.parametrize("event", [*EVENTS, *(pytest.param(e, marks=pytest.mark.slow) for e in MORE_EVENTS)], ids=str)
def test_a_killed_run_is_resumed_bit_for_bit(event, tmp_path):
    assert_survives("vae", event, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("event", [("compile", 1), ("step", 9)], ids=str)
def test_a_killed_compiled_run_is_resumed(event, tmp_path):
    assert_survives("vae", event, tmp_path, compile=True)


def several(number: int, seed: int, name: str, tmp_path, compile: bool) -> None:
    print(f"kills of {name}, compile={compile}, with PPGEN_KILLS={seed}")
    failed = []
    for event in random_events(number, seed, compiled=compile):
        folder = tmp_path / "-".join(map(str, event))
        folder.mkdir()
        try:
            assert_survives(name, event, folder, compile)
        except AssertionError as error:
            failed.append(f"{event}: {error}")
    assert not failed, f"PPGEN_KILLS={seed}: {failed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_few_random_kills_of_each_program(name, tmp_path):
    seed = int(os.environ.get("PPGEN_KILLS", random.SystemRandom().randrange(10**6)))
    several(2, seed, name, tmp_path, compile=False)


@pytest.mark.soak
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_thirty_kills_of_each_program(name, compile, tmp_path):
    several(30, int(os.environ.get("PPGEN_KILLS", "1")), name, tmp_path, compile)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["vae", "wgan_gp"])
def test_two_ranks_of_which_one_is_killed_are_resumed_bit_for_bit(name, tmp_path):
    """Under torchrun: rank 0, which writes the checkpoint, at any event, or rank 1 after a step or within one."""
    seed = int(os.environ.get("PPGEN_KILLS", "1"))
    ranks = random.Random(seed)
    (tmp_path / "whole").mkdir()
    assert torchrun(name, tmp_path / "whole").returncode == 0
    whole, failed = read(tmp_path / "whole" / "fit")[0], []
    for event in random_events(10, seed, compiled=False):
        rank = ranks.randrange(2) if event[0] in ("step", "inside") else 0
        folder = tmp_path / "-".join(map(str, event))
        folder.mkdir()
        try:
            killed = torchrun(name, folder, rank, event)
            assert "exitcode: -9" in killed.stderr, "it did not happen"
            resumed = torchrun(name, folder)
            assert resumed.returncode == 0, resumed.stderr[-1000:]
            assert_equal(read(folder / "fit")[0], whole, compile=False)
            assert {path.name for path in folder.iterdir()} == {"fit"}
        except AssertionError as error:
            failed.append(f"{event} of rank {rank}: {error}")
    assert not failed, f"PPGEN_KILLS={seed}: {failed}"
