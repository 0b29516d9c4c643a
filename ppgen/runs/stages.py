"""What a growing run draws at one and the same set of latents, when each of its stages ends."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from ppgen.utils.files import write_whole
from ppgen.training.loop import TrainingStep

__all__ = ["Stages", "read_stages"]

SHOWN = 12  # latents


class Stages:
    """A callback of `ppgen.fit`: at the last step of a stage it draws, by the weights that the run would end with.

    The file ``stages.safetensors`` has an array (latents, channels, height, width) for each chain and stage, scaled as
    the model sees data. It is written anew at each stage; what a run that goes on has of earlier stages stays.

    Args:
        model: has `prior` and `decode`.
        labels: (n,) for a model that is conditioned on them: each kind in turn.
        seed: of the latents.
    """

    def __init__(self, folder: Path, model: Any, labels: torch.Tensor | None = None, *, seed: int = 0) -> None:
        self.path, self.model = folder / "stages.safetensors", model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.z = model.prior(SHOWN).sample()
        kinds = None if labels is None else labels.unique()
        self.y = None if kinds is None else kinds[torch.arange(SHOWN) % len(kinds)]
        self.pictures: dict[str, np.ndarray] = _read(self.path)

    def __call__(self, moment: TrainingStep) -> None:
        if not moment.stage_done:
            return
        with moment.result():
            device = next(self.model.parameters()).device
            y = None if self.y is None else self.y.to(device)
            drawn = self.model.decode(self.z.to(device), y).sample()
        self.pictures[f"{moment.chain}/{round(moment.level or 0)}"] = drawn.numpy(force=True)
        write_whole(self.path, safetensors.numpy.save(self.pictures))


def read_stages(folder: Path, chain: int) -> list[np.ndarray]:
    """A chain's pictures by stage; none of a run that did not grow."""
    pictures = _read(folder / "stages.safetensors")
    of_chain = {name.partition("/")[2]: x for name, x in pictures.items() if name.startswith(f"{chain}/")}
    return [of_chain[stage] for stage in sorted(of_chain, key=int)]


def _read(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path) if path.is_file() else {}
