"""Images of a progressively grown model: what it draws from fixed latents at the end of each stage."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from ppgen.infer.checkpoint_file import CheckpointError, read_tensors
from ppgen.runs.folder import STAGES
from ppgen.training.callbacks import TrainingStep
from ppgen.utils.files import write_atomically
from ppgen.utils.user_warnings import warn_user

__all__ = ["StageImages", "read_stage_images"]

IMAGES = 12


class StageImages:
    """A callback of `ppgen.fit` that draws images at the last step of each stage, with the weights of the result.

    The file ``stages.safetensors`` holds an array (images, channels, height, width) for each chain and stage, scaled
    as the model sees data. It is rewritten after each stage. A resumed run keeps the images of earlier stages.

    Args:
        folder: The run folder.
        model: A model with `prior` and `decode`.
        labels: For a conditional model, the labels (n,) of the data: the images have each of them in turn.
        seed: The random seed of the latents.
    """

    def __init__(self, folder: Path, model: Any, labels: torch.Tensor | None = None, *, seed: int = 0) -> None:
        self.path, self.model = folder / STAGES, model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.z = model.prior(IMAGES).sample()
        classes = None if labels is None else labels.unique()
        self.y = None if classes is None else classes[torch.arange(IMAGES) % len(classes)]
        self.images: dict[str, np.ndarray] = _read(self.path)

    def __call__(self, step: TrainingStep) -> None:
        """Draws images if the step is the last one of a stage."""
        if not step.stage_done:
            return
        with step.eval_mode():
            device = next(self.model.parameters()).device
            y = None if self.y is None else self.y.to(device)
            images = self.model.decode(self.z.to(device), y).sample()
        self.images[f"{step.chain}/{round(step.level or 0)}"] = images.numpy(force=True)
        try:
            write_atomically(self.path, safetensors.numpy.save(self.images))
        except OSError as error:
            warn_user(f"{self.path}: could not be written ({error}); it is tried again at the end of the next stage")


def read_stage_images(folder: Path, chain: int) -> list[np.ndarray]:
    """Reads the images of a chain.

    Args:
        folder: The run folder.
        chain: The number of the chain.

    Returns:
        The images by stage; an empty list if the run did not grow.
    """
    images = {
        name.partition("/")[2]: array for name, array in _read(folder / STAGES).items() if name.startswith(f"{chain}/")
    }
    return [images[stage] for stage in sorted(images, key=int)]


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    tensors, _ = read_tensors(path)
    for name, images in tensors.items():
        chain, _, stage = name.partition("/")
        if not (chain.isdecimal() and stage.isdecimal() and images.dim() == 4 and images.dtype == torch.float32):
            raise CheckpointError(
                f"{path}: {name!r} are no images of a stage, got {images.dtype} {tuple(images.shape)}"
            )
    return {name: images.numpy() for name, images in tensors.items()}
