"""Long runs and many runs whose memory and files stay flat; run by `pytest -m soak`."""

import gc
import os
from pathlib import Path

import pytest
import torch
from support import gaussian_pair

import ppgen

pytestmark = pytest.mark.soak

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(7))


def resident() -> float:
    """The resident memory of this process, in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
def test_memory_and_files_stay_flat_over_twenty_thousand_compiled_steps(tmp_path):
    """From step 5000 on: the history of losses grows by a few numbers a step, 15,000 steps by less than 8 MiB."""
    seen: dict[int, tuple[float, int]] = {}

    def note(step) -> None:
        if step.number in (5000, 20000):
            seen[step.number] = resident(), open_files()

    pair = gaussian_pair()
    options = {"steps": 20000, "batch_size": 32, "compile": True, "progress": False, "validation": 0.1}
    fit = ppgen.fit(
        pair.model, pair.guide, X, callbacks=[note], checkpoint=tmp_path / "run", checkpoint_seconds=2, **options
    )
    assert "compiled at step" in fit.chains[0].compiled
    fit.save(tmp_path / "fit")
    assert seen[20000][0] - seen[5000][0] < 8, seen
    assert seen[20000][1] == seen[5000][1]
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
def test_memory_and_files_stay_flat_over_two_hundred_fits(tmp_path):
    """From fit 50 on, by less than 50 kB a fit; none leaves a file but its weights."""
    seen: list[tuple[float, int]] = []
    for number in range(200):
        pair = gaussian_pair()
        options = {"steps": 20, "batch_size": 32, "compile": False, "progress": False}
        fit = ppgen.fit(pair.model, pair.guide, X, checkpoint=tmp_path / "run", checkpoint_seconds=0, **options)
        fit.save(tmp_path / "fit")
        del fit, pair
        if number in (49, 199):
            seen.append((resident(), open_files()))
    assert seen[1][0] - seen[0][0] < 7.5, seen
    assert seen[1][1] == seen[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]
