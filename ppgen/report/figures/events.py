"""Data and what a model makes of them: generated samples, reconstructions.

x has shape (n, *event_shape), in the units of the data. An event is an image (channels, height, width), drawn as
such, or a row of a table (features,), of which the first 6 columns are drawn. Of images, the first 64 are drawn, or 20
with their reconstructions.
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
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    labels: tuple[str, str] = ("data", "generated"),
) -> Figure:
    """Generated events x (n, *event_shape), with data (m, *event_shape) where there are such.

    Images: a grid of generated ones, the data's to its left. Tables: a histogram (one column), a scatter (two),
    or histograms and the scatters of all pairs (more), the data drawn under the generated rows.

    Args:
        columns: the names of a table's columns.
        limits: the values drawn black and white; the least and the greatest of the data, or of x without data.
        labels: what data and x are called.

    Raises:
        ValueError: if the events are neither images nor rows, are none, or differ in shape from the data.
    """
    x = _events("x", x)
    if data is not None:
        data = _events("data", data)
        if data.shape[1:] != x.shape[1:]:
            raise ValueError(f"expected data of event shape {x.shape[1:]}, as x, got {data.shape[1:]}")
    if x.ndim == 4:
        sets = {labels[1]: x} if data is None else {labels[0]: data, labels[1]: x}
        return images.grids(sets, limits or images.span(x if data is None else data))
    return tables.overlay(x, data, _names(columns, x.shape[1]), labels)


@styled
def sequences(rows: Mapping[str, np.ndarray], *, limits: tuple[float, float] | None = None) -> Figure:
    """Images (n, channels, height, width) by title, a row each, one above the other: column i is always the same one.

    Args:
        limits: the values drawn black and white; the least and the greatest of all, if left out.

    Raises:
        ValueError: if they are no images, are none, or differ in shape.
    """
    found = {title: _events(title, x) for title, x in rows.items()}
    shapes = {x.shape for x in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise ValueError(f"expected rows of as many images of one size, got {sorted(shapes)}")
    return images.sequences(found, limits or images.span(np.stack(list(found.values()))))


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
    Other tables: column by column the reconstructed value against the true one, with the share of the variance
    explained, R² = 1 - Σ (x_hat - x)² / Σ (x - mean x)². `columns` and `limits` are those of `samples`.

    Raises:
        ValueError: if the events are neither images nor rows, are none, or the shapes differ.
    """
    x, x_hat = _events("x", x), _events("x_hat", x_hat)
    if x.shape != x_hat.shape:
        raise ValueError(f"expected x_hat of shape {x.shape}, as x, got {x_hat.shape}")
    if x.ndim == 4:
        return images.pairs(x, x_hat, limits or images.span(x))
    names = _names(columns, x.shape[1])
    return tables.displacements(x, x_hat, names) if x.shape[1] == 2 else tables.agreement(x, x_hat, names)


def _events(name: str, x: np.ndarray) -> np.ndarray:
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
