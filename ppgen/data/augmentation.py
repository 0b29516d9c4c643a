"""`Augmented`: images that are flipped and shifted at random, newly in each epoch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ppgen.data.dataset import Data

__all__ = ["Augmented"]


class Augmented(Dataset):
    """The training images of a data set, each flipped and shifted at random whenever it is read.

    `ppgen.fit` reads batches of it under random numbers of the seed, the epoch and the batch, so that a resumed run
    sees what an uninterrupted one does. A model then has the density of flipped and shifted images, also where it is
    evaluated on images that are neither.

    Args:
        data: the data set, in memory or streamed.
        labels: whether to give the labels too, unchanged.
        flip: whether an image is mirrored, left and right exchanged, with probability 1/2.
        shift: the most pixels by which an image is moved along each side; what moves in has the lowest gray level, with
            the noise that dequantizes it if the data have such noise.

    Raises:
        ValueError: for data that are no images, a negative shift or one of half a side or more, and a shift of images
            without gray levels.

    Example:
        >>> import ppgen
        >>> images = ppgen.data.Augmented(ppgen.data.load("digits", form="unit"), flip=False, shift=1)
        >>> vae = ppgen.models.VAE((1, 8, 8), latent_dim=2, hidden=(8,))
        >>> fit = ppgen.fit(vae.model, vae.guide, images, steps=3, batch_size=10, compile=False, progress=False)
        >>> fit.history["loss"].shape
        (3,)
    """

    def __init__(self, data: Data, *, labels: bool = False, flip: bool = True, shift: int = 0) -> None:
        shape = data.event_shape
        if len(shape) != 3:
            raise ValueError(f"{data.name}: flip and shift are of images, and these data have rows of shape {shape}")
        if not 0 <= shift < min(shape[1:]) / 2:
            raise ValueError(f"shift: expected 0 or more pixels, less than half of {min(shape[1:])}, got {shift}")
        if shift and data.levels is None:
            raise ValueError(
                f"shift={shift}: what moves in has the lowest gray level, and {data.name} has none, only real numbers; "
                "save the images as uint8, or leave it out"
            )
        if labels and data.y is None:
            raise ValueError(f"{data.name} has no labels")
        self.data, self.labels, self.flip, self.shift = data, labels, flip, shift

    def __len__(self) -> int:
        return len(self.data.train.x)

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """Augmented images of these numbers, or pairs with their labels."""
        x = torch.as_tensor(self.data.train.x[np.asarray(rows)])
        if self.flip:
            mirrored = torch.rand(len(x)) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self.shift:
            x = self._shifted(x)
        if not self.labels:
            return list(x)
        y: Any = self.data.train.y
        return list(zip(x, torch.as_tensor(y[np.asarray(rows)]), strict=True))

    def _shifted(self, x: Tensor) -> Tensor:
        """The windows of a padded batch that begin at random rows and columns."""
        n, channels, height, width = x.shape
        s = self.shift
        wide = self._lowest_level(n, (channels, height + 2 * s, width + 2 * s)).to(x.dtype)
        wide[:, :, s : s + height, s : s + width] = x
        down, right = torch.randint(2 * s + 1, (2, n))
        rows = (down[:, None] + torch.arange(height))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width))[:, None, None, :]
        return wide[torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]

    def _lowest_level(self, n: int, shape: tuple[int, ...]) -> Tensor:
        """Black images: the lowest level as the form of the data has it, scaled as the data are."""
        data = self.data
        if data.form == "integer":
            return torch.zeros(n, *shape)
        assert data.levels is not None
        noise = torch.rand(n, *shape) / data.levels if data.form == "continuous" else torch.zeros(n, *shape)
        shift, scale = (_one_value(part, data.name) for part in (data.scaler.shift, data.scaler.scale))
        return (noise - shift) / scale


def _one_value(values: np.ndarray, name: str) -> float:
    """The value that all pixels share."""
    first = float(values.flat[0])
    if not (values == first).all():
        raise ValueError(f"{name}: shift needs pixels of one scale; give scale='none'")
    return first
