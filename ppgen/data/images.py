"""Images from a folder, whose subfolders, if any, are classes."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ppgen.data.image_format import AS_STORED, ImageFormat
from ppgen.data.raw import RawData
from ppgen.data.streaming import STREAMABLE
from ppgen.utils.regular_files import check_regular, check_size

__all__ = ["list_images", "pad_images", "read_images", "read_pixels"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

# what Pillow may find in them, whatever their names are: others, such as EPS, start a program
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

# the mode to which each of Pillow's modes is converted, 8 bits per channel; what is transparent becomes white
MODES = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}


def read_images(folder: Path, image_format: ImageFormat = AS_STORED) -> RawData:
    """Reads all images of a folder as uint8 (n, channels, height, width) with 256 levels; see `list_images`.

    Args:
        folder: the folder.
        image_format: the format to which each image is brought.

    Raises:
        ValueError: as `list_images` and `read_pixels` do.
    """
    files, y, names = list_images(folder)
    first = read_pixels(files[0], image_format)
    check_size(folder, len(files) * first.size, remedy=STREAMABLE)
    x = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        x[i] = read_pixels(file, image_format, like=(files[0], first.shape))
    return RawData(x, y, None, names, 256)


def list_images(folder: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...] | None]:
    """The images of a folder, in the order of their names.

    If the images are in subfolders, these are the classes, numbered in the order of their names.

    Args:
        folder: the folder.

    Returns:
        The files, their labels, and the names of these; labels and names are None without subfolders.

    Raises:
        ValueError: for a folder without images, and images both beside and inside subfolders.
    """
    loose = _images_in(folder)
    classes = {f.name: images for f in sorted(folder.iterdir()) if f.is_dir() and (images := _images_in(f))}
    if loose and classes:
        raise ValueError(
            f"{folder} holds images both beside its subfolders and inside {', '.join(map(repr, classes))}; "
            f"keep all in subfolders, one for each class, or none"
        )
    files = loose or [file for images in classes.values() for file in images]
    if not files:
        raise ValueError(f"{folder} and its subfolders hold no images ({' '.join(SUFFIXES)})")
    y = np.repeat(np.arange(len(classes)), [len(images) for images in classes.values()]) if classes else None
    return files, y, tuple(classes) or None


def pad_images(x: np.ndarray, side: int, *, name: str) -> np.ndarray:
    """Pads images evenly with zeros, the lowest level.

    Args:
        x: images (n, channels, height, width).
        side: the height and width of the result.
        name: the source, for errors.

    Returns:
        Images (n, channels, side, side).

    Raises:
        ValueError: for the rows of a table, images larger than `side`, and images that do not fill half of it.
    """
    if x.ndim != 4:
        raise ValueError(
            f"side={side} is an option of images, and {name} has rows of shape {x.shape[1:]}; leave it out"
        )
    height, width = x.shape[2:]
    if side < max(height, width):
        raise ValueError(
            f"side={side} is less than the {height} x {width} pixels of {name}, and only pads: give resize={side} for "
            "smaller images"
        )
    if side >= 2 * min(height, width):
        raise ValueError(
            f"the {height} x {width} pixels of {name} do not fill half of side={side}; choose a smaller side, or "
            "larger images"
        )
    edges = [((side - size) // 2, side - size - (side - size) // 2) for size in (height, width)]
    return np.pad(x, [(0, 0), (0, 0), *edges])


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def read_pixels(
    file: Path, image_format: ImageFormat = AS_STORED, *, like: tuple[Path, tuple[int, ...]] | None = None
) -> np.ndarray:
    """The pixels of an image, uint8 (channels, height, width).

    Args:
        file: the image.
        image_format: the format to which it is brought.
        like: another image and its shape, which this one must have; None for any shape.

    Raises:
        ValueError: for a file that is no image or of another shape, and more than 8 bits per channel.
    """
    check_regular(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow's, about decompression bombs and damaged files
            with Image.open(file, formats=FORMATS) as image:
                mode = image.mode
                if mode in MODES:
                    check_size(file, 4 * image.width * image.height)
                    _check_parts(image)
                    upright = ImageOps.exif_transpose(image)  # cameras store how they were held
                    pixels = np.asarray(_on_white(upright).convert(MODES[mode]))
    except Exception as error:  # Pillow's readers of damaged files raise many kinds
        raise ValueError(f"{file} is not a readable image: {error}") from error
    if mode not in MODES:
        raise ValueError(f"{file}: expected an image with 8 bits per channel, got Pillow's mode {mode!r}")
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    pixels = image_format(pixels[None])[0]
    if like is not None and pixels.shape != like[1]:
        remedies = {
            "channels=1 or channels=3": pixels.shape[0] != like[1][0],
            f"resize={min(like[1][1:])}, the side in pixels": pixels.shape[1:] != like[1][1:],
        }
        raise ValueError(
            f"expected images of one size, got (channels, height, width) = {like[1]} in {like[0]} "
            f"and {pixels.shape} in {file}; give {' and '.join(name for name, needed in remedies.items() if needed)}"
        )
    return pixels


def _check_parts(image: Any) -> None:
    """Checks that the parts of a TIFF file cover the image; Pillow leaves black what they do not.

    Args:
        image: the image as Pillow has opened it, of which no pixels have been read.

    Raises:
        ValueError: if they do not.
    """
    if image.format != "TIFF":
        return
    width, height = image.size
    parts = {part[1] for part in image.tile}  # of each channel the same, where these are stored one by one
    inside = [(left, top, min(right, width), min(bottom, height)) for left, top, right, bottom in parts]
    covered = sum(max(0, right - left) * max(0, bottom - top) for left, top, right, bottom in inside)
    if covered < width * height:
        raise ValueError(f"its parts have {covered} of {width * height} pixels")


def _on_white(image: Image.Image) -> Image.Image:
    """The image as most programs show it: what is transparent is white, whatever color it hides."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
