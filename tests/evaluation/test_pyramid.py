"""Laplacian pyramids, and the distance between patches of images at each of their levels."""

import math
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch

from ppgen.evaluation import laplacian_pyramid, pyramid_distance, pyramid_noise
from ppgen.evaluation.pyramid import draw_patches, up
from ppgen.evaluation.summary import measure

ALL = 10**9  # patches: every one there is


def images(n: int, *shape: int, seed: int = 0, smooth: bool = True) -> np.ndarray:
    """White noise, or the sum of white noises in blocks of 1, 2, 4, 8 and 16 pixels, which has power at every scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, *shape))
    for block in (2, 4, 8, 16) if smooth else ():
        coarse = rng.standard_normal((n, *shape[:-2], *(-(-side // block) for side in shape[-2:])))
        x += coarse.repeat(block, axis=-2).repeat(block, axis=-1)[..., : shape[-2], : shape[-1]]
    return x


def values(*samples: np.ndarray, **options: int) -> np.ndarray:
    return np.array(list(pyramid_distance(*samples, **options).levels.values()))


def blurred(x: np.ndarray) -> np.ndarray:
    """Half of each pixel from its four neighbors, around a torus."""
    return x / 2 + sum(np.roll(x, step, axis) for step in (-1, 1) for axis in (2, 3)) / 8


# -- laplacian_pyramid ----------------------------------------------------------------------------------------------

SHAPES = [(1, 8, 8), (3, 28, 28), (2, 9, 33), (1, 15, 16), (4, 31, 12), (1, 7 * 4 + 1, 23)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_levels_give_the_images_back(shape):
    x = images(5, *shape)
    levels = laplacian_pyramid(x)
    assert 4 <= min(levels[-1].shape[2:]) <= 7
    for finer, coarser in pairwise(levels):
        assert coarser.shape[2:] == tuple(-(-side // 2) for side in finer.shape[2:])
    back = reduce(lambda g, level: level + up(g, level.shape[2:]), reversed(levels))
    assert np.abs(back - x).max() < 1e-14 * np.abs(x).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_is_in_the_coarsest_level_alone(shape):
    """So that brightness is layout, at the borders too, for odd sides as for even ones."""
    *details, layout = laplacian_pyramid(np.full((1, *shape), 3.0))
    assert max(np.abs(level).max() for level in details) < 1e-14
    assert np.allclose(layout, 3.0, rtol=1e-14)


def test_levels_are_linear_in_the_images_and_keep_rows_and_channels_apart():
    x, y = images(2, 4, 3, 19, 20)
    for one, other, both in zip(*map(laplacian_pyramid, (x, y, 2 * x + y)), strict=True):
        assert np.allclose(2 * one + other, both)
    for whole, part in zip(laplacian_pyramid(x), laplacian_pyramid(torch.as_tensor(x[1:2, 2:])), strict=True):
        assert np.array_equal(whole[1:2, 2:], part)


def test_a_pixel_is_spread_as_burt_and_adelson_have_it():
    """The filter is (1, 4, 6, 4, 1) / 16, and what goes up again is four times it of zeros and samples."""
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
def test_patches_are_windows_of_all_channels_none_taken_twice(count):
    level = np.arange(2.0 * 3 * 5 * 6).reshape(2, 3, 5, 6)
    corners = [(i, top, left) for i in range(2) for top in range(4) for left in range(5)]
    every = {level[i, :, top : top + 2, left : left + 2].tobytes() for i, top, left in corners}
    taken = [patch.tobytes() for patch in draw_patches(level, count, 2, np.random.default_rng(0))]
    assert len(taken) == len(set(taken)) == min(count, len(every))
    assert set(taken) <= every
    assert np.array_equal(draw_patches(level, count, 7, np.random.default_rng(0)), level)


@pytest.mark.parametrize("patches", [50, ALL])
def test_a_sample_is_at_zero_from_itself(patches):
    x = images(6, 2, 17, 20)
    found = pyramid_distance(torch.as_tensor(x), x, patches=patches)
    assert found.levels == {"17 x 20": 0, "9 x 10": 0, "5 x 5": 0}
    assert found.mean == 0


def test_the_order_of_images_does_not_matter_where_all_patches_count():
    x, y = images(8, 1, 16, 16), images(5, 1, 16, 16, seed=1)
    found = values(y, x, patches=ALL)
    assert values(y[::-1], x[[3, 1, 0, 2, 7, 6, 5, 4]], patches=ALL) == pytest.approx(found, rel=1e-12)
    assert values(y, np.repeat(x, 2, axis=0), patches=ALL) == pytest.approx(found, rel=1e-12)


def test_some_of_the_patches_tell_about_as_much_as_all():
    """A thousand of ten times as many: errors of W_1 are near 1 / sqrt(1000) = .03 a direction, and average out."""
    x, y = images(300, 1, 12, 12), 2 * images(200, 1, 12, 12, seed=1)
    assert values(y, x, patches=1000) == pytest.approx(values(y, x, patches=ALL), abs=0.06)


def test_units_and_layers_of_the_data_do_not_matter():
    x, y = images(2, 20, 3, 16, 16)
    scale, shift = np.array([1.0, 100.0, 0.01])[:, None, None], np.array([5.0, -300.0, 0.0])[:, None, None]
    assert values(y * scale + shift, x * scale + shift) == pytest.approx(values(y, x), rel=1e-9)


def test_swapping_the_samples_swaps_whose_deviation_is_the_unit():
    """With y = 2 x the gap is the same, in deviations twice as large."""
    x = images(20, 1, 16, 16)
    there, back = values(2 * x, x), values(x, 2 * x)
    assert there == pytest.approx(2 * back, rel=1e-9)


def test_brightness_is_at_the_coarsest_level_in_closed_form():
    """A shift by c deviations of that level moves the projection on theta by c |sum theta_i| in d dimensions,
    sqrt(d) E|theta_1| = sqrt(d / pi) Gamma(d / 2) / Gamma((d + 1) / 2) on average; nothing else is random but theta.
    """
    x = images(10, 2, 28, 28)
    deviation = laplacian_pyramid(x)[-1].std(axis=(0, 2, 3))[:, None, None]
    *details, layout = values(x + 0.3 * deviation, x, patches=20, projections=4000)
    d = 2 * 7 * 7
    expected = 0.3 * math.sqrt(d / math.pi) * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2))
    assert max(details) < 1e-12
    # |theta_1| has a deviation of .75 of its mean: four standard errors are .048 of it
    assert layout == pytest.approx(expected, rel=0.048)


def test_noise_of_another_scale_has_a_closed_form():
    """Levels are linear, l = A x: of white noise a whole level is N(0, A A'), and of noise s times as strong
    N(0, s^2 A A'), so that W_1 on theta is |s - 1| sqrt(2 / pi) |A' theta| over the level's deviation.
    """
    response = laplacian_pyramid(np.eye(64).reshape(64, 1, 8, 8))[-1].reshape(64, 16)
    deviation = math.sqrt((response**2).sum() / 16)
    theta = np.random.default_rng(2).standard_normal((20000, 16))
    spread = np.linalg.norm(theta @ response.T, axis=1) / np.linalg.norm(theta, axis=1) / deviation
    x, y = images(4000, 1, 8, 8, smooth=False), 1.5 * images(3000, 1, 8, 8, seed=1, smooth=False)
    found = pyramid_distance(y, x, patches=4000, projections=300).levels["4 x 4"]
    # over directions the spread varies by a sixth, a standard error of .01 here; the deviations of 4000 and of 3000
    # rows err by .011 and 1.5 * .013 on a direction, .045 of |s - 1| = .5, of which the few nearly independent
    # directions leave half; together .025, and four of them are the tolerance
    assert np.std(spread) < 0.17
    assert found == pytest.approx(0.5 * math.sqrt(2 / math.pi) * spread.mean(), rel=0.1)


def test_contrast_shows_at_every_level():
    """Under a normalization of each sample by itself it would not."""
    x = images(10, 1, 16, 16)
    x -= x.mean()
    low, high = values(0.9 * x, x), values(0.6 * x, x)
    assert low.min() > 0.05
    assert high == pytest.approx(4 * low, rel=1e-9)


def test_blur_takes_from_the_finest_level_most():
    x = images(50, 1, 32, 32)
    found = values(blurred(x), x, patches=1000)
    assert np.all(np.diff(found) < 0)
    assert found[0] > 4 * found[-1]


def test_a_wrong_layout_takes_from_the_coarsest_level_most():
    """A slope of brightness across each image, drawn anew for each."""
    x = images(50, 1, 32, 32)
    slopes = np.random.default_rng(1).standard_normal((50, 1, 1, 1)) * np.linspace(-3, 3, 32)
    found = values(x + slopes, x, patches=1000)
    assert np.all(np.diff(found) > 0)
    assert found[-1] > 4 * found[0]


@pytest.mark.parametrize("corrupt", ["noise", "blur", "brightness"])
def test_the_more_it_is_corrupted_the_farther_it_is(corrupt):
    x, y = images(2, 100, 1, 16, 16)
    change = {
        "noise": 3 * images(100, 1, 16, 16, seed=1, smooth=False),
        "blur": blurred(y) - y,
        "brightness": 2.0,
    }[corrupt]
    means = [pyramid_distance(y + share * change, x, patches=2000).mean for share in (0, 0.33, 0.66, 1)]
    assert np.all(np.diff(means) > 0)
    assert means[-1] > 1.5 * means[0]


def test_wrong_colors_show_though_every_channel_is_right():
    """Channels that go together in the data and each its own way in the images."""
    x = np.repeat(images(100, 1, 16, 16), 3, axis=1)
    apart = np.concatenate([images(100, 1, 16, 16, seed=seed) for seed in (1, 2, 3)], axis=1)
    together = np.repeat(images(100, 1, 16, 16, seed=1), 3, axis=1)
    assert np.all(values(apart, x, size=1, patches=2000) > 2 * values(together, x, size=1, patches=2000))


def test_seeds_decide_patches_and_directions_and_nothing_else_is_touched():
    x, y = images(2, 30, 1, 16, 16)
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    one, again, other = (pyramid_distance(y, x, patches=200, seed=seed) for seed in (3, 3, 4))
    assert torch.rand(1) == first
    assert one == again
    assert all(one.levels[level] != other.levels[level] for level in one.levels)


def test_a_channel_that_is_flat_in_the_data_keeps_its_unit():
    x = np.concatenate([images(20, 1, 16, 16), np.full((20, 1, 16, 16), 0.7)], axis=1)
    assert values(x, x).max() == 0
    assert np.isfinite(values(images(20, 2, 16, 16, seed=1), x)).all()
    # rounding that is left of a constant is not blown up to noise of unit scale
    assert values(x + np.array([0, 1e-6]).reshape(2, 1, 1), x).max() < 1e-5


# -- pyramid_noise --------------------------------------------------------------------------------------------------


def test_halves_of_the_data_show_what_zero_looks_like():
    """Two samples of one law and size have the same mean as two halves of one: ten repeats, and four standard errors.
    Blur is far outside.
    """
    pooled = [images(80, 1, 16, 16, seed=seed) for seed in range(10)]
    found = [pyramid_noise(x, patches=1000, seed=seed) for seed, x in enumerate(pooled)]
    halves = np.array([one.mean for one in found])
    fresh = np.array([pyramid_distance(x[:40], x[40:], patches=1000, seed=9).mean for x in pooled])
    assert halves.mean() == pytest.approx(fresh.mean(), abs=4 * math.sqrt((halves.var() + fresh.var()) / 10))
    fault = values(blurred(pooled[0][:40]), pooled[0][40:], patches=1000)[0]
    assert fault > 2 * max(one.levels["16 x 16"] for one in found)


def test_noise_falls_with_the_number_of_images():
    few, many = (pyramid_noise(images(n, 1, 12, 12), patches=ALL).mean for n in (40, 640))
    assert few / 6 < many < few / 2.5  # by a factor of four in the mean


# -- what is wrong, and where it is used ----------------------------------------------------------------------------


def test_what_is_wrong_is_said():
    x = images(4, 1, 8, 8)
    expected = r"expected images \(n, channels, height, width\) of at least 8 x 8, got shape"
    with pytest.raises(ValueError, match=rf"x: {expected} \(4, 8, 8\)"):
        laplacian_pyramid(x[:, 0])
    with pytest.raises(ValueError, match=rf"generated: {expected} \(4, 1, 8, 7\)"):
        pyramid_distance(x[..., 1:], x)
    with pytest.raises(ValueError, match=rf"data: {expected} \(4, 64\)"):
        pyramid_noise(x.reshape(4, 64))
    with pytest.raises(ValueError, match=r"images of one shape, got \(1, 8, 16\) and \(1, 16, 8\)"):
        pyramid_distance(images(4, 1, 8, 16), images(4, 1, 16, 8))
    with pytest.raises(ValueError, match="data: 1 of 4 rows hold values that are not finite"):
        pyramid_distance(x, np.where(np.arange(256).reshape(x.shape) == 70, np.nan, x))
    with pytest.raises(ValueError, match=r"data: expected .* at least 2 rows"):
        pyramid_noise(x[:1])
    with pytest.raises(TypeError, match="generated: expected a NumPy array or a torch tensor, got list"):
        pyramid_distance(x.tolist(), x)
    for name in ("patches", "size", "projections"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number of 1 or more, got 0"):
            pyramid_distance(x, x, **{name: 0})


def test_images_are_measured_by_their_patches():
    x, y = images(2, 30, 1, 16, 16)
    numbers, found = measure(y, x, metrics=False), pyramid_distance(y, x)
    for level, value in found.levels.items():
        assert numbers[f"patches at {level}, sliced Wasserstein-1"] == pytest.approx(value)
    assert numbers["patches, mean over levels"] == pytest.approx(found.mean)
    for others in (x[..., :7], x[:, 0], x[:, 0, 0]):  # too small, no channels, a table
        assert not any("patches" in name for name in measure(others, others, metrics=False))
