"""Small tables and images, and functions that write them to files."""

from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

RNG = np.random.default_rng(7)
TABLE = RNG.integers(-9, 9, (12, 3)).astype(np.float64) + 0.5
GRAY = RNG.integers(0, 256, (6, 4, 5), np.uint8)
COLOR = RNG.integers(0, 256, (6, 3, 4, 5), np.uint8)
LABELS = np.array([0, 1, 2] * 4)
NAMES = np.array(["b", "a", "None"] * 4)
CODES, CLASSES = [2, 1, 0] * 4, ("None", "a", "b")  # of NAMES


def same(got: Any, expected: Any) -> bool:
    return np.array_equal(got, expected)


def frame(labels):
    return pd.DataFrame(TABLE, columns=["u", "v", "w"]).assign(kind=labels)


def idx(array, code):
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def save_images(folder, arrays, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(arrays):
        Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)).save(folder / f"{i}{suffix}")


def class_folders(folder):
    save_images(folder, [])
    save_images(folder / "dog", GRAY[:2])
    save_images(folder / "cat", GRAY[2:])
    (folder / "notes").mkdir()
    (folder / "cat" / "readme.txt").write_text("not an image")
