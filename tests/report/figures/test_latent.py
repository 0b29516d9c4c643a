"""Figures of latent codes."""

import numpy as np
from reports import WIDE
from sklearn.decomposition import PCA

from ppgen.report import figures


def ramp(z: np.ndarray) -> np.ndarray:
    """A decoder of images (1, 2, 3): z[0] in the upper row, z[1] in the lower row."""
    return np.repeat(z[:, None, :, None], 3, axis=-1)


def test_codes_are_projected_on_their_principal_axes():
    z = WIDE * np.arange(1, 9) + 3
    axes = figures.latent_plane(z).axes[0]
    pca = PCA(2).fit(z)
    shown = axes.collections[0].get_offsets()
    np.testing.assert_allclose(np.abs(shown), np.abs(z @ pca.components_.T), atol=1e-9)
    for label, share in zip((axes.get_xlabel(), axes.get_ylabel()), pca.explained_variance_ratio_, strict=True):
        assert f"{share:.0%} of the variance" in label


def test_the_prior_is_optional():
    def radii(figure):
        return [patch.radius for patch in figure.axes[0].patches]

    assert radii(figures.latent_plane(WIDE, prior=True)) == [1, 2, 3]
    assert radii(figures.latent_plane(WIDE)) == []


def test_the_first_code_increases_to_the_right_and_the_second_upwards():
    picture = figures.latent_walk(ramp, n=4).axes[0].images[0].get_array()
    brightness = picture[[0, -2]][:, [0, -1], 0]  # upper rows of images at the corners show z[0]
    assert (brightness == [[0, 1], [0, 1]]).all()
    assert (picture[[1, -1]][:, [0, -1], 0] == [[1, 1], [0, 0]]).all()
