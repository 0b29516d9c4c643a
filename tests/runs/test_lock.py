"""The lock of a run folder: one writer at a time, and a dead one holds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppgen.runs import lock
from ppgen.runs.cli import main
from ppgen.runs.lock import FolderLock, FolderLockedError


def test_the_second_writer_is_refused_with_the_first_ones_process(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(FolderLockedError, match=f"process {os.getpid()} on .* writes into this run folder"):
            FolderLock(tmp_path).__enter__()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())
    with FolderLock(tmp_path):
        pass


def test_a_dead_process_holds_no_lock(tmp_path):
    code = """
import importlib.util, os, sys, types
sys.modules["ppgen.utils.user_warnings"] = types.SimpleNamespace(warn_user=print)  # without torch, to be quick
sys.modules["ppgen.runs.folder"] = types.SimpleNamespace(LOCK=".lock")
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
from pathlib import Path
held = lock.FolderLock(Path(sys.argv[2]))
held.__enter__()
print(os.getpid(), flush=True)
input()
"""
    arguments = [sys.executable, "-c", code, lock.__file__, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        with pytest.raises(FolderLockedError, match=f"process {pid} on "):
            FolderLock(tmp_path).__enter__()
        process.kill()
        process.wait()
    assert (tmp_path / ".lock").exists()
    with FolderLock(tmp_path):
        pass


def test_a_lock_that_was_released_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Between opening and locking, the holder deletes the file, and another process makes a new one."""
    take = lock._lock

    def too_late(file):
        monkeypatch.setattr(lock, "_lock", take)
        (tmp_path / ".lock").unlink()
        take(file)

    monkeypatch.setattr(lock, "_lock", too_late)
    with FolderLock(tmp_path), pytest.raises(FolderLockedError):
        FolderLock(tmp_path).__enter__()


@pytest.mark.filterwarnings("default:.*has no locks")
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def unsupported(file):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "_lock", unsupported)
    with pytest.warns(UserWarning, match="the file system has no locks"), FolderLock(tmp_path):
        pass


def test_commands_that_write_respect_the_lock(quick, tmp_path, capsys):
    assert main(["train", "ae", "moons", *quick, "--out", "run"]) == 0
    Path("new").mkdir()
    for folder, command in (("run", ["report", "run"]), ("run", ["resume", "run"]), ("new", ["train", "ae", "moons"])):
        more = [*quick, "--out", "new"] if folder == "new" else []
        with FolderLock(tmp_path / folder):
            assert main([*command, *more]) == 2
            assert f"process {os.getpid()} on " in capsys.readouterr().err
    (tmp_path / "new/config.yaml").touch()
    (tmp_path / "new/checkpoint.safetensors").touch()
    with FolderLock(tmp_path / "new"):  # the run has taken steps meanwhile
        assert main(["train", "ae", "moons", *quick, "--out", "new"]) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err
    with FolderLock(tmp_path / "run"):
        assert main(["sample", "run", "--n", "2"]) == 0  # reads only


@pytest.mark.skipif(not lock.NO_LINK, reason="no such flag")
def test_a_lock_that_is_a_link_is_refused(tmp_path, capsys):
    """The file is truncated, and the folder may be one that somebody else prepared."""
    (tmp_path / "outside").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "outside")
    assert main(["train", "ae", "moons", "--fit.steps", "1", "--out", "run"]) == 2
    assert ".lock" in capsys.readouterr().err
    assert (tmp_path / "outside").read_text() == "kept"
