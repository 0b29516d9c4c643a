"""Data, samples and reconstructions.

x has shape (n, *event_shape), in the units of the data. An event is an image (channels, height, width) or a row of a
table (features,). Figures show the first 64 images, or 20 with their reconstructions, and the first 6 columns of
tables.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ppgen.report.figures import images, tables
from ppgen.report.figures.style import styled

__all__ = ["reconstructions", "samples", "sequences"]


@styled
def samples(
    x: np.ndarray,
    *,
    data: np.ndarray | None = None,
    means: np.ndarray | None = None,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    labels: tuple[str, str] = ("data", "generated"),
) -> Figure:
    """Generated events, with data if there are any.

    Images are shown as a grid, to the right of that of the data. Tables are shown as a histogram (one column), a
    scatter plot (two columns), or histograms and scatter plots of all pairs (more), over the data.

    Args:
        x: the generated events (n, *event_shape).
        data: the data (m, *event_shape).
        means: for images, the means of the generated ones without noise, of their shape.
        columns: the names of a table's columns.
        limits: the values that are drawn black and white; by default the range of the data, or of x without data.
        labels: the names of data and x.

    Raises:
        ValueError: if the events are neither images nor rows, are empty, or differ in shape from the data.
    """
    x = _as_events("x", x)
    if data is not None:
        data = _as_events("data", data)
        if data.shape[1:] != x.shape[1:]:
            raise ValueError(f"expected data of event shape {x.shape[1:]}, as x, got {data.shape[1:]}")
    if x.ndim == 4:
        sets = {labels[1]: x} if data is None else {labels[0]: data, labels[1]: x}
        if means is not None:
            sets["means, without noise"] = _as_events("means", means)
        return images.grids(sets, limits or images.value_range(x if data is None else data))
    return tables.overlay(x, data, _names(columns, x.shape[1]), labels)


@styled
def sequences(rows: Mapping[str, np.ndarray], *, limits: tuple[float, float] | None = None) -> Figure:
    """Rows of images, one below the other, in which each column shows the same item.

    Args:
        rows: images (n, channels, height, width) by title.
        limits: the values that are drawn black and white; by default the range of all images.

    Raises:
        ValueError: if the rows are not images, are empty, or differ in shape.
    """
    found = {title: _as_events(title, x) for title, x in rows.items()}
    shapes = {x.shape for x in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise ValueError(f"expected rows of as many images of one size, got {sorted(shapes)}")
    return images.sequences(found, limits or images.value_range(np.stack(list(found.values()))))


@styled
def reconstructions(
    x: np.ndarray,
    x_hat: np.ndarray,
    *,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Events and their reconstructions.

    Images are shown above their reconstructions. Tables of two columns have a line from each row to its reconstruction.
    Other tables are shown column by column, the reconstructed value against the true one, with the coefficient of
    determination R² = 1 - Σ (x_hat - x)² / Σ (x - mean x)².

    Args:
        x: the events (n, *event_shape).
        x_hat: their reconstructions, of the same shape.
        columns: the names of a table's columns.
        limits: the values that are drawn black and white; by default the range of x.

    Raises:
        ValueError: if the events are neither images nor rows, are empty, or the shapes differ.
    """
    x, x_hat = _as_events("x", x), _as_events("x_hat", x_hat)
    if x.shape != x_hat.shape:
        raise ValueError(f"expected x_hat of shape {x.shape}, as x, got {x_hat.shape}")
    if x.ndim == 4:
        return images.pairs(x, x_hat, limits or images.value_range(x))
    names = _names(columns, x.shape[1])
    return tables.displacements(x, x_hat, names) if x.shape[1] == 2 else tables.agreement(x, x_hat, names)


def _as_events(name: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=float)
    if x.ndim not in (2, 4) or 0 in x.shape:
        raise ValueError(
            f"expected {name} of shape (n, features) or (n, channels, height, width), not empty, got {x.shape}"
        )
    return x


def _names(columns: Sequence[str] | None, count: int) -> list[str]:
    if columns is None:
        return [f"x[{i}]" for i in range(count)]
    if len(columns) != count:
        raise ValueError(f"expected the names of {count} columns, got {len(columns)}: {', '.join(columns)}")
    return list(columns)
