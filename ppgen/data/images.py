"""Images from a folder, whose subfolders, if any, are the classes."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .raw import Raw

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

# how Pillow's modes are read, in 8 bits a channel; transparency is left out
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


def read_images(folder: Path) -> Raw:
    """All images of a folder as uint8 (n, channels, height, width) with 256 levels, in order of their names.

    When the images lie in subfolders, those are the classes, numbered in order of their names. Raises
    ValueError for a folder without images, images both beside and inside subfolders, sizes that differ, files
    that are no images, and images of more than 8 bits a channel.
    """
    loose = _images_in(folder)
    classes = {f.name: images for f in sorted(folder.iterdir()) if f.is_dir() and (images := _images_in(f))}
    if loose and classes:
        raise ValueError(
            f"{folder} holds images both beside its subfolders and inside {', '.join(map(repr, classes))}; "
            f"keep all in subfolders, one a class, or none"
        )
    files = loose or [file for images in classes.values() for file in images]
    if not files:
        raise ValueError(f"{folder} and its subfolders hold no images ({' '.join(SUFFIXES)})")
    first = _pixels(files[0])
    x = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        pixels = _pixels(file)
        if pixels.shape != first.shape:
            raise ValueError(
                f"expected images of one size, got (channels, height, width) = {first.shape} in {files[0]} "
                f"and {pixels.shape} in {file}"
            )
        x[i] = pixels
    y = np.repeat(np.arange(len(classes)), [len(images) for images in classes.values()]) if classes else None
    return Raw(x, y, None, tuple(classes) or None, 256)


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def _pixels(file: Path) -> np.ndarray:
    """uint8 (channels, height, width)."""
    try:
        with Image.open(file) as image:
            if image.mode not in MODES:
                raise ValueError(f"{file}: expected an image of 8 bits a channel, got Pillow's mode {image.mode!r}")
            pixels = np.asarray(image.convert(MODES[image.mode]))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a readable image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
