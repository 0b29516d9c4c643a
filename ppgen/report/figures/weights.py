"""Importance weights of a guide's draws: how heavy their tail is, and where in the posterior they lie."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from ppgen.posterior.importance import KHAT_USABLE
from ppgen.report.figures.style import DASHED, INK, MUTED, PALETTE, canvas, legend, note, panels, shorten, styled

__all__ = ["moved", "weight_tail"]

BINS = 20
LIGHT = 1e-3  # equal shares below which weights are not drawn


@styled
def weight_tail(log_weights: np.ndarray, log_smoothed: np.ndarray, pareto_k: float) -> Figure:
    """Left the heaviest weights, in units of an equal share, right the share of all weight that they carry.

    A tail of shape k falls with the slope -k on the left, where the slope .7 is dashed. Few draws that carry most of
    the weight are those that came where the guide hardly draws, and the posterior is.

    Args:
        log_weights: (K,), in nats, of any normalization.
        log_smoothed: (K,), their tail replaced by the Pareto law that was fitted to it; normalized.
        pareto_k: the shape of that law.

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
    seen = shares > 0
    left.plot(share[seen], shares[seen], ".", color=PALETTE[0], markersize=3, label="weights")
    left.plot(share[:tail], np.exp(smoothed[:tail]) * count, color=PALETTE[1], linewidth=1.4, label="smoothed tail")
    start = np.exp(smoothed[tail]) * count
    left.plot(
        share[:tail], start * (share[:tail] / share[tail]) ** -KHAT_USABLE, color=INK, label=f"slope {KHAT_USABLE}", **DASHED
    )
    left.set(xscale="log", yscale="log", xlabel="share of draws, the heaviest first", ylabel="weight, in equal shares")
    left.set_ylim(max(shares[seen].min(), LIGHT) / 1.5, min(left.get_ylim()[1], 2 * count))
    left.set_title(f"k-hat {pareto_k:.2f}")
    right.plot(share, np.cumsum(np.exp(smoothed)), color=PALETTE[0])
    right.plot(share, share, color=INK, **DASHED)
    right.set(xscale="log", ylim=(0, 1.03), xlabel="share of draws, the heaviest first", ylabel="share of all weight")
    right.set_title(f"{count**2 / np.square(shares).sum():.0f} effective draws of {count}")
    legend(figure, left)
    return figure


@styled
def moved(entries: Mapping[str, np.ndarray], weights: np.ndarray, *, of: int | None = None) -> Figure:
    """The weight that falls on each twentieth of the guide's draws, in order of one entry of the latents: a rank plot.

    One throughout where the guide's marginal law is the posterior's. High at both ends, the guide is too narrow; low
    there, too wide; a slope, and it lies beside. The band is of two deviations of weights that do not heed the entry.

    Args:
        entries: draws (K,) by name.
        weights: (K,), which sum to one.
        of: how many entries there are, of which these are shown.

    Raises:
        ValueError: for no entries, or weights that do not sum to one.
    """
    weights = np.asarray(weights, dtype=float)
    if not entries or not np.isclose(weights.sum(), 1.0):
        raise ValueError(f"expected entries and weights that sum to one, got {len(entries)} and {weights.sum()}")
    count = len(weights)
    noise = 2 * np.sqrt(BINS * max(0.0, np.square(weights).sum() - 1 / count))  # of sums of count / BINS weights each
    edges = np.linspace(0, 1, BINS + 1)
    figure, grid = panels(len(entries), across=3, height=1.75)
    for axes, (name, z) in zip(grid, entries.items(), strict=True):
        ranks = (rankdata(z) - 0.5) / count
        heights = np.histogram(ranks, edges, weights=weights)[0] * BINS
        axes.axhspan(max(0.0, 1 - noise), 1 + noise, color=MUTED, alpha=0.18, linewidth=0)
        axes.axhline(1.0, color=INK, **DASHED)
        axes.stairs(heights, edges, color=PALETTE[0], fill=True, alpha=0.35)
        axes.stairs(heights, edges, color=PALETTE[0])
        spread, at = z.std() or 1.0, weights @ z
        shift, ratio = (at - z.mean()) / spread, np.sqrt(weights @ np.square(z - at)) / spread
        axes.set_title(f"{shorten(name, 26)}\nmean {shift:+.2f} sd, sd x {ratio:.2f}", fontsize=8.5)
        axes.set(xlim=(0, 1), ylim=(0, max(2.0, 1.15 * heights.max())))
    for axes in grid[::3]:
        axes.set_ylabel("weight")
    for axes in grid[-3:]:
        axes.set_xlabel("rank")
    some = of is not None and of > len(entries)
    note(figure, f"{len(entries)} of {of} entries, those that weights move most" if some else "")
    return figure
