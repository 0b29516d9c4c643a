"""Checks of a model and of inference: replicated data beside the data, and the uniformity of ranks."""

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
from ppgen.report.figures.tables import DATA_COLOR

__all__ = ["predictive_histograms", "uniformity"]

MIN_BINS, MAX_BINS = 8, 30
MAX_PANELS = 6
MAX_WIDTH = 3.0  # of the frame, in widths of the data


@styled
def predictive_histograms(sites: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Histograms of the data, and of replicated data sets: medians, and central 50% and 90% intervals of the counts.

    Args:
        sites: replicates (S, n) and data (n,) by name. Integers with few values have one bin each.

    Raises:
        ValueError: if there are no sites, or replicates of another size.
    """
    for name, (drawn, seen) in sites.items():
        if drawn.ndim != 2 or drawn.shape[1:] != seen.shape:
            raise ValueError(f"expected replicates (S, n) of {name!r}, observed (n,); got {drawn.shape}, {seen.shape}")
    if not sites:
        raise ValueError("expected at least one observed site, got none")
    shown = dict(list(sites.items())[:MAX_PANELS])
    figure, grid = panels(len(shown), across=2, height=2.9 if len(shown) == 1 else 2.1)
    notes = [f"the first {MAX_PANELS} of {len(sites)}"] if len(sites) > MAX_PANELS else []
    for axes, (name, (drawn, seen)) in zip(grid, shown.items(), strict=True):
        outside = _histograms(axes, np.asarray(drawn, dtype=float), np.asarray(seen, dtype=float))
        axes.set_xlabel(shorten(name, 40))
        if outside:
            notes.append(f"{percent(outside)} of the replicates of {shorten(name, 20)} lie outside the frame")
    for axes in grid[::2]:
        axes.set_ylabel("number of data")
    legend(figure, grid[0])
    note(figure, "; ".join(notes))
    return figure


def _histograms(axes: Axes, drawn: np.ndarray, seen: np.ndarray) -> float:
    """Draws one panel; returns the share of replicates outside of its frame."""
    edges = _edges(drawn, seen)
    counts = np.stack([np.histogram(row[np.isfinite(row)], edges)[0] for row in drawn])
    low, left, middle, right, high = np.quantile(counts, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    data = np.histogram(seen, edges)[0]
    axes.stairs(data, edges, fill=True, color=DATA_COLOR, alpha=0.35)
    for bottom, top, alpha, label in ((low, high, 0.2, "replicates, 90%"), (left, right, 0.35, "50%")):
        axes.stairs(top, edges, baseline=bottom, fill=True, color=PALETTE[0], alpha=alpha, label=label)
    axes.stairs(middle, edges, baseline=None, color=PALETTE[0], linewidth=1.2, label="median")
    axes.stairs(data, edges, color=INK, linewidth=1.2, label="data")
    axes.set_ylim(bottom=0)
    axes.set_xlim(edges[0], edges[-1])
    return float(1 - np.mean((drawn >= edges[0]) & (drawn <= edges[-1])))


def _edges(drawn: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Bins over the data, and over the replicates unless they are much wider."""
    bins = int(np.clip(1.5 * np.sqrt(len(seen)), MIN_BINS, MAX_BINS))
    (low, high), (first, last) = frame(seen), frame(drawn)
    middle, half_width = (low + high) / 2, MAX_WIDTH * (high - low) / 2
    low, high = min(low, max(first, middle - half_width)), max(high, min(last, middle + half_width))
    if (seen == seen.round()).all() and (drawn == drawn.round()).all():
        low, high = np.ceil(max(low, min(seen.min(), drawn.min()))), np.floor(min(high, max(seen.max(), drawn.max())))
        step = np.ceil((high - low + 1) / MAX_BINS)
        return np.arange(low - 0.5, high + step, step)
    return np.linspace(low, high, bins + 1)


@styled
def uniformity(ranks: Ranks, *, xlabel: str = "rank") -> Figure:
    """The cumulative distribution of ranks minus the expected one, with its simultaneous 95% band, a panel a component.

    Ranks are not uniform if the line leaves the band. It rises and then falls below zero if the draws are too narrow,
    falls and then rises if they are too wide, and has one sign if they are shifted.

    Args:
        ranks: ranks of one or more components; those with the smallest p-values are shown.
        xlabel: the label of the horizontal axis.
    """
    path, p_values = ranks.path(), ranks.p_values
    worst = np.argsort(p_values, kind="stable")[:MAX_PANELS]
    expected = np.concatenate([[0.0], path.expected, [1.0]])
    low, high = (np.concatenate([[0.0], part - path.expected, [0.0]]) for part in (path.low, path.high))
    if len(worst) == 1:
        figure = canvas(2.6)
        grid = [figure.add_subplot()]
    else:
        figure, grid = panels(len(worst), across=3, height=1.75)
    for axes, number in zip(grid, worst, strict=True):
        axes.fill_between(expected, low, high, color=PALETTE[0], alpha=0.15, linewidth=0, label="95% if uniform")
        axes.axhline(0.0, color=INK, **DASHED)
        found = np.concatenate([[0.0], path.found[:, number] - path.expected, [0.0]])
        axes.plot(expected, found, color=PALETTE[0], label="found minus expected")
        axes.set_title(f"{shorten(ranks.names[number], 24)}, p {_p_value(p_values[number])}", fontsize=8.5)
        axes.set_xlim(0, 1)
    for axes in grid[:: 3 if len(grid) > 1 else 1]:
        axes.set_ylabel("share minus expected" if len(grid) == 1 else "difference")
    for axes in grid[-3:]:
        axes.set_xlabel(xlabel)
    legend(figure, grid[0])
    note(
        figure, f"the {MAX_PANELS} of {len(p_values)} with the smallest p-values" if len(p_values) > MAX_PANELS else ""
    )
    return figure


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< .001"
