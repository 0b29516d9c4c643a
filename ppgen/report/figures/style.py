"""The look that all figures share: one width, one palette, one set of type sizes.

Figures are made through matplotlib's object interface and never through pyplot, so that none stays open and no
backend is chosen. Text is set as it is, without TeX: a column may be called "$x_$".
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

# Told apart by color-blind readers (the first six are Okabe and Ito's, darker ones first).
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

# Axes of equal scale; anchored where their labels are, for the layout to see how much room those need.
EQUAL: dict[str, Any] = {"aspect": "equal", "anchor": "SW"}
DASHED: dict[str, Any] = {"linewidth": 0.8, "linestyle": (0, (4, 3))}

P = ParamSpec("P")
Interval = tuple[float, float]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """The function, run under the style; matplotlib's settings are then as they were."""

    @wraps(draw)
    def under_style(*args: P.args, **options: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return under_style


def canvas(height: float) -> Figure:
    """An empty figure, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def panels(count: int, *, across: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes in rows of at most `across`, each row `height` inches high."""
    across = min(across, count)
    rows = -(-count // across)
    figure = canvas(rows * height)
    grid = figure.subplots(rows, across, squeeze=False)
    for spare in grid.flat[count:]:
        spare.remove()
    return figure, list(grid.flat[:count])


def plane(frames: Sequence[Interval], labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure of one pair of axes of equal scale, high enough for them."""
    (left, right), (low, high) = frames
    height = (WIDTH - 0.7) * (high - low) / (right - left)
    figure = canvas(0.8 + min(max(height, 2.0), 5.2))
    axes = figure.add_subplot(xlim=frames[0], ylim=frames[1], xlabel=labels[0], ylabel=labels[1], **EQUAL)
    return figure, axes


def legend(figure: Figure, axes: Axes, **options: Any) -> None:
    """A legend above the axes, in rows of at most 6."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(6, len(labels)), **options)


def note(figure: Figure, text: str) -> None:
    """A line in small type below the figure; nothing for an empty text."""
    if text:
        figure.supxlabel(text, x=0.01, ha="left", color=MUTED, fontsize=8)


def scatter(axes: Axes, points: np.ndarray, color: Any, label: str | None = None, *, scale: float = 1.0) -> None:
    """Points (n, 2), the smaller and fainter the more there are."""
    size, alpha = (12, 0.8) if len(points) < 500 else (6, 0.6)
    axes.scatter(points[:, 0], points[:, 1], s=scale * size, alpha=alpha, c=color, label=label, linewidths=0)


def colors(count: int) -> ListedColormap:
    """`count` colors: those of the palette, or for more, evenly spaced ones of viridis."""
    if count <= len(PALETTE):
        return ListedColormap(PALETTE[:count])
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 1, count)))


def frame(values: np.ndarray) -> Interval:
    """An interval that holds all but a few outlying values, and some room beside them."""
    values = values[np.isfinite(values)]
    if not len(values):
        return -1.0, 1.0
    low, high = (float(q) for q in np.quantile(values, [0.002, 0.998]))
    room = 0.12 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def outside(x: np.ndarray, frames: Sequence[Interval]) -> float:
    """The share of the rows of x (n, d) that are not finite or leave one of the d intervals."""
    low, high = np.array(frames).T
    return float(1 - np.mean(((x >= low) & (x <= high)).all(axis=1)))


def shorten(name: str, limit: int) -> str:
    """The name, its middle left out if it is longer than the limit."""
    tail = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def percent(share: float) -> str:
    """A share as text, with 0% and 100% kept for none and all."""
    if 0 < share < 0.01:
        return "under 1%"
    if 0.99 < share < 1:
        return "over 99%"
    return f"{share:.0%}"
