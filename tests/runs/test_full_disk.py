"""A disk that is full when a file of a run folder is written: one line, exit status 2, and the run can be finished."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ppgen.runs.cli import main
from ppgen.runs.folder import CONFIG, NUMBERS, POSTERIOR, RECORD, REPORT, WEIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*(its results were not|could not be written)")]

BEFORE = (RECORD, CONFIG)  # the first step


@pytest.mark.parametrize("name", [*BEFORE, WEIGHTS, NUMBERS, POSTERIOR, REPORT])
def test_a_full_disk_loses_nothing(name, quick, tmp_path, monkeypatch, capsys):
    replace, full = os.replace, [True]

    def on_a_full_disk(source: Any, target: Any) -> None:
        if full[0] and Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_a_full_disk)
    command = ["train", "vae", "moons", *quick, "--draws", "25", "--out", "run"]
    assert main(command) == 2
    assert f"No space left on device: '{tmp_path / 'run' / name}'" in capsys.readouterr().err
    full[0] = False
    assert main(command if name in BEFORE else ["resume", "run"]) == 0
    assert {CONFIG, RECORD, WEIGHTS, NUMBERS, POSTERIOR, REPORT} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith((".", "checkpoint"))]
