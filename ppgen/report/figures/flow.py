"""Flows: the density beside data, the transformations one by one, and data in the base space.

z = T^-1(x) has shape (n, d) and follows the base N(0, I) if the flow has the distribution of the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.stats import chi, kstest, norm

from ppgen.report.figures.style import (
    DASHED,
    EQUAL,
    INK,
    PALETTE,
    WIDTH,
    canvas,
    frame,
    legend,
    note,
    panels,
    percent,
    scatter,
    styled,
)
from ppgen.report.figures.tables import DATA_COLOR, SAMPLE_COLOR

__all__ = ["base_space", "density", "log_densities", "warped_grid"]

OTHER_COLOR = PALETTE[1]
HEAT = LinearSegmentedColormap.from_list("heat", ["white", SAMPLE_COLOR, "#00263f"])
MAX_LINES = 64  # coordinates
MAX_QUARTILE_RANGES = 10  # below the median, down to which log densities are shown
MAX_SD = 8.0  # of the base, up to which quantiles are shown


@styled
def density(values: np.ndarray, axes: Sequence[np.ndarray], data: np.ndarray, columns: Sequence[str] | None) -> Figure:
    """A density of one or two columns beside data in the same units.

    Args:
        values: the density at the points of the axes: (len(axes[0]),) or (len(axes[1]), len(axes[0])).
        axes: evenly spaced points along each column.
        data: the data (m, d).
        columns: the names of the columns.

    Raises:
        ValueError: if there are not one or two axes, or values or data do not match them.
    """
    shape = tuple(len(axis) for axis in axes[::-1])
    if len(axes) not in (1, 2) or values.shape != shape or data.shape[1:] != (len(axes),):
        raise ValueError(
            f"expected one or two axes, values of shape {shape} and as many columns of data, got values of "
            f"{values.shape} and data of {data.shape}"
        )
    names = list(columns) if columns is not None else [f"x[{i}]" for i in range(len(axes))]
    if len(axes) == 1:
        figure = canvas(3.2)
        only = figure.add_subplot(xlabel=names[0], ylabel="density")
        edges = np.linspace(axes[0][0], axes[0][-1], 61)
        counts = np.histogram(data[:, 0], edges)[0]
        only.stairs(counts / len(data) / np.diff(edges), edges, fill=True, color=DATA_COLOR, alpha=0.6, label="data")
        only.plot(axes[0], values, color=SAMPLE_COLOR, label="the model's density")
        only.legend()
        return figure
    height = WIDTH / 2 * np.ptp(axes[1]) / np.ptp(axes[0])
    figure = canvas(0.8 + min(max(height, 1.4), 4.5))
    extent = (axes[0][0], axes[0][-1], axes[1][0], axes[1][-1])
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    scatter(left, data, SAMPLE_COLOR)
    right.imshow(values, extent=extent, origin="lower", cmap=HEAT, aspect="auto", interpolation="bilinear", vmin=0)
    right.grid(False)
    for panel, title in ((left, "data"), (right, "the model's density")):
        panel.set(xlim=extent[:2], ylim=extent[2:], xlabel=names[0], title=title)
    left.set_ylabel(names[1])
    return figure


@styled
def warped_grid(stages: Mapping[str, np.ndarray], points: Sequence[np.ndarray] = ()) -> Figure:
    """A grid after each transformation of a flow.

    Args:
        stages: lines (lines, points, 2) by title, one half in each direction of the grid.
        points: draws (m, 2) of the base at each stage, in the order of `stages`.

    Raises:
        ValueError: if the lines have another shape.
    """
    for lines in stages.values():
        if lines.ndim != 3 or lines.shape[2] != 2:
            raise ValueError(f"expected lines of shape (lines, points, 2), got {lines.shape}")
    figure, grid = panels(len(stages), across=3, height=2.3)
    for i, (axes, (title, lines)) in enumerate(zip(grid, stages.items(), strict=True)):
        count = len(lines) // 2
        for part, color in ((lines[:count], SAMPLE_COLOR), (lines[count:], OTHER_COLOR)):
            axes.add_collection(LineCollection(list(part), colors=color, linewidths=0.6, alpha=0.8))
        if len(points):
            scatter(axes, points[i], INK, scale=0.4)
        shown = points[i] if len(points) else lines.reshape(-1, 2)
        low, high = np.quantile(shown[np.isfinite(shown).all(1)], [0.03, 0.97], axis=0)  # a few lines may go very far
        middle, half = (low + high) / 2, 0.8 * max((high - low).max(), 1e-6)
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), **EQUAL)
        axes.set_title(title)
        axes.grid(False)
    return figure


@styled
def log_densities(log_prob: Mapping[str, np.ndarray], log_det: np.ndarray) -> Figure:
    """Histograms of the log densities of several sets of rows, and of the log determinants of the Jacobian, in nats.

    Args:
        log_prob: log p(x) (n,) by the name of the set.
        log_det: log |det dz/dx| (n,).

    Raises:
        ValueError: if a set has no finite value.
    """
    every = np.concatenate([*log_prob.values()])
    if not np.isfinite(log_det).any() or not all(np.isfinite(values).any() for values in log_prob.values()):
        raise ValueError("expected finite log densities and log determinants, got none")
    figure = canvas(2.8)
    left, right = figure.subplots(1, 2)
    lowest, highest = frame(every)
    middle, *quarters = np.quantile(every[np.isfinite(every)], [0.5, 0.25, 0.75])
    edges = np.linspace(max(lowest, middle - MAX_QUARTILE_RANGES * (quarters[1] - quarters[0])), highest, 41)
    for (name, values), color in zip(log_prob.items(), (DATA_COLOR, SAMPLE_COLOR, OTHER_COLOR), strict=False):
        counts = np.histogram(values[np.isfinite(values)], edges)[0]
        left.stairs(counts / len(values), edges, fill=True, alpha=0.45, color=color, label=name)
        mean = float(np.mean(values[np.isfinite(values)]))
        if mean >= edges[0]:
            left.axvline(mean, color=color, **DASHED)
    left.set(xlabel="log p(x), nats", ylabel="share of rows")
    right.hist(log_det[np.isfinite(log_det)], 40, range=frame(log_det), color=SAMPLE_COLOR)
    right.set(xlabel="log |det dz/dx|, nats", ylabel="number of rows")
    legend(figure, left)
    below = {name: float(np.mean(~(values >= edges[0]))) for name, values in log_prob.items()}
    parts = [f"{percent(share)} of the {name} rows" for name, share in below.items() if share]
    note(figure, f"{' and '.join(parts)} lie below the frame" if parts else "")
    return figure


@styled
def base_space(z: np.ndarray) -> Figure:
    """The norms of data in the base space beside their distribution under N(0, I), and quantiles of each coordinate.

    The norms of N(0, I) follow a chi distribution with d degrees of freedom. If z follows the base, the quantiles of
    each coordinate are on the diagonal. The coordinate with the largest Kolmogorov-Smirnov distance is colored; of more
    than 64 coordinates, evenly spaced ones are shown.

    Args:
        z: rows (n, d) in the base space.

    Raises:
        ValueError: if z is not (n, d), is empty or has a value that is not finite.
    """
    if z.ndim != 2 or 0 in z.shape or not np.isfinite(z).all():
        raise ValueError(f"expected finite rows z of shape (n, d), not empty, got {z.shape}")
    figure = canvas(3.1)
    left, right = figure.subplots(1, 2)
    norms, distribution = np.linalg.norm(z, axis=1), chi(z.shape[1])
    ends = (
        min(norms.min(), distribution.ppf(0.001)),
        min(max(np.quantile(norms, 0.995), distribution.ppf(0.999)), 3 * distribution.ppf(0.999)),
    )
    edges = np.linspace(*ends, 41)
    shares = np.histogram(norms, edges)[0] / len(norms) / np.diff(edges)
    left.stairs(shares, edges, fill=True, color=SAMPLE_COLOR, alpha=0.6, label="data in the base space")
    places = np.linspace(*ends, 200)
    left.plot(places, distribution.pdf(places), color=INK, label="base")
    left.set(xlabel="|z|", ylabel="density")
    left.legend(fontsize=7.5)
    levels = (np.arange(200) + 0.5) / 200
    there, here = norm.ppf(levels), np.quantile(z, levels, axis=0).T
    worst = max(range(z.shape[1]), key=lambda j: kstest(z[:, j], norm.cdf).statistic)
    shown = (
        np.unique(np.linspace(0, z.shape[1] - 1, MAX_LINES).round().astype(int))
        if z.shape[1] > MAX_LINES
        else slice(None)
    )
    right.add_collection(
        LineCollection([np.stack([there, q], axis=1) for q in here[shown]], colors=DATA_COLOR, linewidths=0.7)
    )
    right.plot(there, here[worst], color=OTHER_COLOR, linewidth=1.2, label=f"z[{worst}], the most different")
    right.axline((0, 0), slope=1, color=INK, zorder=3, **DASHED)
    limits = max(min(-3.0, here.min()), -MAX_SD), min(max(3.0, here.max()), MAX_SD)
    right.set(xlabel="quantiles of N(0, 1)", ylabel="quantiles of a coordinate of z", xlim=(-3, 3), ylim=limits)
    right.legend(fontsize=7.5, loc="upper left")
    if far := float(np.mean((norms > ends[1]) | (np.abs(z) > MAX_SD).any(axis=1))):
        note(figure, f"{percent(far)} of the rows lie outside the frames")
    return figure
