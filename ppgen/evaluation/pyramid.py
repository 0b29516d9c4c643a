"""Distance of generated images from data at each scale: sliced Wasserstein distance of Laplacian pyramid patches.

Images g_0 are (n, channels, height, width). With B the binomial low-pass filter, (1, 4, 6, 4, 1) / 16 along either
side with reflection at the borders, and K steps down and up by a factor of two, the levels of the pyramid are

    g_{k+1} = down(g_k) = every second row and column of B g_k
    up(g)   = 4 B (g with zeros inserted between its rows and columns)
    l_k     = g_k - up(g_{k+1})    for k < K,        l_K = g_K

(Burt and Adelson 1983, https://doi.org/10.1109/TCOM.1983.1095851). l_0 has the finest detail, l_K the layout. The
pyramid is invertible, because g_k = l_k + up(g_{k+1}). All functions accept NumPy arrays and torch tensors and compute
in double precision; none uses the global random state.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from ppgen.evaluation.estimate import estimate
from ppgen.evaluation.two_sample import Rows, flatten_sample
from ppgen.metrics import SlicedWasserstein
from ppgen.metrics.checks import check_integer

__all__ = ["PyramidDistance", "laplacian_pyramid", "pyramid_distance", "pyramid_noise"]

BINOMIAL = np.array([1, 4, 6, 4, 1]) / 16
MIN_SIDE = 8  # sides of at least this length are halved, so an image of two levels has at least this size
CONSTANT = 1e-9  # a level whose standard deviation is below this share of the largest value is constant up to rounding


def laplacian_pyramid(x: Rows) -> list[np.ndarray]:
    """The levels l_0 .. l_K of images, finest first, each (n, channels, height_k, width_k) in double precision.

    Sides are halved, rounding up, as long as the smaller one is at least 8, so it ends at 4 to 7 pixels. Odd sides are
    handled exactly like even ones.

    Args:
        x: Images (n, channels, height, width).

    Raises:
        TypeError: If x is not an array of real numbers.
        ValueError: If x does not have shape (n, channels, height, width) with sides of at least 8, or has values that
            are not finite.
    """
    return _levels(_check_images(x, "x"))


@dataclass(frozen=True)
class PyramidDistance:
    """The distances of `pyramid_distance`.

    Attributes:
        levels: The distance at each level, finest first, by the level's "height x width".
    """

    levels: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over the levels."""
        return float(np.mean(list(self.levels.values())))


