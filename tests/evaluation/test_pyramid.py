"""Laplacian pyramids, and the distance between patches of images at each level."""

import math
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch

from ppgen.evaluation import laplacian_pyramid, pyramid_distance, pyramid_noise
from ppgen.evaluation.pyramid import sample_patches, upsample
from ppgen.evaluation.summary import measure

ALL = 10**9  # patches: more than there are


def images(n: int, *shape: int, seed: int = 0, smooth: bool = True) -> np.ndarray:
    """White noise, or the sum of white noises on blocks of 1, 2, 4, 8 and 16 pixels, with power at every scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, *shape))
    for block in (2, 4, 8, 16) if smooth else ():
        coarse = rng.standard_normal((n, *shape[:-2], *(-(-side // block) for side in shape[-2:])))
        x += coarse.repeat(block, axis=-2).repeat(block, axis=-1)[..., : shape[-2], : shape[-1]]
    return x


def values(*samples: np.ndarray, **options: int) -> np.ndarray:
    return np.array(list(pyramid_distance(*samples, **options).levels.values()))


def blurred(x: np.ndarray) -> np.ndarray:
    """Half of each pixel comes from its four neighbors, with periodic borders."""
    return x / 2 + sum(np.roll(x, step, axis) for step in (-1, 1) for axis in (2, 3)) / 8


# -- laplacian_pyramid ----------------------------------------------------------------------------------------------

SHAPES = [(1, 8, 8), (3, 28, 28), (2, 9, 33), (1, 15, 16), (4, 31, 12), (1, 7 * 4 + 1, 23)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pyramid_is_invertible(shape):
    x = images(5, *shape)
    levels = laplacian_pyramid(x)
    assert 4 <= min(levels[-1].shape[2:]) <= 7
    for finer, coarser in pairwise(levels):
        assert coarser.shape[2:] == tuple(-(-side // 2) for side in finer.shape[2:])
    inverse = reduce(lambda g, level: level + upsample(g, level.shape[2:]), reversed(levels))
    assert np.abs(inverse - x).max() < 1e-14 * np.abs(x).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_is_in_the_coarsest_level_only(shape):
    """At the borders too, for odd sides and for even ones."""
    *details, layout = laplacian_pyramid(np.full((1, *shape), 3.0))
    assert max(np.abs(level).max() for level in details) < 1e-14
    assert np.allclose(layout, 3.0, rtol=1e-14)


def test_levels_are_linear_in_the_images_and_separate_for_rows_and_channels():
    x, y = images(2, 4, 3, 19, 20)
    for one, other, both in zip(*map(laplacian_pyramid, (x, y, 2 * x + y)), strict=True):
        assert np.allclose(2 * one + other, both)
    for whole, part in zip(laplacian_pyramid(x), laplacian_pyramid(torch.as_tensor(x[1:2, 2:])), strict=True):
        assert np.array_equal(whole[1:2, 2:], part)


def test_a_single_pixel_has_the_levels_of_burt_and_adelson():
    """The filter is (1, 4, 6, 4, 1) / 16; upsampling is four times the filter of samples separated by zeros."""
    x = np.zeros((1, 1, 9, 9))
    x[..., 4, 4] = 1
    w = {0: 6 / 16, 1: 4 / 16, 2: 1 / 16}
    fine, coarse = laplacian_pyramid(x)
    along = np.array([0, w[2], w[0], w[2], 0])
    assert np.allclose(coarse[0, 0], np.outer(along, along))
    smooth = [2 * sum(along[j] * w.get(abs(i - 2 * j), 0) for j in range(5)) for i in range(2, 7)]
    assert np.allclose((x - fine)[0, 0, 2:7, 2:7], np.outer(smooth, smooth))


# -- pyramid_distance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, ALL])
def test_patches_are_distinct_windows_of_all_channels(count):
    level = np.arange(2.0 * 3 * 5 * 6).reshape(2, 3, 5, 6)
    corners = [(i, top, left) for i in range(2) for top in range(4) for left in range(5)]
    every = {level[i, :, top : top + 2, left : left + 2].tobytes() for i, top, left in corners}
    sampled = [patch.tobytes() for patch in sample_patches(level, count, 2, np.random.default_rng(0))]
    assert len(sampled) == len(set(sampled)) == min(count, len(every))
    assert set(sampled) <= every
    assert np.array_equal(sample_patches(level, count, 7, np.random.default_rng(0)), level)


@pytest.mark.parametrize("patches", [50, ALL])
def test_a_sample_has_distance_zero_from_itself(patches):
    x = images(6, 2, 17, 20)
    result = pyramid_distance(torch.as_tensor(x), x, patches=patches)
    assert result.levels == {"17 x 20": 0, "9 x 10": 0, "5 x 5": 0}
    assert result.mean == 0


def test_the_order_of_images_does_not_matter_with_all_patches():
    x, y = images(8, 1, 16, 16), images(5, 1, 16, 16, seed=1)
    result = values(y, x, patches=ALL)
    assert values(y[::-1], x[[3, 1, 0, 2, 7, 6, 5, 4]], patches=ALL) == pytest.approx(result, rel=1e-12)
    assert values(y, np.repeat(x, 2, axis=0), patches=ALL) == pytest.approx(result, rel=1e-12)


def test_a_subset_of_patches_gives_nearly_the_same_distance():
    """With a thousand of ten thousand, errors of W_1 are about 1 / sqrt(1000) = .03 per direction, and average out."""
    x, y = images(300, 1, 12, 12), 2 * images(200, 1, 12, 12, seed=1)
    assert values(y, x, patches=1000) == pytest.approx(values(y, x, patches=ALL), abs=0.06)


def test_units_and_origins_of_channels_do_not_matter():
    x, y = images(2, 20, 3, 16, 16)
    scale, shift = np.array([1.0, 100.0, 0.01])[:, None, None], np.array([5.0, -300.0, 0.0])[:, None, None]
    assert values(y * scale + shift, x * scale + shift) == pytest.approx(values(y, x), rel=1e-9)


def test_exchanging_the_samples_exchanges_the_unit():
    """With y = 2 x the difference is the same, in standard deviations that are twice as large."""
    x = images(20, 1, 16, 16)
    in_units_of_x, in_units_of_2x = values(2 * x, x), values(x, 2 * x)
    assert in_units_of_x == pytest.approx(2 * in_units_of_2x, rel=1e-9)


def test_a_shift_of_brightness_has_a_closed_form_at_the_coarsest_level():
    """A shift by c standard deviations moves the projection on theta in d dimensions by c |sum theta_i|.

    The mean is c sqrt(d) E|theta_1| = c sqrt(d / pi) Gamma(d / 2) / Gamma((d + 1) / 2); only theta is random.
    """
    x = images(10, 2, 28, 28)
    std = laplacian_pyramid(x)[-1].std(axis=(0, 2, 3))[:, None, None]
    *details, layout = values(x + 0.3 * std, x, patches=20, projections=4000)
    d = 2 * 7 * 7
    expected = 0.3 * math.sqrt(d / math.pi) * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2))
    assert max(details) < 1e-12
    # the standard deviation of |theta_1| is .75 of its mean, so four standard errors are .048 of it
    assert layout == pytest.approx(expected, rel=0.048)


def test_noise_of_another_scale_has_a_closed_form():
    """Levels are linear, l = A x, so a level of white noise is N(0, A A'), and of s times the noise N(0, s^2 A A').

    W_1 on theta is then |s - 1| sqrt(2 / pi) |A' theta| over the standard deviation of the level.
    """
    response = laplacian_pyramid(np.eye(64).reshape(64, 1, 8, 8))[-1].reshape(64, 16)
    std = math.sqrt((response**2).sum() / 16)
    theta = np.random.default_rng(2).standard_normal((20000, 16))
    spread = np.linalg.norm(theta @ response.T, axis=1) / np.linalg.norm(theta, axis=1) / std
    x, y = images(4000, 1, 8, 8, smooth=False), 1.5 * images(3000, 1, 8, 8, seed=1, smooth=False)
    result = pyramid_distance(y, x, patches=4000, projections=300).levels["4 x 4"]
    # over directions the spread varies by a sixth, a standard error of .01; the standard deviations of 4000 and 3000
    # rows have errors of .011 and 1.5 * .013 per direction, .045 of |s - 1| = .5, of which averaging over the few
    # nearly independent directions leaves half; together .025, and the tolerance is four times that
    assert np.std(spread) < 0.17
    assert result == pytest.approx(0.5 * math.sqrt(2 / math.pi) * spread.mean(), rel=0.1)


def test_contrast_has_an_effect_at_every_level():
    """It would not if each sample were standardized by its own statistics."""
    x = images(10, 1, 16, 16)
    x -= x.mean()
    low, high = values(0.9 * x, x), values(0.6 * x, x)
    assert low.min() > 0.05
    assert high == pytest.approx(4 * low, rel=1e-9)


def test_blur_has_the_largest_effect_at_the_finest_level():
    x = images(50, 1, 32, 32)
    result = values(blurred(x), x, patches=1000)
    assert np.all(np.diff(result) < 0)
    assert result[0] > 4 * result[-1]


def test_a_wrong_layout_has_the_largest_effect_at_the_coarsest_level():
    """Each image gets its own random gradient of brightness."""
    x = images(50, 1, 32, 32)
    gradients = np.random.default_rng(1).standard_normal((50, 1, 1, 1)) * np.linspace(-3, 3, 32)
    result = values(x + gradients, x, patches=1000)
    assert np.all(np.diff(result) > 0)
    assert result[-1] > 4 * result[0]


@pytest.mark.parametrize("corrupt", ["noise", "blur", "brightness"])
def test_stronger_corruption_has_a_larger_distance(corrupt):
    x, y = images(2, 100, 1, 16, 16)
    change = {
        "noise": 3 * images(100, 1, 16, 16, seed=1, smooth=False),
        "blur": blurred(y) - y,
        "brightness": 2.0,
    }[corrupt]
    means = [pyramid_distance(y + share * change, x, patches=2000).mean for share in (0, 0.33, 0.66, 1)]
    assert np.all(np.diff(means) > 0)
    assert means[-1] > 1.5 * means[0]


def test_wrong_colors_are_detected_though_every_channel_is_right():
    """The channels are equal in the data, and independent in the images."""
    x = np.repeat(images(100, 1, 16, 16), 3, axis=1)
    independent = np.concatenate([images(100, 1, 16, 16, seed=seed) for seed in (1, 2, 3)], axis=1)
    equal = np.repeat(images(100, 1, 16, 16, seed=1), 3, axis=1)
    assert np.all(values(independent, x, size=1, patches=2000) > 2 * values(equal, x, size=1, patches=2000))


def test_seeds_determine_patches_and_directions_and_the_random_state_is_kept():
    x, y = images(2, 30, 1, 16, 16)
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    one, again, other = (pyramid_distance(y, x, patches=200, seed=seed) for seed in (3, 3, 4))
    assert torch.rand(1) == first
    assert one == again
    assert all(one.levels[level] != other.levels[level] for level in one.levels)


def test_a_constant_channel_of_the_data_keeps_its_unit():
    x = np.concatenate([images(20, 1, 16, 16), np.full((20, 1, 16, 16), 0.7)], axis=1)
    assert values(x, x).max() == 0
    assert np.isfinite(values(images(20, 2, 16, 16, seed=1), x)).all()
    # rounding errors of a constant are not scaled to unit variance
    assert values(x + np.array([0, 1e-6]).reshape(2, 1, 1), x).max() < 1e-5


# -- pyramid_noise --------------------------------------------------------------------------------------------------


def test_halves_of_the_data_have_the_distance_of_two_samples():
    """Two samples of one distribution have the same mean as two halves, within four standard errors of ten repeats.

    The distance of blurred images is much larger.
    """
    pooled = [images(80, 1, 16, 16, seed=seed) for seed in range(10)]
    result = [pyramid_noise(x, patches=1000, seed=seed) for seed, x in enumerate(pooled)]
    halves = np.array([one.mean for one in result])
    fresh = np.array([pyramid_distance(x[:40], x[40:], patches=1000, seed=9).mean for x in pooled])
    assert halves.mean() == pytest.approx(fresh.mean(), abs=4 * math.sqrt((halves.var() + fresh.var()) / 10))
    blur = values(blurred(pooled[0][:40]), pooled[0][40:], patches=1000)[0]
    assert blur > 2 * max(one.levels["16 x 16"] for one in result)


def test_noise_falls_with_the_number_of_images():
    few, many = (pyramid_noise(images(n, 1, 12, 12), patches=ALL).mean for n in (40, 640))
    assert few / 6 < many < few / 2.5  # a factor of four on average


# -- checks, and use in the summary ----------------------------------------------------------------------------


def test_arguments_are_checked():
    x = images(4, 1, 8, 8)
    expected = r"expected images \(n, channels, height, width\) of at least 8 x 8, got shape"
    with pytest.raises(ValueError, match=rf"x: {expected} \(4, 8, 8\)"):
        laplacian_pyramid(x[:, 0])
    with pytest.raises(ValueError, match=rf"generated: {expected} \(4, 1, 8, 7\)"):
        pyramid_distance(x[..., 1:], x)
    with pytest.raises(ValueError, match=rf"data: {expected} \(4, 64\)"):
        pyramid_noise(x.reshape(4, 64))
    with pytest.raises(ValueError, match=r"images of the same shape, got \(1, 8, 16\) and \(1, 16, 8\)"):
        pyramid_distance(images(4, 1, 8, 16), images(4, 1, 16, 8))
    with pytest.raises(ValueError, match="data: 1 of 4 rows have values that are not finite"):
        pyramid_distance(x, np.where(np.arange(256).reshape(x.shape) == 70, np.nan, x))
    with pytest.raises(ValueError, match=r"data: expected .* at least 2 rows"):
        pyramid_noise(x[:1])
    with pytest.raises(TypeError, match="generated: expected a NumPy array or a torch tensor, got list"):
        pyramid_distance(x.tolist(), x)
    for name in ("patches", "size", "projections"):
        with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1, got 0"):
            pyramid_distance(x, x, **{name: 0})


def test_the_summary_has_the_distances_of_patches():
    x, y = images(2, 30, 1, 16, 16)
    numbers, result = measure(y, x, metrics=False), pyramid_distance(y, x)
    for level, value in result.levels.items():
        assert numbers[f"patches at {level}, sliced Wasserstein-1"] == pytest.approx(value)
    assert numbers["patches, mean over levels"] == pytest.approx(result.mean)
    for others in (x[..., :7], x[:, 0], x[:, 0, 0]):  # too small, no channels, a table
        assert not any("patches" in name for name in measure(others, others, metrics=False))
