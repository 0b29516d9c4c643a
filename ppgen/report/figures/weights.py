"""Importance weights of a guide's draws: how heavy their tail is, and where the posterior has more mass."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from ppgen.posterior.importance import KHAT_USABLE
from ppgen.report.figures.style import DASHED, INK, MUTED, PALETTE, canvas, legend, note, panels, shorten, styled

__all__ = ["weight_tail", "weights_by_rank"]

BINS = 20
MIN_WEIGHT = 1e-3  # in equal shares; smaller weights are not drawn


@styled
def weight_tail(log_weights: np.ndarray, log_smoothed: np.ndarray, pareto_k: float) -> Figure:
    """The largest weights in units of an equal share (left), and the share of all weight that they carry (right).

    A tail of shape k is a line of slope -k on the left, where the dashed line has the slope -0.7. If few draws carry
    most of the weight, the posterior has mass where the guide rarely draws.

    Args:
        log_weights: log weights (K,), in nats, not necessarily normalized.
        log_smoothed: log weights (K,) after Pareto smoothing of their tail, normalized.
        pareto_k: the shape of the Pareto distribution.

    Raises:
        ValueError: if the smoothed weights are not finite, or not as many.
    """
    raw, smoothed = (np.asarray(part, dtype=float) for part in (log_weights, log_smoothed))
    if raw.ndim != 1 or raw.shape != smoothed.shape or not np.isfinite(np.exp(smoothed)).all():
        raise ValueError(f"expected log weights (K,) and as many smoothed, got {raw.shape} and {smoothed.shape}")
    count = len(raw)
    order = np.argsort(-raw)
    raw, smoothed = raw[order], smoothed[order]
    shares = np.exp(raw - raw[0]) / np.exp(raw - raw[0]).sum() * count
    tail = min(count // 5, int(3 * np.sqrt(count)))
    figure = canvas(2.9)
    left, right = figure.subplots(1, 2)
    share = (np.arange(count) + 1) / count
    positive = shares > 0
    left.plot(share[positive], shares[positive], ".", color=PALETTE[0], markersize=3, label="weights")
    left.plot(share[:tail], np.exp(smoothed[:tail]) * count, color=PALETTE[1], linewidth=1.4, label="smoothed tail")
    line = np.exp(smoothed[tail]) * count * (share[:tail] / share[tail]) ** -KHAT_USABLE
    left.plot(share[:tail], line, color=INK, label=f"slope -{KHAT_USABLE}", **DASHED)
    xlabel = "share of draws, largest weights first"
    left.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="weight / mean weight")
    left.set_ylim(max(shares[positive].min(), MIN_WEIGHT) / 1.5, min(left.get_ylim()[1], 2 * count))
    left.set_title(f"k-hat {pareto_k:.2f}")
    right.plot(share, np.cumsum(np.exp(smoothed)), color=PALETTE[0])
    right.plot(share, share, color=INK, **DASHED)
    right.set(xscale="log", ylim=(0, 1.03), xlabel=xlabel, ylabel="share of all weight")
    right.set_title(f"effective sample size {count**2 / np.square(shares).sum():.0f} of {count}")
    legend(figure, left)
    return figure


@styled
def weights_by_rank(draws: Mapping[str, np.ndarray], weights: np.ndarray, *, total: int | None = None) -> Figure:
    """The weight on each twentieth of the guide's draws, ordered by one component of the latents.

    It is one everywhere if the guide's marginal distribution is the posterior's. It is high at both ends if the guide
    is too narrow, low there if it is too wide, and increases or decreases if the guide is shifted. The band is two
    standard deviations wide for weights that are independent of the component.

    Args:
        draws: draws (K,) of the components, by name.
        weights: weights (K,) that sum to one.
        total: the number of components of which these are shown.

    Raises:
        ValueError: if there are no components, or the weights do not sum to one.
    """
    weights = np.asarray(weights, dtype=float)
    if not draws or not np.isclose(weights.sum(), 1.0):
        raise ValueError(f"expected components and weights that sum to one, got {len(draws)} and {weights.sum()}")
    count = len(weights)
    noise = 2 * np.sqrt(BINS * max(0.0, np.square(weights).sum() - 1 / count))  # of sums of count / BINS weights each
    edges = np.linspace(0, 1, BINS + 1)
    figure, grid = panels(len(draws), across=3, height=1.75)
    for axes, (name, z) in zip(grid, draws.items(), strict=True):
        ranks = (rankdata(z) - 0.5) / count
        heights = np.histogram(ranks, edges, weights=weights)[0] * BINS
        axes.axhspan(max(0.0, 1 - noise), 1 + noise, color=MUTED, alpha=0.18, linewidth=0)
        axes.axhline(1.0, color=INK, **DASHED)
        axes.stairs(heights, edges, color=PALETTE[0], fill=True, alpha=0.35)
        axes.stairs(heights, edges, color=PALETTE[0])
        sd, mean = z.std() or 1.0, weights @ z
        shift, ratio = (mean - z.mean()) / sd, np.sqrt(weights @ np.square(z - mean)) / sd
        axes.set_title(f"{shorten(name, 26)}\nmean {shift:+.2f} sd, sd x {ratio:.2f}", fontsize=8.5)
        axes.set(xlim=(0, 1), ylim=(0, max(2.0, 1.15 * heights.max())))
    for axes in grid[::3]:
        axes.set_ylabel("weight")
    for axes in grid[-3:]:
        axes.set_xlabel("rank")
    some = total is not None and total > len(draws)
    note(figure, f"{len(draws)} of {total} components, those that the weights move most" if some else "")
    return figure
