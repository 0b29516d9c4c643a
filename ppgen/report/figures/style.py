"""The look that all figures share: one width, one palette, one set of type sizes.

Figures are made through matplotlib's object interface and never through pyplot, so that none stays open and no
backend is chosen. Text is set as it is, without TeX: a column may be called "$x_".
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

WIDTH = 6.4  # inches, of every figure
INK, MUTED, PALE = "#22272e", "#6b7280", "#9aa3af"

# Told apart by colour-blind readers (the first six are Okabe and Ito's, darker ones first).
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

STYLE: dict[str, Any] = {
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


def note(figure: Figure, text: str) -> None:
    """A line in small type above the figure; nothing for an empty text."""
    if text:
        figure.suptitle(text, x=0.01, ha="left", color=MUTED, fontsize=8)


def scatter(axes: Axes, points: np.ndarray, colour: Any, label: str | None = None, **options: Any) -> None:
    """Points (n, 2), the smaller and fainter the more there are."""
    few = len(points) < 500
    axes.scatter(
        *points.T, s=9 if few else 4, alpha=0.8 if few else 0.5, c=colour, label=label, linewidths=0, **options
    )


def colours(count: int) -> ListedColormap:
    """`count` colours: those of the palette, or for more, evenly spaced ones of viridis."""
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


def percent(share: float) -> str:
    """A share as text, with 0% and 100% kept for none and all."""
    if 0 < share < 0.01:
        return "under 1%"
    if 0.99 < share < 1:
        return "over 99%"
    return f"{share:.0%}"
