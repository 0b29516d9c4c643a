"""Machine code is made by another process while eager steps go on, and found by the next one."""

import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from compiled_runs import SMALL, compiled_shapes, run
from programs import PROGRAMS, adam, networks
from support import interpret, known_as

import ppgen
from ppgen.infer.compile import building

ENDLESS = 10**9


@pytest.fixture
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PPGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(building, "_kept", building.OrderedDict())
    yield tmp_path
    building.stop_compiling()


def svi(**options) -> tuple[ppgen.SVI, tuple]:
    torch.manual_seed(0)
    model, guide, args = networks()
    return ppgen.SVI(model, guide, adam(), ppgen.recipes.vae(), **options), args


def test_a_process_that_fails_leaves_the_steps_eager_and_one_sentence(nothing_known, monkeypatch):
    monkeypatch.setattr(building, "MAIN", "raise SystemExit('no compiler was found')")
    row = SMALL._replace(options={"steps": ENDLESS})
    waited = []

    def between(run_svi: ppgen.SVI, step: int) -> None:
        for shape in run_svi.compiled_step.policy.shapes.values():
            if shape.build is not None and shape.build.started:
                waited.append(shape.build._job.process.wait())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(row, "auto", steps=12, between=between)
    (message,) = [str(warning.message) for warning in caught]
    assert message == "the step is not compiled, and runs eagerly: no compiler was found"
    assert waited == [1]
    assert compiled_shapes(found.svi) == 0
    expected = run(SMALL, False, steps=12).losses.tolist()
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-6)  # recorded steps round in their own way


@pytest.fixture
def endless(nothing_known, monkeypatch):
    """Compiling never ends."""
    monkeypatch.setattr(building, "MAIN", "import time; time.sleep(600)")


def begun(svi: ppgen.SVI, args: tuple) -> building.Build:
    for _ in range(6):
        svi.step(*args)
    (shape,) = svi.compiled_step.policy.shapes.values()
    return shape.build


def test_without_another_process_steps_stay_eager_with_one_sentence(nothing_known, monkeypatch):
    monkeypatch.setattr(building.subprocess, "Popen", Mock(side_effect=OSError(28, "No space left on device")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(SMALL._replace(options={"steps": ENDLESS}), "auto", steps=12)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("the step is not compiled, and runs eagerly: OSError: [Errno 28] No space left on device")
    assert found.losses.tolist() == pytest.approx(run(SMALL, False, steps=12).losses.tolist(), rel=1e-6)


def test_what_this_process_alone_can_compile_it_compiles_once(nothing_known, monkeypatch):
    made = []

    def now(build: building.Build) -> Any:
        made.append(build)
        return build._keep(interpret(build))

    monkeypatch.setattr(building.PortableGraph, "of", Mock(side_effect=building.NotPortable("the operation mine.own")))
    monkeypatch.setattr(building.Build, "now", now)
    found = run(SMALL._replace(options={"steps": ENDLESS}), "auto", steps=20)
    assert len(made) == 1
    assert compiled_shapes(found.svi) == 1


def test_one_process_compiles_at_a_time_and_that_of_an_abandoned_run_makes_way(endless, monkeypatch):
    made, args = svi(compile="auto", steps=ENDLESS)
    first = begun(made, args)
    assert "is being compiled" in made.compile_status
    assert begun(*svi(compile="auto", steps=ENDLESS))._job is first._job  # the same program
    made, args = svi(compile="auto", steps=ENDLESS)
    second = begun(made, (args[0][:-1],))
    assert not second.started
    monkeypatch.setattr(building, "ABANDONED", -1.0)
    made.step(args[0][:-1])
    assert second.started
    assert first.done
    assert first.failure is None


def test_a_fit_that_ends_stops_the_process(endless, monkeypatch):
    seen = []

    def look(step) -> None:
        if building.Job.current is not None and not seen:
            seen.append(building.Job.current)

    monkeypatch.setattr(building.Build, "predicted_seconds", 0.0)
    model, guide, args = networks()
    ppgen.fit(model, guide, args, steps=500, optim=adam(), callbacks=[look], progress=False)
    (job,) = seen
    assert job.process.poll() is not None
    assert building.Job.current is None


def test_a_step_that_was_compiled_meanwhile_is_compiled_once(monkeypatch):
    """The guide makes its plates anew in each eager step, which no recording but the first two can tell."""
    calls, known = [], known_as()

    def later(build: building.Build) -> Any:
        calls.append(build)
        return known(build) if len(calls) > 1 else None

    monkeypatch.setattr(building.Build, "known", later)
    monkeypatch.setattr(building.Build, "start", lambda build: setattr(build, "_job", Mock(failure=None)) or True)
    row = PROGRAMS["auto_normal"]._replace(options={"steps": ENDLESS})
    found = run(row, "auto", steps=30)
    assert compiled_shapes(found.svi) == 1
    assert found.svi.compiled_step.policy.compiled == 1
    assert len(calls) == 2


def test_a_run_too_short_to_gain_starts_no_process(nothing_known):
    found = run(SMALL._replace(options={"steps": 12}), "auto", steps=12)
    (shape,) = found.svi.compiled_step.policy.shapes.values()
    assert shape.build is None or not shape.build.started


@pytest.mark.skipif(not hasattr(Path, "chmod") or sys.platform == "win32", reason="needs permissions of files")
def test_a_folder_that_cannot_be_written_does_no_harm(nothing_known, monkeypatch, inductor):
    monkeypatch.setenv("PPGEN_CACHE_DIR", "/proc/ppgen")  # where nobody can make a folder
    found = run(SMALL, True, steps=8)
    assert compiled_shapes(found.svi) == 1


AGAIN = """
import sys, torch
torch.set_num_threads(THREADS)
from ppgen.infer.compile.building import Build
from compiled_runs import SMALL, compiled_shapes, run
Build.now = Build.start = None  # nothing may be compiled
found = run(SMALL, True, steps=8)
assert compiled_shapes(found.svi) == 1
print(found.losses.tolist())
"""


@pytest.mark.slow
def test_what_the_other_process_has_compiled_takes_over_and_serves_later_processes(nothing_known):
    made, args = svi(compile="auto", steps=ENDLESS)
    eager, _ = svi(compile=False)
    losses, expected = [], []
    end = time.monotonic() + 300
    while not made.compile_status.startswith("compiled at step") and time.monotonic() < end:
        losses.append(made.step(*args))
    losses += [made.step(*args) for _ in range(20)]
    assert made.compile_status.startswith("compiled at step")
    torch.manual_seed(0)
    eager, args = svi(compile=False)
    expected = [eager.step(*args) for _ in losses]
    assert losses[:50] == pytest.approx(expected[:50], rel=1e-4)
    here = run(SMALL, True, steps=8)
    tests = [str(folder) for folder in (Path(__file__).parents[2], Path(ppgen.__file__).parents[1])]
    again = AGAIN.replace("THREADS", str(torch.get_num_threads()))
    code = f"sys_path = {tests!r}; import sys; sys.path[:0] = sys_path\n{again}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == pytest.approx(here.losses.tolist(), rel=1e-5)
