"""The style that all figures share: one width, one palette, one set of font sizes.

Figures are made through matplotlib's object interface and never through pyplot, so that no figure stays open and no
backend is chosen. Text is drawn literally, without TeX, because a column may have a name such as "$x_$".
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

WIDTH = 6.0  # inches, of every figure
INK, MUTED, PALE = "#22272e", "#6b7280", "#9aa3af"

# Color-blind readers can distinguish these; the first six are those of Okabe and Ito, darker ones first.
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#6a3d9a",
    "#8c6d31",
    "#7f7f7f",
    "#b5bd00",
)

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": PALE,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelsize": 8,
}

# Axes of equal scale, anchored where their labels are, so that the layout leaves room for the labels.
EQUAL: dict[str, Any] = {"aspect": "equal", "anchor": "SW"}
DASHED: dict[str, Any] = {"linewidth": 0.8, "linestyle": (0, (4, 3))}

P = ParamSpec("P")
Interval = tuple[float, float]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function to draw in this style, without changing matplotlib's settings."""

    @wraps(draw)
    def under_style(*args: P.args, **options: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return under_style


def canvas(height: float) -> Figure:
    """An empty figure, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def panels(count: int, *, across: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with several axes.

    Args:
        count: the number of axes.
        across: the number of axes in a row, at most.
        height: the height of a row in inches.
    """
    across = min(across, count)
    rows = -(-count // across)
    figure = canvas(rows * height)
    grid = figure.subplots(rows, across, squeeze=False)
    for spare in grid.flat[count:]:
        spare.remove()
    return figure, list(grid.flat[:count])


def plane(frames: Sequence[Interval], labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one pair of axes of equal scale.

    Args:
        frames: the intervals of x and y.
        labels: the labels of x and y.
    """
    (left, right), (low, high) = frames
    height = (WIDTH - 0.7) * (high - low) / (right - left)
    figure = canvas(0.8 + min(max(height, 2.0), 5.2))
    axes = figure.add_subplot(xlim=frames[0], ylim=frames[1], xlabel=labels[0], ylabel=labels[1], **EQUAL)
    return figure, axes


def legend(figure: Figure, axes: Axes, **options: Any) -> None:
    """Adds a legend above the axes, in rows of at most 6.

    Args:
        figure: the figure.
        axes: the axes whose artists have labels.
        **options: options of matplotlib's legend.
    """
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(6, len(labels)), **options)


def note(figure: Figure, text: str) -> None:
    """Adds a line in small type below the figure; nothing for an empty text."""
    if text:
        figure.supxlabel(text, x=0.01, ha="left", color=MUTED, fontsize=8)


def scatter(axes: Axes, points: np.ndarray, color: Any, label: str | None = None, *, scale: float = 1.0) -> None:
    """Draws points, smaller and fainter ones if there are many.

    Args:
        axes: the axes.
        points: the points (n, 2).
        color: their color, or one for each.
        label: their name in a legend.
        scale: a factor of their area.
    """
    size, alpha = (12, 0.8) if len(points) < 500 else (6, 0.6)
    axes.scatter(points[:, 0], points[:, 1], s=scale * size, alpha=alpha, c=color, label=label, linewidths=0)


def colors(count: int) -> ListedColormap:
    """A color map of `count` colors: those of the palette, or evenly spaced ones of viridis if there are more."""
    if count <= len(PALETTE):
        return ListedColormap(PALETTE[:count])
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 1, count)))


def frame(values: np.ndarray) -> Interval:
    """An interval that contains all but a few outliers, with a margin; equal values may differ by rounding."""
    values = values[np.isfinite(values)]
    if not len(values):
        return -1.0, 1.0
    low, high = (float(q) for q in np.quantile(values, [0.002, 0.998]))
    spread = high - low if high - low > 1e-6 * max(abs(low), abs(high)) else 0.0
    room = 0.12 * spread or 0.05 * abs(high) or 0.5
    return low - room, high + room


def outside(x: np.ndarray, frames: Sequence[Interval]) -> float:
    """The share of rows that are not finite or outside of an interval.

    Args:
        x: the rows (n, d).
        frames: the d intervals.
    """
    low, high = np.array(frames).T
    return float(1 - np.mean(((x >= low) & (x <= high)).all(axis=1)))


def shorten(name: str, limit: int) -> str:
    """The name, without its middle if it is longer than the limit."""
    tail = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def percent(share: float) -> str:
    """A share as text; only none is 0%, and only all is 100%."""
    if 0 < share < 0.01:
        return "under 1%"
    if 0.99 < share < 1:
        return "over 99%"
    return f"{share:.0%}"
