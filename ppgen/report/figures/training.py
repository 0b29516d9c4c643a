"""The course of training: the loss, its terms, and the evidence lower bound by step.

The history of a chain has arrays of shape (steps,), "loss" and each term by its name; step s is element s - 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppgen.report.figures.style import DASHED, INK, MUTED, PALETTE, canvas, legend, note, styled
from ppgen.training.result import Chain

__all__ = ["elbo_trace", "loss_curves", "term_breakdown"]

SHOWN = 0.97  # the quantile of the values up to which the frame extends
MAX_DISTANCE = 5.0  # heights of the best chain's frame, below which another chain is left out of it


@styled
def loss_curves(chains: Sequence[Chain], *, unit: str = "nats per datum") -> Figure:
    """The loss of each chain by step: a thin line, a thick moving average, and points for held-out data.

    The frame leaves out the largest 3% of the values, which can be very large early in a run, but has at least half of
    the held-out ones, which may all be large.

    Args:
        chains: the chains.
        unit: the unit of the loss.

    Raises:
        ValueError: if there are no chains, or one of them has no step.
    """
    counts = [len(chain.history["loss"]) for chain in chains]
    if not all(counts) or not counts:
        raise ValueError(f"expected chains of at least one step each, got chains of {counts} steps")
    figure = canvas(3.5)
    axes = figure.add_subplot(xlabel="step", ylabel=f"loss ({unit})")
    several = len(chains) > 1
    values = []
    for number, chain in enumerate(chains):
        color = PALETTE[number % len(PALETTE)]
        values += [chain.history["loss"], chain.validation.get("loss", np.empty(0))]
        _curve(axes, chain.history["loss"], color, f"chain {number}" if several else "training")
        if len(values[-1]):
            points = axes.plot(chain.validation["step"], values[-1], "o", markersize=4, zorder=3)[0]
            points.set(color=color if several else PALETTE[1], markeredgecolor="white", markeredgewidth=0.5)
    if any(len(part) for part in values[1::2]):
        axes.plot([], [], "o", markersize=4, color=MUTED if several else PALETTE[1], label="held out")
    above = _fit_frame(axes, np.concatenate(values), held_out=np.concatenate(values[1::2]))
    axes.xaxis.set_major_locator(_steps())
    legend(figure, axes)
    notes = [f"thick: means of {_window(max(counts))} steps"] if _window(max(counts)) > 1 else []
    if above:
        notes.append(f"{above} of {sum(map(len, values))} values lie above the frame")
    note(figure, "; ".join(notes))
    return figure


@styled
def elbo_trace(
    traces: np.ndarray,
    level: tuple[float, float, float] | None = None,
    *,
    best: int = 0,
    unit: str = "nats per datum",
    name: str = "log p(x)",
) -> Figure:
    """The evidence lower bound (ELBO) of each chain by step, and the log evidence, which an exact guide reaches.

    The frame contains the second half of the best chain, and chains that end near it, because the ELBO at the start is
    often many times as far from the log evidence as at the end.

    Args:
        traces: the ELBO (chains, steps), NaN after the end of a chain.
        level: the log evidence, and the ends of its interval.
        best: the chain that the level belongs to.
        unit: the unit of the ELBO.
        name: the name of the level.

    Raises:
        ValueError: if the best chain has no finite value.
    """
    chains = [values[: np.flatnonzero(np.isfinite(values)).max(initial=-1) + 1] for values in np.asarray(traces, float)]
    if not len(chains[best]):
        raise ValueError(f"expected an evidence bound by step, got none that is finite of chain {best}")
    figure = canvas(3.2)
    axes = figure.add_subplot(xlabel="step", ylabel=f"evidence lower bound ({unit})")
    for number, values in enumerate(chains):
        if not len(values):
            continue
        _curve(
            axes,
            values,
            PALETTE[number % len(PALETTE)],
            f"chain {number}" if len(chains) > 1 else "evidence lower bound",
        )
    kept = [values[np.isfinite(values)] for values in (chains[best][len(chains[best]) // 2 :], chains[best])]
    low, high = np.quantile(kept[0] if len(kept[0]) else kept[1], [1 - SHOWN, SHOWN])
    if level is not None and np.isfinite(level).all():
        axes.axhspan(*level[1:], color=INK, alpha=0.15, linewidth=0)
        axes.axhline(level[0], color=INK, label=name, **DASHED)
        low, high = min(low, level[1]), max(high, level[2])
    tails = [values[-max(1, len(values) // 10) :] for values in chains]
    ends = [values[np.isfinite(values)].mean() if np.isfinite(values).any() else -np.inf for values in tails]
    low = min([low, *(end for end in ends if end > low - MAX_DISTANCE * (high - low))])
    room = 0.2 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)
    axes.xaxis.set_major_locator(_steps())
    legend(figure, axes)
    below = [str(number) for number, end in enumerate(ends) if end < low]
    note(figure, f"chains that ended below the frame: {', '.join(below)}" if below else "")
    return figure


@styled
def term_breakdown(history: Mapping[str, np.ndarray], *, unit: str = "nats per datum") -> Figure:
    """Each term of the loss by step, including its weight, so that the panels add up to the loss.

    Args:
        history: arrays (steps,) by name; "loss" is left out if there are others.
        unit: the unit of the loss.

    Raises:
        ValueError: if the history is empty.
    """
    terms = {name: values for name, values in history.items() if name != "loss"} or dict(history)
    if not terms or not all(map(len, terms.values())):
        raise ValueError(f"expected a history of at least one step, got { ({k: len(v) for k, v in terms.items()}) }")
    figure = canvas(0.5 + 1.35 * len(terms))
    grid = figure.subplots(len(terms), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, name) in enumerate(zip(grid, terms, strict=True)):
        _curve(axes, terms[name], PALETTE[number % len(PALETTE)])
        _fit_frame(axes, terms[name])
        axes.set_title(name)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    grid[-1].set_xlabel("step")
    grid[-1].xaxis.set_major_locator(_steps())
    figure.supylabel(f"value ({unit})", fontsize=9)
    return figure


def _curve(axes: Axes, values: np.ndarray, color: str, label: str | None = None) -> None:
    """Draws the values by step as a thin line, and their moving average as a thick one."""
    values, window = np.asarray(values, dtype=float), _window(len(values))
    steps = np.arange(1, len(values) + 1)
    if window > 1:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35)
    axes.plot(steps, _smooth(values, window), color=color, linewidth=1.6, label=label)


def _window(steps: int) -> int:
    """The width of the moving average, in steps."""
    return min(max(1, steps // 40), 500)


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values in a centered window, which is shorter at the ends."""
    finite, box = np.isfinite(values), np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), box, mode="same")
    count = np.convolve(finite.astype(float), box, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _fit_frame(axes: Axes, values: np.ndarray, held_out: Sequence[float] | np.ndarray = ()) -> int:
    """Sets the vertical limits, so that half of the held-out values are within; returns how many values are above."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0
    low, high = float(values.min()), float(np.quantile(values, SHOWN))
    if len(found := np.asarray(held_out)[np.isfinite(held_out)]):
        high = max(high, float(np.median(found)))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)
    return int((values > high + room).sum())


def _steps() -> MaxNLocator:
    return MaxNLocator(7, integer=True, steps=[1, 2, 5, 10])
