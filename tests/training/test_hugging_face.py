"""Data sets of Hugging Face, where they are installed (pip install datasets): local ones, without a hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppgen
from ppgen.training.callbacks import TrainingStep

datasets = pytest.importorskip("datasets")
X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)


def losses(data: Any, **options: Any) -> np.ndarray:
    torch.manual_seed(0)
    vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(4,))
    options = {"steps": 12, "batch_size": 5, "compile": False, "progress": False} | options
    return ppgen.fit(vae.model, vae.guide, data, **options).history["loss"]


def test_a_data_set_gives_the_batches_of_its_columns():
    data = datasets.Dataset.from_dict({"x": X.tolist()})
    assert np.array_equal(losses(data), losses(X))


def test_an_iterable_data_set_resumes_in_mid_epoch(tmp_path: Path):
    def stop(step: TrainingStep) -> None:
        if step.number == 8:
            step.stop("enough")

    def data() -> Any:
        return datasets.Dataset.from_dict({"x": X.tolist()}).to_iterable_dataset()

    losses(data(), callbacks=[stop], checkpoint=tmp_path / "run.safetensors")
    assert np.array_equal(losses(data(), checkpoint=tmp_path / "run.safetensors"), losses(data()))
