"""``ppgen resume``: a stopped or killed run continues in its folder, and equals the run that was never stopped."""

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from programs import bits, frozen_in_training

from ppgen.report import Report
from ppgen.runs.cli import main
from ppgen.runs.metrics_log import MetricsLog
from ppgen.runs.run import Run
from ppgen.training.callbacks import TrainingStep
from ppgen.training.checkpoint import read_position

pytestmark = [frozen_in_training, pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")]

SMALL = ["--model.hidden", "[8]", "--draws", "0", "--particles", "4", "--data.size", "300", "--fit.batch_size", "32"]
SMALL += ["--evaluation_seconds", "inf"]
SMALL += ["--fit.compile", "false"]  # which "auto" may choose on a busy machine
RUNS = {
    "vae": ["train", "vae", "moons", "--fit.steps", "30", "--fit.restarts", "2", *SMALL],
    "r3_gan": ["train", "r3_gan", "moons", "--fit.steps", "30", *SMALL],
    "dann": ["train", "dann", "--source", "moons", "--target", "rotated_moons", "--fit.steps", "30", *SMALL],
}


class Crash(Exception):
    pass


@pytest.fixture
def _here(tmp_path, monkeypatch):
    """Runs in an empty folder, with reports that have only a title."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.report.report_of_run", lambda *_, title, **__: Report(title))
    monkeypatch.setattr("ppgen.report.adaptation.report_of_adaptation", lambda *_, **__: Report("adapted"))


def stop_at(monkeypatch: Any, chain: int, step: int, how: str) -> None:
    """Ends the next run at a step, from within its log."""
    write_line = MetricsLog.__call__

    def write_and_stop(self: Any, done: TrainingStep) -> None:
        write_line(self, done)
        if (done.chain, done.number) == (chain, step):
            if how.startswith("SIG"):
                signal.raise_signal(getattr(signal, how))
                return
            raise KeyboardInterrupt if how == "Ctrl-C" else Crash

    monkeypatch.setattr(MetricsLog, "__call__", write_and_stop)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("system", "how"), [("vae", "Ctrl-C"), ("dann", "crash")])
def test_a_run_folder_is_resumed(system, how, tmp_path, monkeypatch, capsys):
    assert main([*RUNS[system], "--out", "whole"]) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, int(system == "vae"), 25, how)
        if how == "crash":
            with pytest.raises(Crash):
                main([*RUNS[system], "--out", "run"])
        else:
            assert main([*RUNS[system], "--out", "run"]) == 130
            message = "ppgen: run: interrupted at step 25; resume it with: ppgen resume run\n"
            assert capsys.readouterr().err.endswith(message)
            assert not (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/weights.safetensors").exists() == (how == "Ctrl-C")
    if how == "crash":
        assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 25  # past the checkpoint
        assert main(["report", "run"]) == 2
        assert "not the folder of a finished run" in capsys.readouterr().err
    assert main(["resume", "run"]) == 0
    assert "report.html" in capsys.readouterr().out
    files = {name: {path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "run")}
    assert files["run"] == files["whole"]
    for name in ("metrics.jsonl", "config.yaml", "numbers.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    one, other = Run.load("run").fit, Run.load("whole").fit
    for mine, others in zip(one.chains, other.chains, strict=True):
        assert bits(mine.weights.values()) == bits(others.weights.values())
    assert main(["resume", "run"]) == 2
    assert "nothing to resume: the run is complete" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
def test_a_folder_that_cannot_be_resumed_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert main(["resume", folder]) == 2
        assert f"{folder}: not a run folder" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 25, "Ctrl-C")
        assert main([*RUNS["r3_gan"], "--out", "run"]) == 130
    capsys.readouterr()
    run = tmp_path / "run"
    held = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 30", "steps: 50"))
    assert main(["resume", "run"]) == 2
    assert "steps: 30 then, 50 now" in capsys.readouterr().err
    (run / "config.yaml").write_bytes(held["config.yaml"])
    (run / "checkpoint.safetensors").write_bytes(held["checkpoint.safetensors"][:-1])
    (run / "checkpoint.safetensors.previous").unlink()
    assert main(["resume", "run"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    for name in ("checkpoint.safetensors", "checkpoint.safetensors.previous"):
        (run / name).write_bytes(held[name])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == held


@pytest.mark.usefixtures("_here")
@pytest.mark.filterwarnings("default:.*begins again")
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch, capsys):
    assert main([*RUNS["r3_gan"], "--out", "whole"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("ppgen.training.checkpoint.Checkpoint.write", lambda *_, **__: None)
        stop_at(patched, 0, 2, "crash")
        for _ in range(2):  # the second `train` accepts what the first one left
            with pytest.raises(Crash):
                main([*RUNS["r3_gan"], "--out", "run"])
    (tmp_path / "run/.config.yaml.0123abcd").write_text("half a fi")
    (tmp_path / "run/.lock").touch()  # a dead process's
    assert main([*RUNS["r3_gan"], "--out", "run", "--lr", "0.5"]) == 2
    assert "run holds the start of a run with other options (lr)" in capsys.readouterr().err
    assert main(["resume", "run"]) == 0
    assert "ended before its first checkpoint, so that it begins again" in capsys.readouterr().err
    for name in ("metrics.jsonl", "numbers.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    assert main([*RUNS["r3_gan"], "--out", "run"]) == 2
    assert "runs are never overwritten" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
def test_an_unfinished_run_is_not_trained_over(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 25, "crash")
        with pytest.raises(Crash):
            main([*RUNS["r3_gan"], "--out", "run"])
    assert main([*RUNS["r3_gan"], "--out", "run"]) == 2
    assert "run holds an unfinished run: continue it with `ppgen resume run`" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
@pytest.mark.filterwarnings("default:.*its results were not")
def test_a_run_that_was_killed_after_its_weights_is_evaluated(tmp_path, capsys):
    assert main([*RUNS["vae"], "--draws", "25", "--out", "run"]) == 0
    results = ("numbers.json", "posterior.nc", "report.html")
    numbers = (tmp_path / "run/numbers.json").read_text()
    for command in ("report", "resume"):
        for name in results:
            (tmp_path / "run" / name).unlink()
        capsys.readouterr()
        assert main([command, "run"]) == 0
        printed = capsys.readouterr()
        assert all(name in printed.out + printed.err for name in results)
        assert (tmp_path / "run/numbers.json").read_text() == numbers
        assert all((tmp_path / "run" / name).exists() for name in results)
    assert main(["resume", "run"]) == 2
    assert "nothing to resume: the run is complete" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
def test_a_partial_line_of_a_killed_process_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 25, "crash")
        with pytest.raises(Crash):
            main([*RUNS["r3_gan"], "--out", "run"])
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text() + '{"chain": 0, "st')
    assert main(["resume", "run"]) == 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 31))


@pytest.mark.usefixtures("_here")
@pytest.mark.skipif(os.name != "posix", reason="SIGHUP")
@pytest.mark.usefixtures("sighup_ends_processes")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_the_run_and_is_the_exit_status(name, status, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 25, name)
        assert main([*RUNS["r3_gan"], "--out", "run"]) == status
    assert f"ppgen: run: stopped by {name}; resume it with: ppgen resume run" in capsys.readouterr().err
    assert read_position(tmp_path / "run/checkpoint.safetensors") == (0, 25)
    assert signal.getsignal(getattr(signal, name)) is handler
    assert main(["resume", "run"]) == 0
    assert not list((tmp_path / "run").glob("checkpoint*"))


@pytest.mark.usefixtures("_here")
@pytest.mark.filterwarnings("ignore:.*the training was complete")
def test_a_signal_during_the_evaluation_leaves_the_weights_and_says_so(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        assert main([*RUNS["r3_gan"], "--out", "run"]) == 143
    message = capsys.readouterr().err
    assert "run: stopped by SIGTERM while the run was evaluated; its weights are in weights.safetensors" in message
    assert (tmp_path / "run/weights.safetensors").exists()
    assert main(["resume", "run"]) == 0
    assert (tmp_path / "run/report.html").exists()


def test_lines_that_could_not_be_written_are_written_later(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    step = SimpleNamespace(chain=0, number=1, epoch=0, values={"loss": 1.0}, adversarial_metrics={})
    log(step)
    log.flush()
    log(step)
    opened = Path.open

    class Full:
        """A file on a full disk, which takes half of what is written."""

        def __init__(self, path: Path) -> None:
            self.file = opened(path, "a")

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, *_: Full(path))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: could not be .*tried again"):
        log.flush()
    monkeypatch.undo()
    log.flush()
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 1]
