"""Many small images tiled into one picture.

An image has shape (channels, height, width). Three channels are red, green and blue; others are averaged into gray.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppgen.report.figures.style import MUTED, WIDTH, canvas, note

ACROSS = {1: 16, 2: 8, 3: 6}  # images in a row, by the number of grids beside each other; two and three are square
MAX_IMAGES, MAX_PAIRS = 64, 20  # images in a grid, and images with their reconstructions
LEAST_ACROSS = 6  # images for which a row has room, so that few are not large
NOT_FINITE_COLOR = (0.9, 0.1, 0.3)


def grids(sets: dict[str, np.ndarray], limits: tuple[float, float]) -> Figure:
    """Sets of images as grids beside each other.

    Args:
        sets: images (n, channels, height, width) by title, at most three. At most 64 of each are shown, 36 of three.
        limits: the values that are drawn black and white.
    """
    count, across = max(map(len, sets.values())), ACROSS[len(sets)]
    most = min(MAX_IMAGES, across**2)
    sets = {name: x[:most] for name, x in sets.items()}
    tiled = [tile(color(x, limits), across=min(max(len(x), 4), across)) for x in sets.values()]
    tall = max(picture.shape[0] / picture.shape[1] for picture in tiled)
    figure = canvas((0.55 if count > most else 0.35) + tall * (WIDTH / len(sets) - 0.15))
    for axes, title, picture in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, tiled, strict=True):
        show(axes, picture)
        axes.set_title(title)
    if count > most:
        note(figure, f"the first {most} of {count}")
    return figure


def pairs(x: np.ndarray, x_hat: np.ndarray, limits: tuple[float, float]) -> Figure:
    """Images in rows of 10, each row above its reconstructions.

    Args:
        x: images (n, channels, height, width), of which at most 20 are shown.
        x_hat: their reconstructions.
        limits: the values that are drawn black and white.
    """
    across, x, x_hat = 10, x[:MAX_PAIRS], x_hat[:MAX_PAIRS]
    above, below = color(x, limits), color(x_hat, limits)
    pictures = [
        tile(half[start : start + across], across=across)
        for start in range(0, len(x), across)
        for half in (above, below)
    ]
    return _stack(pictures, ("original", "reconstructed") * len(pictures))


def sequences(rows: dict[str, np.ndarray], limits: tuple[float, float]) -> Figure:
    """Rows of images, one below the other.

    Args:
        rows: images (n, channels, height, width) by title.
        limits: the values that are drawn black and white.
    """
    return _stack([tile(color(x, limits), across=max(len(x), LEAST_ACROSS)) for x in rows.values()], tuple(rows))


def _stack(pictures: list[np.ndarray], names: Sequence[str]) -> Figure:
    """Pictures of one width, one below the other, each with its name on the left."""
    figure = canvas(sum(p.shape[0] for p in pictures) / pictures[0].shape[1] * (WIDTH - 1.1) + 0.15 * len(pictures))
    grid = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axes, picture, name in zip(grid, pictures, names, strict=False):
        show(axes, picture)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", color=MUTED, fontsize=8)
    return figure


def value_range(x: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value of x; (0, 1) if they are equal or there is none."""
    values = x[np.isfinite(x)]
    if not len(values) or values.min() == values.max():
        return 0.0, 1.0
    return float(values.min()), float(values.max())


def color(x: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """The colors (n, height, width, 3) in [0, 1] of images (n, channels, height, width); red where not finite.

    Args:
        x: the images.
        limits: the values that are drawn black and white.
    """
    low, high = limits
    x = np.moveaxis(x if x.shape[1] == 3 else x.mean(axis=1, keepdims=True), 1, -1)
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    return np.where(finite, np.clip((np.where(finite, x, low) - low) / (high - low), 0, 1), NOT_FINITE_COLOR)


def tile(x: np.ndarray, *, across: int) -> np.ndarray:
    """One picture of many, in rows on a white background, with gaps between them.

    Args:
        x: pictures (n, height, width, 3).
        across: the number of pictures in a row.
    """
    gap = max(1, round(max(x.shape[1:3]) / 12))
    rows = -(-len(x) // across)
    blank = np.ones((rows * across - len(x), *x.shape[1:]))
    cells = np.pad(np.concatenate([x, blank]), [(0, 0), (0, gap), (0, gap), (0, 0)], constant_values=1.0)
    height, width = cells.shape[1:3]
    sheet = cells.reshape(rows, across, height, width, 3).swapaxes(1, 2)
    return sheet.reshape(rows * height, across * width, 3)[:-gap, :-gap]


def show(axes: Axes, picture: np.ndarray) -> None:
    """Draws a picture (height, width, 3), pixel by pixel, without ticks or frame."""
    axes.imshow(picture, interpolation="nearest")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
