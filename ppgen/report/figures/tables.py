"""Rows of tables (n, features), of which the first 6 columns are shown."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ppgen.report.figures.style import (
    DASHED,
    EQUAL,
    INK,
    PALE,
    PALETTE,
    Interval,
    canvas,
    frame,
    legend,
    note,
    outside,
    panels,
    percent,
    plane,
    scatter,
    shorten,
)

MAX_COLUMNS = 6
DATA_COLOR, SAMPLE_COLOR = "#a3abb5", PALETTE[0]
DATA_SCALE = 3.0  # points of data are larger than the samples that cover them


def overlay(x: np.ndarray, data: np.ndarray | None, names: list[str], labels: tuple[str, str]) -> Figure:
    """Rows over data: a histogram of one column, a scatter plot of two columns, all pairs of more.

    Args:
        x: rows (n, features).
        data: rows (m, features) that are drawn below x; None for none.
        names: the names of the columns.
        labels: the names of data and x.
    """
    below, above = labels
    sets = {above: (x[:, :MAX_COLUMNS], SAMPLE_COLOR)}
    if data is not None:
        sets = {below: (data[:, :MAX_COLUMNS], DATA_COLOR)} | sets
    frames = [frame(column) for column in next(iter(sets.values()))[0].T]
    if len(frames) == 2:
        figure, axes = plane(frames, names)
        for name, (rows, color) in sets.items():
            scatter(axes, rows, color, name, scale=DATA_SCALE if name == below else 1.0)
        legend(figure, axes, markerscale=2)
    else:
        figure = _pairs(sets, frames, names, below)
    notes = [f"the first {MAX_COLUMNS} of {len(names)} columns"] if len(names) > MAX_COLUMNS else []
    if beyond := outside(sets[above][0], frames):
        notes.append(f"{percent(beyond)} of the {above} rows lie outside the frame")
    note(figure, "; ".join(notes))
    return figure


def displacements(x: np.ndarray, x_hat: np.ndarray, names: list[str]) -> Figure:
    """Rows with a line from each to its reconstruction.

    Args:
        x: rows (n, 2).
        x_hat: their reconstructions.
        names: the names of the columns.
    """
    frames = [frame(column) for column in x.T]
    figure, axes = plane(frames, names)
    axes.add_collection(LineCollection(list(np.stack([x, x_hat], axis=1)), colors=PALE, linewidths=0.6))
    scatter(axes, x, DATA_COLOR, "original")
    scatter(axes, x_hat, SAMPLE_COLOR, "reconstruction")
    legend(figure, axes, markerscale=2)
    if beyond := outside(x_hat, frames):
        note(figure, f"{percent(beyond)} of the reconstructions lie outside the frame")
    return figure


def agreement(x: np.ndarray, x_hat: np.ndarray, names: list[str]) -> Figure:
    """The reconstructed values against the true ones with R², column by column.

    Args:
        x: rows (n, features).
        x_hat: their reconstructions.
        names: the names of the columns.
    """
    shown = min(len(names), MAX_COLUMNS)
    figure, grid = panels(shown, across=3, height=3.4 if shown == 1 else 2.4)
    for number, (axes, true, rebuilt, name) in enumerate(zip(grid, x.T, x_hat.T, names, strict=False)):
        interval = frame(true)
        scatter(axes, np.stack([true, rebuilt], axis=1), SAMPLE_COLOR)
        axes.axline((0, 0), slope=1, color=INK, zorder=3, **DASHED)
        axes.set(xlim=interval, ylim=interval, xlabel="true", **EQUAL)
        axes.set_title(shorten(name, 24))
        axes.text(0.04, 0.96, f"R² {_explained(true, rebuilt)}", transform=axes.transAxes, va="top", fontsize=8.5)
        if number % 3 == 0:
            axes.set_ylabel("reconstructed")
    if len(names) > MAX_COLUMNS:
        note(figure, f"the first {MAX_COLUMNS} of {len(names)} columns")
    return figure


def _explained(true: np.ndarray, rebuilt: np.ndarray) -> str:
    """R² as text; it is undefined for a constant column."""
    spread = np.square(true - true.mean()).sum()
    return f"{1 - np.square(rebuilt - true).sum() / spread:.2f}" if spread > 0 else "undefined"


def _pairs(sets: dict[str, tuple[np.ndarray, str]], frames: list[Interval], names: list[str], below: str) -> Figure:
    """Histograms on the diagonal, scatter plots below it."""
    count = len(frames)
    figure = canvas(3.0 if count == 1 else 1.0 + 0.85 * count)
    grid = figure.subplots(count, count, sharex="col", squeeze=False)
    names = [shorten(name, max(12, 80 // count)) for name in names]
    for (row, column), axes in np.ndenumerate(grid):
        if row < column:
            axes.remove()
            continue
        for name, (rows, color) in sets.items():
            if row == column:
                _histogram(axes, rows[:, row], color, name, frames[row])
            else:
                scatter(axes, rows[:, [column, row]], color, scale=(DATA_SCALE if name == below else 1.0) / count)
                axes.set_ylim(frames[row])
        axes.set_xlim(frames[column])
        axes.tick_params(labelsize=8 if count < 4 else 6.5, labelleft=column == 0)
        if row == column and count > 1:
            axes.set_yticks([])
        if row == count - 1:
            axes.set_xlabel(names[column], fontsize=9 if count < 4 else 7.5)
        if column == 0 < row:
            axes.set_ylabel(names[row], fontsize=9 if count < 4 else 7.5)
    if count == 1:
        grid[0, 0].set_ylabel("share of rows")
    legend(figure, grid[0, 0])
    return figure


def _histogram(axes: Axes, values: np.ndarray, color: str, name: str, interval: Interval) -> None:
    """A histogram of shares, so that sets of different size are comparable."""
    edges = np.linspace(*interval, 41)
    counts = np.histogram(values[np.isfinite(values)], edges)[0]
    axes.stairs(counts / len(values), edges, fill=True, alpha=0.35, color=color, label=name)
    axes.stairs(counts / len(values), edges, color=color)
