"""The run folders that tutorials load: small, and such that this version reads them and draws from them."""

from pathlib import Path

import numpy as np
import pytest

import ppgen

WEIGHTS = Path(__file__).parents[2] / "tutorials" / "weights"
FOLDERS = sorted(path.parent for path in WEIGHTS.glob("*/config.yaml"))


def test_there_are_run_folders_and_they_are_small():
    assert FOLDERS
    for folder in FOLDERS:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1.2e6, folder


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_run_of_the_tutorials_loads_and_has_images_of_28_pixels_or_more(folder):
    trained = ppgen.load(folder)
    kept = trained.run.kept
    held_out = (kept.target if hasattr(kept, "target") else kept).test.x
    assert held_out.shape[-1] >= 28
    assert len(held_out) >= 16
    if "predict" in trained.methods():
        assert trained.predict(held_out[:3]).shape == (3,)
    else:
        x = trained.sample(2, seed=1)
        assert x.shape == (2, *held_out.shape[1:])
        assert np.isfinite(x).all()
