"""Rows of tables as figures: (n, features), of which the first 6 columns are drawn."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ppgen.report.figures.style import (
    MUTED,
    PALE,
    PALETTE,
    Interval,
    canvas,
    frame,
    note,
    outside,
    panels,
    percent,
    scatter,
)

LIMIT = 6  # columns drawn
DATA, MADE = "#8b95a1", PALETTE[0]


def overlay(x: np.ndarray, data: np.ndarray | None, names: list[str]) -> Figure:
    """Generated rows over data: a histogram of one column, a scatter of two, all pairs of more."""
    sets = {"generated": (x[:, :LIMIT], MADE)}
    if data is not None:
        sets = {"data": (data[:, :LIMIT], DATA)} | sets
    frames = [frame(column) for column in next(iter(sets.values()))[0].T]
    if len(frames) == 2:
        figure = canvas(4.4)
        axes = figure.add_subplot(aspect="equal", xlabel=names[0], ylabel=names[1])
        for name, (rows, colour) in sets.items():
            scatter(axes, rows, colour, name)
        axes.set(xlim=frames[0], ylim=frames[1])
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=2)
    else:
        figure = _pairs(sets, frames, names)
    notes = [f"the first {LIMIT} of {len(names)} columns"] if len(names) > LIMIT else []
    if beyond := outside(sets["generated"][0], frames):
        notes.append(f"{percent(beyond)} of the generated rows lie outside the frame")
    note(figure, "; ".join(notes))
    return figure


def displacements(x: np.ndarray, x_hat: np.ndarray, names: list[str]) -> Figure:
    """Rows (n, 2), each with a line to its reconstruction."""
    figure = canvas(4.4)
    axes = figure.add_subplot(aspect="equal", xlabel=names[0], ylabel=names[1])
    axes.add_collection(LineCollection(list(np.stack([x, x_hat], axis=1)), colors=PALE, linewidths=0.6))
    scatter(axes, x, DATA, "original")
    scatter(axes, x_hat, MADE, "reconstruction")
    frames = [frame(column) for column in x.T]
    axes.set(xlim=frames[0], ylim=frames[1])
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=2)
    if beyond := outside(x_hat, frames):
        note(figure, f"{percent(beyond)} of the reconstructions lie outside the frame")
    return figure


def agreement(x: np.ndarray, x_hat: np.ndarray, names: list[str]) -> Figure:
    """Column by column, the reconstructed value against the true one, and R²."""
    shown = min(len(names), LIMIT)
    figure, grid = panels(shown, across=3, height=2.3)
    for axes, true, rebuilt, name in zip(grid, x.T, x_hat.T, names, strict=False):
        interval = frame(true)
        axes.axline((0, 0), slope=1, color=PALE, linewidth=1)
        scatter(axes, np.stack([true, rebuilt], axis=1), MADE)
        axes.set(xlim=interval, ylim=interval, aspect="equal")
        axes.set_title(f"{name}   R² {_explained(true, rebuilt)}")
    figure.supxlabel("true value", fontsize=9)
    figure.supylabel("reconstructed", fontsize=9)
    if len(names) > LIMIT:
        note(figure, f"the first {LIMIT} of {len(names)} columns")
    return figure


def _explained(true: np.ndarray, rebuilt: np.ndarray) -> str:
    """R² as text; a constant column has none."""
    spread = np.square(true - true.mean()).sum()
    return f"{1 - np.square(rebuilt - true).sum() / spread:.2f}" if spread > 0 else "undefined"


def _pairs(sets: dict[str, tuple[np.ndarray, str]], frames: list[Interval], names: list[str]) -> Figure:
    """Histograms on the diagonal, scatters below it."""
    count = len(frames)
    figure = canvas(3.0 if count == 1 else 1.0 + 0.85 * count)
    grid = figure.subplots(count, count, sharex="col", squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        if row < column:
            axes.remove()
            continue
        for name, (rows, colour) in sets.items():
            if row == column:
                _histogram(axes, rows[:, row], colour, name, frames[row])
            else:
                scatter(axes, rows[:, [column, row]], colour)
                axes.set_ylim(frames[row])
        axes.set_xlim(frames[column])
        axes.tick_params(labelsize=8 if count < 4 else 6.5, labelleft=column == 0 and row > 0)
        if row == count - 1:
            axes.set_xlabel(names[column])
        if column == 0 and row > 0:
            axes.set_ylabel(names[row])
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="upper right")
    return figure


def _histogram(axes: Axes, values: np.ndarray, colour: str, name: str, interval: Interval) -> None:
    """A histogram as a share of all rows, so that sets of different size compare."""
    edges = np.linspace(*interval, 41)
    counts = np.histogram(values[np.isfinite(values)], edges)[0]
    axes.stairs(counts / len(values), edges, fill=True, alpha=0.35, color=colour, label=name)
    axes.stairs(counts / len(values), edges, color=colour)
