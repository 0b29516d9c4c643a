"""How a fit went: the loss and its terms by step.

A chain's history holds arrays of shape (steps,), "loss" and each term by its name; step s is element s - 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppgen.report.figures.style import PALE, PALETTE, canvas, styled
from ppgen.result import Chain

__all__ = ["loss_curves", "term_breakdown"]

SPIKES = 0.97  # the frame reaches up to this quantile of the losses


@styled
def loss_curves(chains: Sequence[Chain], *, unit: str = "nats per datum") -> Figure:
    """The loss of each chain by step: every value thin, a moving average thick, held-out values as points.

    The frame leaves out the highest 3% of the values, which early in a run can be many times the rest.

    Raises:
        ValueError: if there are no chains, or one that took no step.
    """
    if not chains or not all(len(chain.history["loss"]) for chain in chains):
        raise ValueError(f"loss_curves: expected chains of at least one step, got {len(chains)} chains")
    figure = canvas(3.2)
    axes = figure.add_subplot()
    seen = []
    for number, chain in enumerate(chains):
        name = "training" if len(chains) == 1 else f"chain {number}"
        loss = np.asarray(chain.history["loss"], dtype=float)
        seen.append(loss)
        _curve(axes, loss, PALETTE[number % len(PALETTE)], name)
        if len(chain.validation.get("loss", ())):
            held_out = np.asarray(chain.validation["loss"], dtype=float)
            seen.append(held_out)
            axes.plot(
                chain.validation["step"],
                held_out,
                linestyle="none",
                marker="o",
                markersize=3.2,
                color=PALETTE[number % len(PALETTE)] if len(chains) > 1 else PALETTE[1],
                markeredgecolor="white",
                markeredgewidth=0.5,
                label="held out" if len(chains) == 1 else None,
                zorder=3,
            )
    cut = _limit(axes, np.concatenate(seen))
    axes.set(xlabel="step", ylabel=f"loss ({unit})")
    if len(chains) > 1 and any(len(chain.validation.get("loss", ())) for chain in chains):
        axes.plot([], [], linestyle="none", marker="o", markersize=3.2, color=PALE, label="held out")
    axes.legend(loc="upper right", ncols=1 + len(chains) // 6)
    if cut:
        axes.set_title(f"{cut} of {sum(map(len, seen))} values lie above the frame", color=PALE, fontsize=8)
    return figure


@styled
def term_breakdown(history: Mapping[str, np.ndarray], *, unit: str = "nats per datum") -> Figure:
    """Each term of the loss by step, weights included, so that the panels add up to the loss.

    Raises:
        ValueError: if the history is empty.
    """
    terms = {name: values for name, values in history.items() if name != "loss"} or dict(history)
    if not terms or not all(map(len, terms.values())):
        raise ValueError(f"term_breakdown: expected a history of steps, got {sorted(history)}")
    figure = canvas(0.5 + 1.35 * len(terms))
    grid = figure.subplots(len(terms), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values), colour in zip(grid, terms.items(), PALETTE * len(terms), strict=False):
        values = np.asarray(values, dtype=float)
        _curve(axes, values, colour, name)
        _limit(axes, values[np.isfinite(values)])
        axes.set_title(name)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    grid[-1].set_xlabel("step")
    figure.supylabel(f"value ({unit})", fontsize=9)
    return figure


def _curve(axes: Axes, values: np.ndarray, colour: str, label: str) -> None:
    steps = np.arange(1, len(values) + 1)
    window = max(1, len(values) // 40)
    if window == 1:
        axes.plot(steps, values, color=colour, linewidth=1.5, label=label)
        return
    axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.35)
    axes.plot(
        steps, _smooth(values, window), color=colour, linewidth=1.6, label=f"{label}, mean of {window} steps"
    )


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over the finite values of a centred window, cut short at the ends."""
    finite, box = np.isfinite(values), np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), box, mode="same")
    count = np.convolve(finite.astype(float), box, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _limit(axes: Axes, values: np.ndarray) -> int:
    """Sets the vertical frame; returns how many of the values lie above it."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0
    low, high = values.min(), np.quantile(values, SPIKES)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)
    return int((values > high + room).sum())
