"""Synthetic rows of a table beside real ones: the distribution of each column, and associations of columns."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ppgen.report.figures.style import PALETTE, canvas, frame, legend, note, panels, shorten, styled

__all__ = ["associations", "marginals"]

REAL, SYNTHETIC = "#a3abb5", PALETTE[0]
MAX_PANELS, MAX_CATEGORIES = 24, 12
BINS = 31


@styled
def marginals(
    real: np.ndarray, synthetic: np.ndarray, names: Sequence[str], categories: Sequence[Sequence[str] | None]
) -> Figure:
    """Each column of real and synthetic rows: a histogram of numbers, a bar for each category and for missing cells.

    Args:
        real: rows (n, d), codes of categories, NaN for missing cells.
        synthetic: rows (m, d).
        names: the names of the d columns.
        categories: the categories of each column, None for numbers.

    Raises:
        ValueError: if columns, names and categories do not have one number.
    """
    count = real.shape[1]
    if not count == synthetic.shape[1] == len(names) == len(categories):
        raise ValueError(
            f"expected as many names and categories as columns, got {len(names)} names and {len(categories)} "
            f"categories of {count} real and {synthetic.shape[1]} synthetic columns"
        )
    figure, grid = panels(min(count, MAX_PANELS), across=3, height=1.7)
    for axes, x, y, name, kinds in zip(grid, real.T, synthetic.T, names, categories, strict=False):
        if kinds is None:
            _histograms(axes, x, y)
        else:
            _bars(axes, x, y, kinds)
        axes.set_title(shorten(str(name), 26))
        axes.tick_params(labelsize=7)
    legend(figure, grid[0])
    if count > MAX_PANELS:
        note(figure, f"the first {MAX_PANELS} of {count} columns")
    return figure


def _histograms(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    edges = np.linspace(*frame(x), BINS)
    for values, color, label in ((x, REAL, "data"), (y, SYNTHETIC, "synthetic")):
        shares = np.histogram(values[np.isfinite(values)], edges)[0] / max(1, len(values))
        axes.stairs(shares, edges, fill=True, alpha=0.4, color=color, label=label)
        axes.stairs(shares, edges, color=color)


def _bars(axes: Axes, x: np.ndarray, y: np.ndarray, kinds: Sequence[str]) -> None:
    shares = []
    for values in (x, y):
        codes = np.where(np.isnan(values), len(kinds), values).astype(np.int64)
        shares.append(np.bincount(codes, minlength=len(kinds) + 1) / max(1, len(values)))
    order = np.argsort(-shares[0], kind="stable")
    order = order[(shares[0][order] > 0) | (shares[1][order] > 0)][:MAX_CATEGORIES]
    labels = [*map(str, kinds), "missing"]
    place = np.arange(len(order))
    axes.bar(place - 0.2, shares[0][order], 0.4, color=REAL, label="data")
    axes.bar(place + 0.2, shares[1][order], 0.4, color=SYNTHETIC, label="synthetic")
    axes.set_xticks(place, [shorten(labels[k], 10) for k in order], rotation=45, ha="right")
    axes.grid(axis="x", visible=False)


@styled
def associations(real: np.ndarray, synthetic: np.ndarray, names: Sequence[str]) -> Figure:
    """The associations of each two columns in real and in synthetic rows, and their difference.

    Args:
        real: the associations (d, d) among real rows, from -1 to 1.
        synthetic: those among synthetic rows.
        names: the names of the d columns.

    Raises:
        ValueError: for matrices of another shape.
    """
    count = len(names)
    if real.shape != (count, count) or synthetic.shape != (count, count):
        raise ValueError(f"expected matrices of shape {(count, count)}, got {real.shape} and {synthetic.shape}")
    figure = canvas(2.6)
    grid = figure.subplots(1, 3)
    titles = ("data", "synthetic", "synthetic minus data")
    scale = ScalarMappable(Normalize(-1, 1), "RdBu_r")
    for axes, matrix, title in zip(grid, (real, synthetic, synthetic - real), titles, strict=True):
        axes.imshow(matrix, norm=scale.norm, cmap=scale.cmap)
        axes.set_title(title)
        axes.grid(visible=False)
        shown = count <= 16
        axes.set_xticks(np.arange(count) if shown else [], [shorten(str(n), 12) for n in names] if shown else [])
        axes.tick_params(axis="x", rotation=90, labelsize=6)
        first = axes is grid[0] and shown
        axes.set_yticks(np.arange(count) if first else [], [shorten(str(n), 12) for n in names] if first else [])
        axes.tick_params(axis="y", labelsize=6)
    figure.colorbar(scale, ax=grid, shrink=0.8)
    return figure
