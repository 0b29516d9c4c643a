"""Images of other sizes and channels: what they become, from folders, arrays and streams."""

import numpy as np
import pytest
from data_files import COLOR, GRAY, same, save_images
from PIL import Image

from ppgen import data
from ppgen.data.image_format import ImageFormat


def test_whole_blocks_of_a_constant_color_keep_it():
    """The image is constant on its left and right half, so that pixels away from the middle keep their values."""
    x = np.repeat(np.array([[[[10, 200]]]], np.uint8), 16, axis=3).repeat(32, axis=2)
    got = ImageFormat(resize=8)(x)
    assert got.dtype == np.uint8
    assert same(got[0, 0, :, :2], np.full((8, 2), 10))
    assert same(got[0, 0, :, -2:], np.full((8, 2), 200))
    assert got.min() == 10
    assert got.max() == 200


def test_the_center_of_a_wide_image_is_kept():
    x = np.zeros((1, 1, 8, 20), np.uint8)
    x[..., 2:18] = 255  # interpolation reaches four pixels beyond the square of 8
    assert same(ImageFormat(resize=4)(x), np.full((1, 1, 4, 4), 255))


def test_reduction_averages():
    """White noise of variance 1, reduced fourfold: without averaging its variance would remain 1."""
    x = np.random.default_rng(0).normal(size=(4, 1, 64, 64))
    got = ImageFormat(resize=16)(x)
    assert got.dtype == np.float64
    assert got.std() < 0.4
    assert abs(got.mean() - x.mean()) < 0.02


def test_gray_and_color():
    red = np.zeros((1, 3, 2, 2), np.uint8)
    red[:, 0] = 255
    assert same(ImageFormat(channels=1)(red), np.full((1, 1, 2, 2), 76))  # 0.299 * 255
    assert same(ImageFormat(channels=3)(GRAY[:, None]), GRAY[:, None].repeat(3, 1))
    assert ImageFormat(channels=3)(COLOR) is COLOR


@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_of_mixed_sizes_and_channels(stream, tmp_path):
    save_images(tmp_path / "cat", GRAY)
    save_images(tmp_path / "dog", [*COLOR[:, :, :2], np.zeros((3, 9, 7), np.uint8)])
    d = data.load(tmp_path, form="integer", resize=6, channels=3, side=8, stream=stream)
    assert d.x.shape == (13, 3, 8, 8)
    assert d.label_names == ("cat", "dog")
    x = d.x[:]
    assert same(x[0, 0], x[0, 1])  # gray
    first = ImageFormat(resize=6)(GRAY[:1, None])
    assert same(x[0, :1, 1:7, 1:7], first[0])
    plain = data.load(tmp_path, form="integer", resize=6, channels=3, side=8)
    assert same(x, plain.x)
    assert d.origins == plain.origins


def test_a_mixed_folder_names_what_to_give(tmp_path):
    save_images(tmp_path, [GRAY[0], COLOR[0, :, :3]])
    with pytest.raises(ValueError, match=r"1.png; give channels=1 or channels=3 and resize=4, the side in pixels"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match=r"1.png; give channels=1 or channels=3$"):
        data.load(tmp_path, resize=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode, tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = 1
    image.convert(mode).save(tmp_path / "0.png", **({"transparency": 1} if mode == "P" else {}))
    x = data.load(tmp_path, form="integer", validation=0.0, test=0.0).x
    assert same(x[0, :, 0], [[0, 255]] * x.shape[1])


def test_arrays_are_resized_too():
    d = data.load("digits", form="integer", resize=16, size=50)
    assert d.event_shape == (1, 16, 16)
    assert d.levels == 17
    assert d.x.max() <= 16


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("moons", {"resize": 8}, r"resize=8: an option of images, and moons has rows of shape \(2,\)"),
        ("moons", {"channels": 1}, r"channels=1: an option of images, and moons"),
        ("digits", {"channels": 2}, "channels to be 1 .* got 2"),
        ("digits", {"resize": 0}, "resize to be at least one pixel, got 0"),
        ("digits", {"side": 7}, "side=7 is less than .* give resize=7 for smaller images"),
    ],
)
def test_bad_formats_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(source, **options)
