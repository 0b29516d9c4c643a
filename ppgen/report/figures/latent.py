"""Latent codes of data, and what the decoder makes of the latent plane.

z has shape (n, latent_dim). The prior that it is compared with is N(0, I), or is given by draws.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from scipy.stats import norm

from ppgen.report.figures import images
from ppgen.report.figures.style import (
    DASHED,
    EQUAL,
    INK,
    PALETTE,
    WIDTH,
    canvas,
    colors,
    frame,
    legend,
    note,
    outside,
    percent,
    plane,
    scatter,
    shorten,
    styled,
)

__all__ = ["latent_plane", "latent_walk"]

PRIOR_COLOR = "#d3d7dc"
MAX_LEGEND = len(PALETTE)  # labels in a legend; more labels have a color bar instead


@styled
def latent_plane(
    z: np.ndarray,
    y: np.ndarray | None = None,
    *,
    label_names: Sequence[str] | None = None,
    prior: bool | np.ndarray = False,
) -> Figure:
    """Latent codes in the plane, colored by their labels.

    More than two dimensions are projected on the two principal axes of the codes through the origin. One dimension is
    shown as a histogram for each label. The prior N(0, I) is shown by circles at 1, 2 and 3 standard deviations (its
    distribution is the same in any plane through the origin), or by its density.

    Args:
        z: the codes (n, latent_dim).
        y: their labels (n,), integers that index `label_names`.
        label_names: the names of the labels; their numbers if None.
        prior: whether to show N(0, I), or draws (m, latent_dim) of another prior, which are shown below the codes.

    Raises:
        ValueError: if z is not (n, latent_dim) or has no finite code, if y is not (n,), or if the draws of the prior
            have another width.
    """
    z = np.asarray(z, dtype=float)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f"expected codes z of shape (n, latent_dim), not empty, got {z.shape}")
    y = np.zeros(len(z), dtype=int) if y is None else np.asarray(y)
    if y.shape != z.shape[:1]:
        raise ValueError(f"expected labels y of shape {z.shape[:1]}, one for each code, got {y.shape}")
    if not isinstance(prior, bool):
        prior = np.asarray(prior, dtype=float)
        if prior.ndim != 2 or prior.shape[1] != z.shape[1]:
            raise ValueError(f"expected draws of the prior of shape (m, {z.shape[1]}), as z, got {prior.shape}")
    finite = np.isfinite(z).all(axis=1)
    z, y = z[finite], y[finite]
    if not len(z):
        raise ValueError("expected finite codes z, got none")
    kinds, index = np.unique(y, return_inverse=True)
    names = [str(kind) if label_names is None else str(label_names[kind]) for kind in kinds]
    return _line(z[:, 0], index, names, prior) if z.shape[1] == 1 else _plane(z, index, names, prior)


def _line(z: np.ndarray, index: np.ndarray, names: list[str], prior: bool | np.ndarray) -> Figure:
    figure = canvas(3.2)
    axes = figure.add_subplot(xlabel="z[0]", ylabel="density")
    edges = np.linspace(*frame(z), 41).tolist()
    parts = [z[index == i] for i in range(len(names))]
    axes.hist(parts, edges, stacked=True, density=True, color=[*colors(len(names))(range(len(names)))], label=names)
    if not isinstance(prior, bool):
        axes.hist(prior[:, 0], edges, density=True, histtype="step", color=INK, linewidth=1.2, label="the prior")
    elif prior:
        grid = np.linspace(min(-3.5, edges[0]), max(3.5, edges[-1]), 200)
        axes.plot(grid, norm.pdf(grid), color=INK, linewidth=1.2, label="N(0, 1)")
    if 1 < len(names) <= MAX_LEGEND or prior is not False:
        axes.legend()
    return figure


def _plane(z: np.ndarray, index: np.ndarray, names: list[str], prior: bool | np.ndarray) -> Figure:
    axes_of, labels = (np.eye(2), ["z[0]", "z[1]"]) if z.shape[1] == 2 else _principal(z)
    points = z @ axes_of
    figure = canvas(4.4)
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1], **EQUAL)
    palette = colors(len(names))
    handles = []
    frames = [frame(column) for column in points.T]
    if not isinstance(prior, bool):
        drawn = prior @ axes_of
        frames = [frame(np.concatenate(both)) for both in zip(points.T, drawn.T, strict=True)]
        scatter(axes, drawn, PRIOR_COLOR, scale=3.0)
        handles.append(_dot(PRIOR_COLOR, "draws of the prior"))
    scatter(axes, points, palette(index))
    if prior is True:
        frames = [(min(low, -3.2), max(high, 3.2)) for low, high in frames]
        for radius in (1, 2, 3):
            axes.add_patch(Circle((0, 0), radius, fill=False, color=INK, **DASHED))
        handles.append(Line2D([], [], color=INK, **DASHED, label="N(0, I): 1, 2, 3 sd"))
    if len(names) > MAX_LEGEND:
        bounds = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
        bar = figure.colorbar(ScalarMappable(bounds, palette), ax=axes, label="label")
        ticks = np.linspace(0, len(names) - 1, 8).round().astype(int).tolist()
        bar.set_ticks(ticks, labels=[names[i] for i in ticks])
        axes.legend(handles=handles, loc="upper left")
    else:
        if len(names) > 1:
            handles = [_dot(palette(i), name) for i, name in enumerate(names)] + handles
        figure.legend(handles=handles, loc="outside right upper")
    half = max(high - low for low, high in frames) / 2
    frames = [((low + high) / 2 - half, (low + high) / 2 + half) for low, high in frames]
    axes.set(xlim=frames[0], ylim=frames[1])
    if beyond := outside(points, frames):
        note(figure, f"{percent(beyond)} of the codes lie outside the frame")
    return figure


def _dot(color: Any, name: str) -> Line2D:
    return Line2D([], [], linestyle="none", marker="o", markersize=5, color=color, label=shorten(name, 20))


def _principal(z: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The two axes (latent_dim, 2) of largest variance, and their names."""
    variances, axes = np.linalg.eigh(np.cov(z, rowvar=False, bias=True))
    shares = variances[:-3:-1] / max(variances.sum(), np.finfo(float).tiny)
    labels = [f"principal axis {i + 1} of {z.shape[1]}, {share:.0%} of the variance" for i, share in enumerate(shares)]
    return axes[:, :-3:-1], labels


