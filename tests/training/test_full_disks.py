"""Checkpoints that cannot be written: a warning with the path, training goes on, and later ones are tried."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import Clock
from support import gaussian_pair

import ppgen
from ppgen.infer.checkpoint_file import read
from ppgen.training import checkpoint_files
from ppgen.training.checkpoint import Checkpoint, read_position
from ppgen.training.checkpoint_files import CheckpointFiles

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(7))


@pytest.fixture(autouse=True)
def _ticking(monkeypatch):
    """Checkpoints are written after steps 1, 5, 9 and 13."""
    monkeypatch.setattr(Checkpoint, "clock", Clock())


def fit(path: Path | None, *callbacks: Any, **options: Any) -> ppgen.Fit:
    torch.manual_seed(0)
    pair = gaussian_pair()
    defaults = {"steps": 16, "compile": False, "progress": False, "batch_size": 6, "checkpoint_seconds": 5}
    return ppgen.fit(pair.model, pair.guide, X, checkpoint=path, callbacks=callbacks, **defaults | options)


def failing(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


class Stop(Exception):
    pass


def stop(step: Any) -> None:
    if step.number == 15:
        raise Stop


@pytest.mark.parametrize(
    ("where", "code"),
    [("fsync", errno.ENOSPC), ("replace", errno.EROFS), ("replace", errno.EDQUOT), ("fsync", errno.EIO)],
)
def test_a_writing_that_fails_is_a_warning_and_the_next_one_is_tried(where, code, tmp_path, monkeypatch):
    original = getattr(os, where)
    seen: list[tuple[int, int]] = []

    def fill(step: Any) -> None:
        if step.number == 2:
            monkeypatch.setattr(os, where, failing(code))
        if step.number == 8:
            seen.append(read_position(tmp_path / "run"))
            monkeypatch.setattr(os, where, original)

    text = rf"run: the checkpoint of step 5 could not be written \(.*{os.strerror(code)}.* the newest is of step 1$"
    with pytest.warns(UserWarning, match=text) as caught, pytest.raises(Stop):
        fit(tmp_path / "run", fill, stop)
    assert len(caught) == 1
    assert seen == [(0, 1)]
    assert read_position(tmp_path / "run") == (0, 13)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.previous"}  # and no temporary file
    continued, whole = fit(tmp_path / "run"), fit(None)
    assert all(torch.equal(continued.chains[0].weights[k], w) for k, w in whole.chains[0].weights.items())


def test_a_limit_on_the_size_of_files_is_a_warning(tmp_path):
    """The disk's own error, as a quota gives it; the limit is below the size of a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step: Any) -> None:
        size = 1000 if step.number < 8 else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        with pytest.warns(UserWarning, match=r"step 1 could not be written .*there is none yet$"), pytest.raises(Stop):
            fit(tmp_path / "run", limit, stop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_position(tmp_path / "run") == (0, 13)


def test_a_file_in_the_place_of_the_folder_is_a_warning_and_the_fit_is_there(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.warns(UserWarning, match=r"folder/run: the checkpoint of step 1 could not be written"):
        done = fit(tmp_path / "folder" / "run")
    done.save(tmp_path / "fit")
    assert done.complete


def test_the_checkpoint_stays_if_the_weights_cannot_be_written(tmp_path, monkeypatch):
    done = fit(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        done.save(tmp_path / "fit")
    monkeypatch.undo()
    assert read_position(tmp_path / "run") == (0, 13)
    done.save(tmp_path / "fit")
    assert {path.name for path in tmp_path.iterdir()} == {"fit"}


def test_the_best_by_validation_is_kept_beside_the_newest(tmp_path):
    pair = gaussian_pair()
    options = {"steps": 12, "compile": False, "progress": False, "batch_size": 6, "validation": X[:5]}
    optim = lambda parameters: torch.optim.SGD(parameters, lr=1e-3)  # noqa: E731

    def worse(step: Any) -> None:
        if step.number == 6:
            for leaf in step.svi.optimizer.parameters.values():
                leaf.data.add_(0.5)
        if step.number == 10:
            raise Stop

    with pytest.raises(Stop):
        ppgen.fit(
            pair.model, pair.guide, X, checkpoint=tmp_path / "run", callbacks=[worse], optim=optim,
            checkpoint_seconds=1, **options,
        )  # fmt: skip
    newest, previous, best = (read_position(tmp_path / f"run{kind}")[1] for kind in ("", ".previous", ".best"))
    assert (newest, previous, best) == (9, 8, 4)


def test_deleting_the_file_begins_a_new_run_that_does_not_see_the_other_files(tmp_path):
    with pytest.raises(Stop):
        fit(tmp_path / "run", stop)
    (tmp_path / "run").unlink()
    seen: list[tuple[int, bool]] = []

    def note(step: Any) -> None:
        seen.append((step.number, (tmp_path / "run.previous").exists()))

    fit(tmp_path / "run", note)
    assert seen[:2] == [(1, True), (2, False)]


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_the_last_checkpoints_are_kept(keep, tmp_path):
    """Of those after steps 1, 5, 9 and 13."""
    with pytest.raises(Stop):
        fit(tmp_path / "run", stop, checkpoint_keep=keep)
    names = ["run", "run.previous", "run.previous2", "run.previous3"]
    steps = {name: read_position(tmp_path / name)[1] for name in names[:keep]}
    assert list(steps.values()) == [13, 9, 5, 1][:keep]
    assert {path.name for path in tmp_path.iterdir()} == set(steps)
    fit(tmp_path / "run", checkpoint_keep=1).save(tmp_path / "fit")
    assert {path.name for path in tmp_path.iterdir()} == {"fit"}  # also those that this run would not have kept


def test_a_run_continues_from_the_newest_checkpoint_that_is_whole(tmp_path):
    with pytest.raises(Stop):
        fit(tmp_path / "run", stop, checkpoint_keep=3)
    for name in ("run", "run.previous"):
        os.truncate(tmp_path / name, 1000)
    with pytest.warns(UserWarning, match=r"run.previous2, of step 5"):
        continued = fit(tmp_path / "run")
    whole = fit(None)
    assert all(torch.equal(continued.chains[0].weights[k], w) for k, w in whole.chains[0].weights.items())


@pytest.mark.parametrize(("keep", "error"), [(0, ValueError), (1.5, TypeError)])
def test_the_number_of_checkpoints_is_an_integer_of_at_least_one(keep, error):
    with pytest.raises(error, match=f"checkpoint_keep must be .*got {keep}"):
        fit(None, checkpoint_keep=keep)


def test_a_run_that_continues_reads_its_checkpoint_once(tmp_path, monkeypatch):
    """Also where it is asked for its step first, as `ppgen resume` does."""
    with pytest.raises(Stop):
        fit(tmp_path / "run", stop)
    reads: list[Path] = []

    def counted(path: Path) -> Any:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(checkpoint_files, "read", counted)
    files = CheckpointFiles(tmp_path / "run")
    assert read_position(files) == (0, 13)
    fit(files)
    assert reads == [tmp_path / "run"]
    assert files._content is None  # its weights do not stay in memory
