"""The posterior as ArviZ draws it, and how far importance sampling from the guide can be trusted."""

import warnings
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.posterior.importance import KHAT_GOOD, KHAT_USABLE
from ppgen.report.figures.style import DASHED, INK, PALETTE, canvas, legend, note, panels, percent, styled

__all__ = ["entries", "khat", "posterior"]

LIMIT = 6  # components drawn


@styled
def khat(values: np.ndarray) -> Figure:
    """The Pareto k-hat of each datum as a histogram, and the shares up to 0.5, up to 0.7 and above.

    k-hat is the shape of the tail of the importance weights p(x, z) / q(z | x). Below 0.5 their variance is
    finite; up to 0.7 averages over them still converge at a practical rate; above, or where it could not be
    estimated (NaN), they are not to be trusted (Vehtari et al., Pareto smoothed importance sampling, 2024).

    Raises:
        ValueError: if there are no values.
    """
    values = np.asarray(values, dtype=float).ravel()
    if not len(values):
        raise ValueError("expected a k-hat for each datum, got none")
    low, high = -0.5, 1.5
    edges = np.linspace(low, high, 41).tolist()  # 0.05 wide; the bounds are among them
    good, usable = values <= KHAT_GOOD, (values > KHAT_GOOD) & (values <= KHAT_USABLE)
    figure = canvas(2.8)
    axes = figure.add_subplot(xlabel=f"k-hat, clipped to {low} .. {high}", ylabel="number of data")
    for part, color, text in (
        (good, PALETTE[2], f"good (up to {KHAT_GOOD})"),
        (usable, PALETTE[4], f"usable (up to {KHAT_USABLE})"),
        (~good & ~usable, PALETTE[1], "not to be trusted"),
    ):
        shown = np.clip(np.nan_to_num(values[part], nan=high), low + 1e-9, high)
        shown = np.nextafter(shown, -np.inf)  # a bin is then (a, b], as the classes are
        axes.hist(shown, edges, color=color, label=f"{percent(part.mean())} {text}")
    for bound in (KHAT_GOOD, KHAT_USABLE):
        axes.axvline(bound, color=INK, **DASHED)
    legend(figure, axes)
    return figure


@styled
def posterior(idata: Any) -> Figure:
    """Draws of up to 6 scalar components of the posterior, those of global latents first, then datum 0's.

    One chain is drawn by ArviZ's `plot_posterior`, with its mean and 94% interval; several chains, which may
    disagree, as a density each by `plot_kde`. Under ArviZ 1.x, which has neither, they are histograms.

    Args:
        idata: an InferenceData or DataTree with a group "posterior" of dimensions chain, draw, and any others.

    Raises:
        ValueError: if that group holds no variable.
    """
    components = list(entries(idata["posterior"]).items())
    if not components:
        raise ValueError("expected a posterior of at least one variable, got none")
    shown = components[:LIMIT]
    figure, grid = panels(len(shown), across=2, height=1.8)
    for axes, (name, draws) in zip(grid, shown, strict=True):
        _marginal(axes, draws)
        axes.set_title(name, fontsize=9.5)
        axes.set_yticks([])
    if len(shown[0][1]) > 1:
        chains = [Line2D([], [], color=PALETTE[i % len(PALETTE)], label=f"chain {i}") for i in range(len(shown[0][1]))]
        figure.legend(handles=chains, loc="outside upper left", ncols=8)
    if len(components) > len(shown):
        note(figure, f"{len(shown)} of {len(components)} components")
    return figure


def entries(group: Any, *, every: bool = False) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of each number of the latents by name, with coordinates in its brackets where there are any.

    Args:
        group: the posterior.
        every: those of all data; those of the first alone if left out, after what is global.
    """
    found = {}
    for name, variable in sorted(group.data_vars.items(), key=lambda item: "data" in item[1].dims):
        where = ""
        if "data" in variable.dims and not every:
            variable, where = variable.isel(data=0), ", datum 0"
        draws = variable.transpose("chain", "draw", ...)
        labels = [draws[d].values if d in draws.coords else range(draws.sizes[d]) for d in draws.dims[2:]]
        for index in np.ndindex(draws.shape[2:]):
            at = ", ".join(str(values[i]) for values, i in zip(labels, index, strict=True))
            found[f"{name}[{at}]{where}" if index else f"{name}{where}"] = draws.values[:, :, *index]
    return found


def _marginal(axes: Axes, draws: np.ndarray) -> None:
    """The density of draws (chain, draw)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0, and calls what matplotlib 3.11 deprecates
        import arviz as az

        smooth = (
            hasattr(az, "plot_posterior")
            and hasattr(az, "plot_kde")
            and np.isfinite(draws).all()
            and np.ptp(draws, axis=1).all()
        )
        if smooth and len(draws) == 1:
            az.plot_posterior({"draws": draws}, ax=axes, textsize=8)
            for text in axes.texts:  # legible where they lie on the curve
                text.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1})
            return
        for number, values in enumerate(draws):
            color = PALETTE[number % len(PALETTE)]
            if smooth:
                az.plot_kde(values, ax=axes, plot_kwargs={"color": color})
            else:
                axes.hist(values[np.isfinite(values)], 30, histtype="step", density=True, color=color)