@styled
def latent_walk(
    decode: Callable[[np.ndarray], np.ndarray],
    *,
    n: int = 16,
    name: str = "z",
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """The decoder's means over the latent plane, at n x n quantiles of N(0, 1).

    The quantiles are at (i + 1/2)/n, so that each code has the same prior mass around it; z[0] increases to the right
    and z[1] upwards. Images are shown as a grid, tables of two columns as the image of the grid's lines.

    Args:
        decode: the function from codes (m, 2) to means (m, *event_shape).
        n: the number of quantiles of each dimension.
        name: the name of the codes.
        columns: the names of a table's columns.
        limits: the values that are drawn black and white; by default the range of the means.

    Raises:
        ValueError: if the means are neither images nor rows of two columns.
    """
    quantiles = norm.ppf((np.arange(n) + 0.5) / n)
    extent = f"from {quantiles[0]:.1f} to {quantiles[-1]:.1f}"
    across, up = np.meshgrid(quantiles, quantiles[::-1])
    means = np.asarray(decode(np.stack([across.ravel(), up.ravel()], axis=1)), dtype=float)
    if means.ndim == 4:
        figure = canvas(0.2 + (WIDTH - 0.5) * means.shape[2] / means.shape[3])
        axes = figure.add_subplot()
        images.show(axes, images.tile(images.color(means, limits or images.value_range(means)), across=n))
        axes.set(xlabel=f"{name}[0], {extent}", ylabel=f"{name}[1], {extent}")
    elif means.shape[1:] == (2,):
        figure, axes = plane([frame(column) for column in means.T], columns or ("x[0]", "x[1]"))
        grid = means.reshape(n, n, 2)
        for i, lines in enumerate((grid, grid.swapaxes(0, 1))):
            label = f"{name}[{i}] {extent}"
            axes.add_collection(LineCollection(list(lines), colors=PALETTE[i], linewidths=0.8, label=label))
        legend(figure, axes)
    else:
        raise ValueError(f"expected decoded means of images or of rows of 2 columns, got {means.shape}")
    return figure
