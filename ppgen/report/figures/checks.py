"""Checks of a model and of inference: replicates beside data, and whether ranks are uniform."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppgen.diagnostics import Ranks
from ppgen.report.figures.style import (
    DASHED,
    INK,
    PALETTE,
    canvas,
    frame,
    legend,
    note,
    panels,
    percent,
    shorten,
    styled,
)
from ppgen.report.figures.tables import DATA

__all__ = ["replicates", "uniformity"]

BINS = (8, 30)  # least and most
LIMIT = 6  # panels
WIDER = 3.0  # how much wider than the data the frame may be


@styled
def replicates(sites: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Histograms of observed numbers, and of data sets that the model draws anew: medians, central 50% and 90%.

    Args:
        sites: replicates (S, n) and observations (n,) by name; whole numbers of few values have a bin each.

    Raises:
        ValueError: for none, or replicates of another size.
    """
    for name, (drawn, seen) in sites.items():
        if drawn.ndim != 2 or drawn.shape[1:] != seen.shape:
            raise ValueError(f"expected replicates (S, n) of {name!r}, observed (n,); got {drawn.shape}, {seen.shape}")
    if not sites:
        raise ValueError("expected an observed site at least, got none")
    shown = dict(list(sites.items())[:LIMIT])
    figure, grid = panels(len(shown), across=2, height=2.9 if len(shown) == 1 else 2.1)
    notes = [f"the first {LIMIT} of {len(sites)}"] if len(sites) > LIMIT else []
    for axes, (name, (drawn, seen)) in zip(grid, shown.items(), strict=True):
        beyond = _replicates(axes, np.asarray(drawn, dtype=float), np.asarray(seen, dtype=float))
        axes.set_xlabel(shorten(name, 40))
        if beyond:
            notes.append(f"{percent(beyond)} of the replicates of {shorten(name, 20)} lie outside the frame")
    for axes in grid[::2]:
        axes.set_ylabel("number of data")
    legend(figure, grid[0])
    note(figure, "; ".join(notes))
    return figure


def _replicates(axes: Axes, drawn: np.ndarray, seen: np.ndarray) -> float:
    """One panel; the share of replicates outside of its frame."""
    edges = _edges(drawn, seen)
    counts = np.stack([np.histogram(row[np.isfinite(row)], edges)[0] for row in drawn])
    low, left, middle, right, high = np.quantile(counts, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    data = np.histogram(seen, edges)[0]
    axes.stairs(data, edges, fill=True, color=DATA, alpha=0.35)
    for bottom, top, alpha, label in ((low, high, 0.2, "replicates, 90%"), (left, right, 0.35, "50%")):
        axes.stairs(top, edges, baseline=bottom, fill=True, color=PALETTE[0], alpha=alpha, label=label)
    axes.stairs(middle, edges, baseline=None, color=PALETTE[0], linewidth=1.2, label="median")
    axes.stairs(data, edges, color=INK, linewidth=1.2, label="data")
    axes.set_ylim(bottom=0)
    axes.set_xlim(edges[0], edges[-1])
    return float(1 - np.mean((drawn >= edges[0]) & (drawn <= edges[-1])))


def _edges(drawn: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Bins over the data, and over replicates as far as they are not much wider."""
    bins = int(np.clip(1.5 * np.sqrt(len(seen)), *BINS))
    (low, high), (first, last) = frame(seen), frame(drawn)
    middle, reach = (low + high) / 2, WIDER * (high - low) / 2
    low, high = min(low, max(first, middle - reach)), max(high, min(last, middle + reach))
    if (seen == seen.round()).all() and (drawn == drawn.round()).all():
        low, high = np.ceil(max(low, min(seen.min(), drawn.min()))), np.floor(min(high, max(seen.max(), drawn.max())))
        step = np.ceil((high - low + 1) / BINS[1])
        return np.arange(low - 0.5, high + step, step)
    return np.linspace(low, high, bins + 1)


@styled
def uniformity(ranks: Ranks, *, what: str = "rank") -> Figure:
    """The cumulative share of ranks less what is expected, a number a panel, and the band that holds 95% of such paths.

    A path that leaves the band is of ranks that are not uniform. Draws that are too narrow make it rise and then fall
    below zero, too wide ones the other way round; of a shift it has one sign.

    Args:
        ranks: of one number or more; those with the smallest p-values are shown.
        what: the axis.
    """
    path, p_values = ranks.path(), ranks.p_values
    worst = np.argsort(p_values, kind="stable")[:LIMIT]
    expected = np.concatenate([[0.0], path.expected, [1.0]])
    low, high = (np.concatenate([[0.0], part - path.expected, [0.0]]) for part in (path.low, path.high))
    if len(worst) == 1:
        figure = canvas(2.6)
        grid = [figure.add_subplot()]
    else:
        figure, grid = panels(len(worst), across=3, height=1.75)
    for axes, number in zip(grid, worst, strict=True):
        axes.fill_between(expected, low, high, color=PALETTE[0], alpha=0.15, linewidth=0, label="95% of uniform paths")
        axes.axhline(0.0, color=INK, **DASHED)
        found = np.concatenate([[0.0], path.found[:, number] - path.expected, [0.0]])
        axes.plot(expected, found, color=PALETTE[0], label="found less expected")
        axes.set_title(f"{shorten(ranks.names[number], 24)}, p {_level(p_values[number])}", fontsize=8.5)
        axes.set_xlim(0, 1)
    for axes in grid[:: 3 if len(grid) > 1 else 1]:
        axes.set_ylabel("share, less expected" if len(grid) == 1 else "difference")
    for axes in grid[-3:]:
        axes.set_xlabel(what)
    legend(figure, grid[0])
    note(figure, f"the {LIMIT} of {len(p_values)} numbers of smallest p-value" if len(p_values) > LIMIT else "")
    return figure


def _level(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< .001"
