"""Files that earlier versions wrote, one of each format: they are read, or refused by name with what to do.

This run of 12 steps was stopped after step 7, and its weights were saved when it was complete.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_run import STORED, fit, guide, model

import ppgen
from ppgen.infer.checkpoint_file import CheckpointError
from ppgen.training.checkpoint import read_position


@pytest.mark.parametrize("version", [2, 3])
def test_a_run_continues_from_a_checkpoint_of_format(version, tmp_path):
    path = shutil.copy(STORED / f"run_{version}.safetensors", tmp_path)
    assert read_position(path) == (0, 7)
    continued, whole = fit(path), fit()
    for name, weight in whole.chains[0].weights.items():  # another machine may round differently
        torch.testing.assert_close(continued.chains[0].weights[name], weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(continued.history["loss"], whole.history["loss"], rtol=1e-4)


def test_a_checkpoint_of_format_1_is_refused_by_name_and_kept(tmp_path):
    path = Path(shutil.copy(STORED / "run_1.safetensors", tmp_path))
    with pytest.raises(CheckpointError, match=r"run_1.*an earlier development version .*delete the file if it is a ch"):
        fit(path)
    assert path.read_bytes() == (STORED / path.name).read_bytes()


def test_a_fit_of_format_2_is_read():
    expected = fit().chains[0].weights
    loaded = ppgen.Fit.load(STORED / "fit_2.safetensors", model, guide)
    for name, weight in expected.items():
        torch.testing.assert_close(loaded.chains[0].weights[name], weight, rtol=1e-5, atol=1e-6)


def test_a_fit_of_format_1_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"fit_1.*an earlier development version .* train again"):
        ppgen.Fit.load(STORED / "fit_1.safetensors", model, guide)
