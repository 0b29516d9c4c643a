"""Data sets of Hugging Face (`datasets`, in the test extra): local ones, without a hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppgen
from ppgen.training.callbacks import TrainingStep

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(23, 3)).astype(np.float32), RNG.integers(0, 3, 23)


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")  # here, so that its import does not delay the collection of tests


def losses(data: Any, labels: int | None = None, **options: Any) -> np.ndarray:
    torch.manual_seed(0)
    vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(4,), num_classes=labels)
    options = {"steps": 12, "batch_size": 5, "compile": False, "progress": False} | options
    return ppgen.fit(vae.model, vae.guide, data, **options).history["loss"]


def test_a_data_set_gives_the_batches_of_its_columns(datasets):
    data = datasets.Dataset.from_dict({"x": X.tolist()})
    assert np.array_equal(losses(data), losses(X))


def test_columns_of_a_data_set_on_disk_are_the_arguments(datasets, tmp_path: Path):
    datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()}).save_to_disk(tmp_path / "data")
    data = datasets.load_from_disk(tmp_path / "data")
    assert np.array_equal(losses(data, 3, validation=0.26), losses((X, Y), 3, validation=0.26))


def test_an_iterable_data_set_resumes_in_mid_epoch(datasets, tmp_path: Path):
    def stop(step: TrainingStep) -> None:
        if step.number == 8:
            step.stop("enough")

    def data() -> Any:
        return datasets.Dataset.from_dict({"x": X.tolist()}).to_iterable_dataset()

    losses(data(), callbacks=[stop], checkpoint=tmp_path / "run.safetensors")
    assert np.array_equal(losses(data(), checkpoint=tmp_path / "run.safetensors"), losses(data()))
