"""How near generated images come to data at each scale: patches of Laplacian pyramids, by sliced Wasserstein distance.

Images g_0 are (n, channels, height, width). With B the binomial low-pass filter, (1, 4, 6, 4, 1) / 16 along either
side and reflected at the borders, and K steps down and up by a factor of two,

    g_{k+1} = down(g_k) = every second row and column of B g_k
    up(g)   = 4 B (g with zeros set between its rows and columns)
    l_k     = g_k - up(g_{k+1})    for k < K,        l_K = g_K

are the levels of the pyramid (Burt and Adelson 1983): l_0 holds the finest detail, l_K the layout. Nothing is lost, for
g_k = l_k + up(g_{k+1}). All functions here take NumPy arrays or torch tensors and compute in double precision; none
touches the global random state.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from ppgen.evaluation.estimate import estimate
from ppgen.evaluation.two_sample import Rows, flat_rows
from ppgen.metrics import SlicedWasserstein
from ppgen.metrics.slices import check_number

__all__ = ["PyramidDistance", "laplacian_pyramid", "pyramid_distance", "pyramid_noise"]

BINOMIAL = np.array([1, 4, 6, 4, 1]) / 16
LEAST_SIDE = 8  # that is halved, and so that an image of two levels has
FLAT = 1e-9  # a level whose deviation is below this share of the largest value is flat but for rounding


def laplacian_pyramid(x: Rows) -> list[np.ndarray]:
    """The levels l_0 .. l_K of images x, finest first, each (n, channels, height_k, width_k) in double precision.

    Sides are halved, rounding up, for as long as the smaller one is at least 8, so that it ends at 4 to 7. Odd sides
    are as good as even ones.

    Raises:
        TypeError: for anything but an array of real numbers.
        ValueError: for anything but (n, channels, height, width) of at least 8 x 8, or values that are not finite.
    """
    return _levels(_images(x, "x"))


@dataclass(frozen=True)
class PyramidDistance:
    """The distance at each level, finest first, by the level's "height x width": see `pyramid_distance`."""

    levels: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the levels."""
        return float(np.mean(list(self.levels.values())))


def pyramid_distance(
    generated: Rows, data: Rows, *, patches: int = 8192, size: int = 7, projections: int = 64, seed: int = 0
) -> PyramidDistance:
    """Sliced Wasserstein distance between local patches of generated images and of data, at each level of the pyramid.

    After Karras, Aila, Laine and Lehtinen 2018, "Progressive Growing of GANs", section 5. A patch is all channels of
    `size` x `size` neighboring pixels of a level, or of the whole side where that is shorter, flattened. With P and Q
    the laws of patches of both samples, the distance at a level is SW_1 = E_theta W_1(theta . P, theta . Q): the mean
    over directions theta of the mean gap between the sorted projections.

    Pixels count in standard deviations: each channel of a level is taken less its mean and over its deviation, which
    are those of the data for both samples. The paper takes each sample's own, under which images too dark, too pale or
    too smooth by a constant factor are at distance zero from the data; here they show. Hence the distance is not
    symmetric, does not depend on the data's units, and is not to be set beside published figures, which the paper
    gives times 1000, from 2^14 images of each sample with 128 patches an image and 512 directions. A channel that is
    flat in the data at a level keeps its unit there.

    Two samples of one law are not at zero but at what sampling makes of it: see `pyramid_noise`. Samples of equal size
    have their patches taken at the same places, so that a sample is at zero from itself. Memory is a few copies of the
    images, and `patches` times `projections` numbers.

    Args:
        generated, data: (m, channels, height, width) and (n, channels, height, width).
        patches: how many of each sample at each level, drawn without repetition; all where there are no more, and the
            order of the images does not matter then.
        size: of a patch's side in pixels of the level. Most directions through many dimensions see little but the
            scale: colors that do not go together show better at a size of 1.
        projections: how many directions.
        seed: of patches and directions.

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: as `laplacian_pyramid`, for images that differ in shape, and for counts below 1.
    """
    y, x = _images(generated, "generated"), _images(data, "data")
    if y.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"generated and data: expected images of one shape, got {y.shape[1:]} and {x.shape[1:]}; resize one of them"
        )
    for name, count in (("patches", patches), ("size", size), ("projections", projections)):
        check_number(name, count)
    metric = SlicedWasserstein(p=1, projections=projections)
    least = FLAT * np.abs(x).max()
    found = {}
    for k, (there, here) in enumerate(zip(_levels(x), _levels(y), strict=True)):
        mean, deviation = (f(there, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
        unit = np.where(deviation > least, deviation, 1.0)
        taken = (draw_patches(level, patches, size, np.random.default_rng((seed, k))) for level in (there, here))
        rows = (torch.as_tensor((patch - mean) / unit) for patch in taken)
        found["{} x {}".format(*there.shape[2:])] = estimate(metric, *rows, seed=seed)
    return PyramidDistance(found)


def pyramid_noise(
    data: Rows, *, patches: int = 8192, size: int = 7, projections: int = 64, seed: int = 0
) -> PyramidDistance:
    """What zero looks like: the `pyramid_distance` of one half of the data, drawn at random, from the other.

    As the halves are smaller than the whole, this is somewhat more than a sample as large as the data would have from
    another one of the same law, by up to the square root of two where all patches are taken.

    Raises:
        TypeError: for anything but an array of real numbers.
        ValueError: as `pyramid_distance`, and for fewer than two images.
    """
    x = _images(data, "data", least=2)
    one, other = np.array_split(np.random.default_rng(seed).permutation(x), 2)
    return pyramid_distance(one, other, patches=patches, size=size, projections=projections, seed=seed)


def _images(x: Rows, name: str, least: int = 1) -> np.ndarray:
    rows, shape = flat_rows(x, name, least=least), tuple(x.shape)
    if len(shape) != 4 or min(shape[2:]) < LEAST_SIDE:
        raise ValueError(
            f"{name}: expected images (n, channels, height, width) of at least {LEAST_SIDE} x {LEAST_SIDE}, "
            f"got shape {shape}"
        )
    return rows.reshape(shape)


def _levels(g: np.ndarray) -> list[np.ndarray]:
    levels = []
    while min(g.shape[2:]) >= LEAST_SIDE:
        smaller = _low_pass(g)[..., ::2, ::2]
        levels.append(g - up(smaller, g.shape[2:]))
        g = smaller
    return [*levels, g]


def up(g: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """The smooth images (n, channels, *sides) whose every second row and column came from g."""
    apart = np.zeros((*g.shape[:2], *sides))
    apart[..., ::2, ::2] = g
    return 4 * _low_pass(apart)


def _low_pass(g: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        g = ndimage.correlate1d(g, BINOMIAL, axis=axis, mode="mirror")
    return g


def draw_patches(level: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` patches (count, channels, *sides), no two the same, of all that a level has."""
    sides = tuple(min(size, side) for side in level.shape[2:])
    windows = sliding_window_view(level, sides, axis=(2, 3))
    places = windows.shape[0], *windows.shape[2:4]
    total = int(np.prod(places))
    chosen = rng.choice(total, count, replace=False) if count < total else np.arange(total)
    image, top, left = np.unravel_index(chosen, places)
    return windows[image, :, top, left]
