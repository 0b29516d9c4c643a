"""Figures of data, samples and reconstructions."""

import re

import numpy as np
from reports import IMAGES, RNG, WIDE, text_of

from ppgen.report import figures
from ppgen.report.figures import images


def test_pixels_become_colors():
    x = np.arange(12.0).reshape(1, 3, 2, 2)
    shown = images.color(x, (1.0, 9.0))
    np.testing.assert_allclose(shown[0, 1, 0], (np.clip(x[0, :, 1, 0], 1, 9) - 1) / 8)
    x[0, 0, 0, 0] = np.nan
    assert tuple(images.color(x, (1.0, 9.0))[0, 0, 0]) == images.NOT_FINITE_COLOR


def test_tiled_images_are_at_their_positions():
    x = RNG.random((5, 3, 2, 3))
    sheet = images.tile(x, across=3)
    assert sheet.shape == (2 * 3 + 1, 3 * 2 + 2, 3)  # gaps of one pixel
    for i in range(5):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(sheet[4 * row : 4 * row + 3, 3 * column : 3 * column + 2], x[i])
    assert (sheet[4:, 6:] == 1).all()


def test_few_images_in_a_row_are_not_larger_than_six():
    heights = [figures.sequences({"a": IMAGES["gray"][:n]}).get_size_inches()[1] for n in (1, 2, 6)]
    assert heights[0] == heights[1] == heights[2]


def test_only_the_first_images_are_drawn():
    many = np.repeat(IMAGES["gray"], 10, axis=0)
    figure = figures.samples(many)
    assert figure.axes[0].images[0].get_size() == (4 * 7 - 1, 16 * 6 - 1)  # 64 images of 6 by 5, gaps of one pixel
    assert "the first 64 of 200" in text_of(figure)
    assert len(figures.reconstructions(many, many).axes) == 4


def test_reconstructions_have_r_squared():
    x = WIDE[:, :4]
    x_hat = np.stack([x[:, 0], np.full(600, x[:, 1].mean()), 2 * x[:, 2] - x[:, 2].mean(), x[:, 3] + 1], axis=1)
    x = np.where(np.arange(4) == 3, 1.0, x)
    assert re.findall(r"R² (\S+)", text_of(figures.reconstructions(x, x_hat))) == ["1.00", "0.00", "0.00", "undefined"]


def test_generated_rows_outside_the_frame_are_counted():
    x = WIDE[:, :2].copy()
    x[:60] = 1e6
    x[60:90] = np.nan
    assert "15% of the generated rows lie outside the frame" in text_of(figures.samples(x, data=0 * x + WIDE[:, :2]))
