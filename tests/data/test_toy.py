"""Toy data sets: shapes, seeds, moments, modes, and errors."""

import numpy as np
import pytest
from data_files import same
from scipy import stats

from ppgen import data

TOYS = {
    "moons": (2, (0.5, 0.25), (1 + 2.25 - 2 / np.pi) / 2 + 2 * 0.05**2),
    "rotated_moons": (2, (0.5, 0.25), (1 + 2.25 - 2 / np.pi) / 2 + 2 * 0.05**2),
    "rings": (2, (0, 0), (0.5**2 + 1) / 2 + 2 * 0.03**2),
    "gaussians_ring": (8, (0, 0), 1 + 2 * 0.01**2),
    "gaussians_grid": (25, (0, 0), 2 * (2**2 * (5**2 - 1) / 12 + 0.05**2)),
    "swiss_roll": (3, (0.2, 1 / (15 * np.pi)), np.pi**2 * (4.5**3 - 1.5**3) / 900 + 2 * 0.05**2),
    "checkerboard": (8, (0, 0), 2 * 4**2 / 3),
    "pinwheel": (5, (0, 0), 1 + 0.3**2 + 0.1**2),
}


def test_every_toy_data_set_is_tested_and_public():
    assert set(TOYS) | {"ring", "grid"} == set(data.TOY)  # short names of gaussians_ring and gaussians_grid
    assert all(getattr(data, toy.__name__) is toy for toy in data.TOY.values())


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_modes_are_the_means_of_the_samples(name):
    centers, sigma = data.modes(name)
    x, y = data.TOY[name](5000)
    assert len(np.unique(y)) == len(centers)
    np.testing.assert_allclose(x, centers[y], atol=5 * sigma)  # 10,000 coordinates: level 6e-3
    np.testing.assert_allclose((x - centers[y]).std(), sigma, rtol=0.05)
    assert data.modes("moons") is None


def test_rotated_moons_are_rotations_of_the_moons():
    x, y = data.moons(50, seed=1)
    rotated, same_labels = data.rotated_moons(50, degrees=90.0, seed=1)
    assert same(y, same_labels)
    np.testing.assert_allclose(rotated - (0.5, 0.25), np.stack([-(x[:, 1] - 0.25), x[:, 0] - 0.5], 1), atol=1e-6)
    unrotated, _ = data.rotated_moons(50, degrees=0.0, seed=1)
    np.testing.assert_allclose(unrotated, x, atol=1e-6)


@pytest.mark.parametrize("name", TOYS)
class TestToy:
    def test_shape_and_seed(self, name):
        toy, labels = data.TOY[name], TOYS[name][0]
        x, y = toy(301, seed=3)
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((301, 2), np.float32, (301,), np.int64)
        assert set(y) == set(range(labels))
        again, other = toy(301, seed=3), toy(301, seed=4)
        assert same(x, again[0])
        assert same(y, again[1])
        assert not same(x, other[0])
        assert not same(y, other[1])

    def test_moments(self, name):
        _, mean, square = TOYS[name]
        x = data.TOY[name](100000, seed=1)[0].astype(np.float64)
        values = np.column_stack([x, (x**2).sum(axis=1)])
        error = values.std(axis=0) / np.sqrt(len(x))
        # five standard errors: level 6e-7 for each number
        assert (abs(values.mean(axis=0) - [*mean, square]) < 5 * error).all()

    def test_modes_are_equally_likely(self, name):
        y = data.TOY[name](20000, seed=1)[1]
        assert stats.chisquare(np.bincount(y)).pvalue > 1e-4  # level 1e-4

    def test_bad_options_are_refused(self, name):
        spread = "sigma" if name.startswith("gaussians") else "noise"
        with pytest.raises(ValueError, match="expected n >= 1, got 0"):
            data.TOY[name](0)
        with pytest.raises(ValueError, match=f"expected {spread} >= 0, got -1"):
            data.TOY[name](5, **{spread: -1})


def test_labels_are_those_of_the_nearest_mode():
    x, y = data.gaussians_ring(2000, modes=6, radius=3.0)
    center = 3 * np.stack([np.cos(np.pi * y / 3), np.sin(np.pi * y / 3)], axis=1)
    # |x - center|/sigma has a Rayleigh distribution: above 7 with probability 2e-11
    assert np.linalg.norm(x - center, axis=1).max() < 7 * 0.01
    x, y = data.gaussians_grid(2000, side=3, spacing=1.0)
    assert np.linalg.norm(x - np.stack([y // 3 - 1, y % 3 - 1], axis=1), axis=1).max() < 7 * 0.05
    x, y = data.rings(2000, radii=(1, 2, 4), noise=0)
    assert np.allclose(np.linalg.norm(x, axis=1), np.array([1, 2, 4])[y])
    x, y = data.checkerboard(2000, cells=2)
    assert same(x[:, 0] > 0, x[:, 1] > 0)
    assert same(x[:, 0] > 0, y == 1)
    with pytest.raises(ValueError, match="expected modes >= 1, got 0"):
        data.gaussians_ring(5, modes=0)
