"""Features of images from a classifier that is trained on labeled data of the same kind.

Distances between images are poor in pixels: a shift by one pixel is far, a blur is near. In the last layer of a
classifier they are better, and `ppgen.metrics.Frechet`, `coverage` and the two-sample tests take features as rows. The
distance of Heusel et al. 2017 (https://arxiv.org/abs/1706.08500) uses a network trained on photographs; small gray
images are nothing of the kind, and a network trained on them needs no download. Compare distances in the features of
one and the same network only.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.evaluation.two_sample import Rows
from ppgen.nets.networks import eval_mode

__all__ = ["ImageFeatures", "train_image_features"]

WIDTHS = (32, 64, 128)  # of the three blocks of convolutions; the last is the number of features
CHUNK = 500  # images at a time


class ImageFeatures(nn.Module):
    """A classifier of images: three blocks of convolutions, each at half the sides, the mean over pixels, a linear map.

    Args:
        event_shape: (channels, height, width) of the images, with sides of at least 4 pixels.
        num_classes: the number of labels.

    Raises:
        ValueError: for events of another kind.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, event_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if len(event_shape) != 3 or min(event_shape[1:]) < 4:
            raise ValueError(f"expected images (channels, height, width) of at least 4 x 4 pixels, got {event_shape}")
        self.event_shape = tuple(event_shape)
        layers: list[nn.Module] = []
        for width, following in zip((event_shape[0], *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(width, following, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(following), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Linear(WIDTHS[-1], num_classes)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The features (n, 128) of images (n, channels, height, width)."""
        return self.layers((x - self.shift) / self.scale).mean((2, 3))

    def features(self, x: Rows) -> np.ndarray:
        """The features (n, 128) of images, which pass through the network in parts.

        Args:
            x: images (n, channels, height, width), in the units of those that the network was trained on.

        Raises:
            ValueError: for images of another shape.
        """
        return self._by_parts(x, self)

    def accuracy(self, x: Rows, y: Rows) -> float:
        """The share of images whose label the network finds.

        Args:
            x: images (n, channels, height, width).
            y: their labels (n,).
        """
        found = self._by_parts(x, lambda part: self.classify(self(part)).argmax(1))
        return float((found == np.asarray(y)).mean())

    def _by_parts(self, x: Rows, f: Callable[[Tensor], Tensor]) -> np.ndarray:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"expected images of shape {self.event_shape}, got rows of shape {tuple(x.shape[1:])}")
        device = self.shift.device
        with eval_mode(self):
            parts = torch.as_tensor(x, dtype=torch.float32).split(CHUNK)
            return torch.cat([f(part.to(device)).cpu() for part in parts]).numpy()


def train_image_features(x: Rows, y: Rows, *, epochs: int = 3, batch_size: int = 128, seed: int = 0) -> ImageFeatures:
    """Trains the network on labeled images, by Adam with a learning rate that rises and falls.

    Args:
        x: images (n, channels, height, width), in any units.
        y: their labels (n,), from 0 on.
        epochs: the number of passes over the images.
        batch_size: the number of images of a step.
        seed: the seed of weights and batches; the caller's random state does not change.

    Raises:
        ValueError: for other than images, fewer than two of them, labels that are not (n,), below 0 or all equal.

    Example:
        >>> import torch
        >>> from ppgen import data, evaluation, metrics
        >>> digits = data.load("digits", form="unit")
        >>> network = evaluation.train_image_features(digits.train.x, digits.train.y)
        >>> rows = [torch.as_tensor(network.features(part)) for part in (digits.test.x, digits.test.x.round())]
        >>> bool(metrics.Frechet()(*rows) > 0)
        True
    """
    images, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(np.asarray(y), dtype=torch.long)
    if labels.shape != (len(images),) or len(labels.unique()) < 2 or labels.min() < 0:
        raise ValueError(
            f"y: expected ({len(images)},) labels from 0 on, at least two of them distinct, got shape "
            f"{tuple(labels.shape)}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ImageFeatures(tuple(images.shape[1:]), int(labels.max()) + 1)
        network.shift.fill_(images.mean())
        network.scale.fill_(max(float(images.std()), torch.finfo(torch.float32).tiny))
        steps = epochs * math.ceil(len(images) / batch_size)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(network.classify(network(images[rows])), labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return network.eval().requires_grad_(False)