def pyramid_distance(
    generated: Rows, data: Rows, *, patches: int = 8192, size: int = 7, projections: int = 64, seed: int = 0
) -> PyramidDistance:
    """Sliced Wasserstein distance between local patches of generated images and of data, at each level of the pyramid.

    The method of Karras, Aila, Laine and Lehtinen 2018 (https://arxiv.org/abs/1710.10196, section 5). A patch consists
    of all channels of `size` x `size` neighboring pixels of a level (or of the whole side if that is shorter),
    flattened. With P and Q the distributions of patches of the two samples, the distance at a level is
    SW_1 = E_theta W_1(theta . P, theta . Q): the mean over directions theta of the mean difference between the sorted
    projections.

    Pixels are in standard deviations: each channel of a level is standardized by the mean and standard deviation of the
    data, for both samples. The paper standardizes each sample by its own, so images that are too dark, too pale or too
    smooth by a constant factor have distance zero from the data; here they do not. Therefore the distance is not
    symmetric, does not depend on the units of the data, and cannot be compared with published values, which the paper
    multiplies by 1000, from 2^14 images of each sample with 128 patches per image and 512 directions. A channel that is
    constant in the data at a level keeps its unit there.

    Two samples of one distribution have a positive distance because of sampling error: see `pyramid_noise`. For samples
    of equal size the patches are taken at the same positions, so a sample has distance zero from itself. Memory is a
    few copies of the images, and `patches` times `projections` numbers.

    Args:
        generated: Images (m, channels, height, width).
        data: Images (n, channels, height, width).
        patches: The number of patches of each sample at each level, sampled without replacement; all patches if there
            are no more, and the order of the images does not matter then.
        size: The side of a patch in pixels of the level. In many dimensions most directions are sensitive to little but
            the scale: wrong combinations of colors show better with a size of 1.
        projections: The number of directions.
        seed: The seed of the patches and directions.

    Raises:
        TypeError: If an argument is not an array of real numbers.
        ValueError: As `laplacian_pyramid`, if images differ in shape, or if counts are below 1.
    """
    y, x = _check_images(generated, "generated"), _check_images(data, "data")
    if y.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"generated and data: expected images of the same shape, got {y.shape[1:]} and {x.shape[1:]}; resize one "
            "of them"
        )
    for name, count in (("patches", patches), ("size", size), ("projections", projections)):
        check_integer(name, count)
    metric = SlicedWasserstein(p=1, projections=projections)
    smallest = CONSTANT * np.abs(x).max()
    distances = {}
    for k, (level_x, level_y) in enumerate(zip(_levels(x), _levels(y), strict=True)):
        mean, std = (f(level_x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
        unit = np.where(std > smallest, std, 1.0)
        sampled = (
            sample_patches(level, patches, size, np.random.default_rng((seed, k))) for level in (level_x, level_y)
        )
        rows = (torch.as_tensor((patch - mean) / unit) for patch in sampled)
        distances["{} x {}".format(*level_x.shape[2:])] = estimate(metric, *rows, seed=seed)
    return PyramidDistance(distances)


def pyramid_noise(
    data: Rows, *, patches: int = 8192, size: int = 7, projections: int = 64, seed: int = 0
) -> PyramidDistance:
    """The noise level of `pyramid_distance`: the distance between two random halves of the data.

    As the halves are smaller than the whole, this is somewhat larger than the distance between the data and another
    sample of the same size and distribution, by up to the square root of two if all patches are used.

    Args:
        data: Images (n, channels, height, width).
        patches: As in `pyramid_distance`.
        size: As in `pyramid_distance`.
        projections: As in `pyramid_distance`.
        seed: The seed of the halves, patches and directions.

    Raises:
        TypeError: If the data are not an array of real numbers.
        ValueError: As `pyramid_distance`, and if there are fewer than two images.
    """
    x = _check_images(data, "data", least=2)
    first, second = np.array_split(np.random.default_rng(seed).permutation(x), 2)
    return pyramid_distance(first, second, patches=patches, size=size, projections=projections, seed=seed)


def _check_images(x: Rows, name: str, least: int = 1) -> np.ndarray:
    rows, shape = flatten_sample(x, name, least=least), tuple(x.shape)
    if len(shape) != 4 or min(shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"{name}: expected images (n, channels, height, width) of at least {MIN_SIDE} x {MIN_SIDE}, "
            f"got shape {shape}"
        )
    return rows.reshape(shape)


def _levels(g: np.ndarray) -> list[np.ndarray]:
    levels = []
    while min(g.shape[2:]) >= MIN_SIDE:
        smaller = _low_pass(g)[..., ::2, ::2]
        levels.append(g - upsample(smaller, g.shape[2:]))
        g = smaller
    return [*levels, g]


def upsample(g: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """up(g), images (n, channels, *sides).

    Args:
        g: Images (n, channels, height, width).
        sides: The sides of the result, of which g has every second row and column.
    """
    with_zeros = np.zeros((*g.shape[:2], *sides))
    with_zeros[..., ::2, ::2] = g
    return 4 * _low_pass(with_zeros)


def _low_pass(g: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        g = ndimage.correlate1d(g, BINOMIAL, axis=axis, mode="mirror")
    return g


def sample_patches(level: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Patches (count, channels, *sides) of a level, sampled without replacement; all patches if there are no more.

    Args:
        level: Images (n, channels, height, width).
        count: The largest number of patches.
        size: The side of a patch.
        rng: The generator.
    """
    sides = tuple(min(size, side) for side in level.shape[2:])
    windows = sliding_window_view(level, sides, axis=(2, 3))
    positions = windows.shape[0], *windows.shape[2:4]
    total = int(np.prod(positions))
    chosen = rng.choice(total, count, replace=False) if count < total else np.arange(total)
    image, top, left = np.unravel_index(chosen, positions)
    return windows[image, :, top, left]
