"""Data and what a model makes of them: generated samples, reconstructions.

x has shape (n, *event_shape), in the units of the data. An event is an image (channels, height, width), drawn as
such, or a row of a table (features,), of which at most the first 6 columns are drawn.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppgen.report.figures.style import MUTED, PALE, PALETTE, WIDTH, canvas, frame, outside, panels, percent, styled

__all__ = ["images", "reconstructions", "samples"]

COLUMNS = 6  # of a table, at most
BROKEN = (0.9, 0.1, 0.3)  # the colour of a pixel that is not finite
DATA, GENERATED = PALE, PALETTE[0]


@styled
def samples(
    x: np.ndarray,
    *,
    data: np.ndarray | None = None,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Generated events x (n, *event_shape), beside data (m, *event_shape) where there are such.

    Images: a grid of each. Tables: a histogram (one column), a scatter (two), or histograms and scatters of all
    pairs (more), with the data drawn under the generated rows.

    Args:
        columns: the names of a table's columns.
        limits: the values drawn black and white; the least and the greatest of the data, or of x without data.

    Raises:
        ValueError: if the events are neither images nor rows, differ in shape from the data, or are none.
    """
    x, data = _events(x, "samples"), None if data is None else _events(data, "samples, data")
    if data is not None and data.shape[1:] != x.shape[1:]:
        raise ValueError(f"samples: expected data of event shape {x.shape[1:]}, got {data.shape[1:]}")
    if x.ndim == 4:
        sets = {"generated": x} if data is None else {"data": data, "generated": x}
        return _image_sets(sets, limits or _range(x if data is None else data))
    names = _names(columns, x.shape[1])
    return _table(x[:, :COLUMNS], None if data is None else data[:, :COLUMNS], names)


@styled
def reconstructions(
    x: np.ndarray,
    x_hat: np.ndarray,
    *,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Events x (n, *event_shape) and their reconstructions x_hat, of the same shape.

    Images: each above its reconstruction. Tables of two columns: a line from each row to its reconstruction.
    Other tables: for each column the reconstructed value against the true one, with the share of the variance
    explained, R² = 1 - Σ (x_hat - x)² / Σ (x - mean x)².

    Raises:
        ValueError: if the shapes differ, or the events are neither images nor rows.
    """
    x, x_hat = _events(x, "reconstructions"), _events(x_hat, "reconstructions, x_hat")
    if x.shape != x_hat.shape:
        raise ValueError(f"reconstructions: expected x_hat of shape {x.shape}, got {x_hat.shape}")
    if x.ndim == 4:
        return _image_pairs(x, x_hat, limits or _range(x))
    names = _names(columns, x.shape[1])
    if x.shape[1] == 2:
        return _displacements(x, x_hat, names)
    return _agreement(x[:, :COLUMNS], x_hat[:, :COLUMNS], names)


@styled
def images(
    sets: dict[str, np.ndarray], *, limits: tuple[float, float] | None = None
) -> Figure:
    """Sets of images (n, channels, height, width), by their titles, as grids beside each other.

    Limits are the values drawn black and white; the least and the greatest of the first set if left out.
    """
    sets = {name: _events(x, f"images, {name}", images=True) for name, x in sets.items()}
    return _image_sets(sets, limits or _range(next(iter(sets.values()))))
