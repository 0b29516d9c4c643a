"""Features of images: they tell labels apart, and Fréchet distances in them order what pixels do not."""

import numpy as np
import pytest
import torch

from ppgen import data
from ppgen import metrics as m
from ppgen.evaluation import coverage, train_image_features


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", form="unit", seed=0)


@pytest.fixture(scope="module")
def network(digits):
    return train_image_features(digits.train.x, digits.train.y, epochs=4)


def distance(network, x, y):
    return float(m.Frechet()(*(torch.as_tensor(network.features(part)) for part in (x, y))))


def test_the_distance_of_gaussians_is_that_of_the_closed_form():
    """Features without a network: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), by the eigenvalues of S1 S2."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)), rng.normal(size=(300, 3)) + 1
    s, t = np.cov(a.T, bias=True), np.cov(b.T, bias=True)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    expected = shift + np.trace(s) + np.trace(t) - 2 * np.sqrt(np.linalg.eigvals(s @ t).real).sum()
    assert float(m.Frechet()(torch.as_tensor(a), torch.as_tensor(b))) == pytest.approx(expected, rel=1e-9)


def test_the_network_recognizes_held_out_images(network, digits):
    assert network.accuracy(digits.test.x, digits.test.y) > 0.9
    assert network.features(digits.test.x).shape == (len(digits.test.x), 128)


def test_distances_grow_with_what_is_wrong(network, digits):
    """Another sample of the data, half of the labels dropped, noise: nearer to farther."""
    x, test = digits.train.x, digits.test.x
    rng = np.random.default_rng(0)
    noise = rng.random(test.shape, dtype=np.float32)
    found = [distance(network, x, part) for part in (test, test[digits.test.y < 5], noise)]
    assert 10 * found[0] < found[1] < found[2] / 2
    assert coverage(network.features(test), network.features(noise)).precision < 0.1


def test_the_same_seed_gives_the_same_features_and_leaves_the_random_state(digits):
    x, y = digits.train.x[:200], digits.train.y[:200]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (train_image_features(x, y, epochs=1, seed=3).features(x) for _ in range(2))
    assert np.array_equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


def test_units_do_not_matter(digits):
    """Training standardizes: images of 0 .. 255 have the features of images of 0 .. 1, to rounding."""
    x, y = digits.train.x[:200], digits.train.y[:200]
    unit, levels = train_image_features(x, y, epochs=1), train_image_features(255 * x, y, epochs=1)
    assert np.allclose(unit.features(x), levels.features(255 * x), atol=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((4, 6)), np.arange(4), r"expected images .* got \(6,\)"),
        (np.zeros((4, 1, 3, 8)), np.arange(4), "at least 4 x 4 pixels"),
        (np.zeros((4, 1, 8, 8)), np.zeros(4), "at least two of them distinct"),
        (np.zeros((4, 1, 8, 8)), np.arange(3), r"expected \(4,\) labels"),
        (np.zeros((4, 1, 8, 8)), np.arange(-1, 3), "labels from 0 on"),
    ],
)
def test_what_is_no_labeled_image_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        train_image_features(x, y)


def test_images_of_another_shape_are_refused(network):
    with pytest.raises(ValueError, match=r"expected images of shape \(1, 8, 8\), got rows of shape \(1, 9, 9\)"):
        network.features(np.zeros((2, 1, 9, 9)))
