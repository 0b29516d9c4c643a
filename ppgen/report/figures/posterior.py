"""The posterior's marginal densities, and k-hat of each datum."""

import warnings
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.posterior.importance import KHAT_GOOD, KHAT_USABLE
from ppgen.report.figures.style import DASHED, INK, PALETTE, canvas, legend, note, panels, percent, styled
from ppgen.utils.arviz_versions import arviz, group

__all__ = ["components", "khat", "posterior"]

MAX_PANELS = 6


@styled
def khat(values: np.ndarray) -> Figure:
    """A histogram of the Pareto k-hat of each datum, with the shares up to 0.5, up to 0.7 and above.

    k-hat is the tail shape of the importance weights p(x, z) / q(z | x). Below 0.5 their variance is finite. Up to 0.7
    averages over them converge at a practical rate. Above, or if k-hat could not be estimated (NaN), they are
    unreliable (Vehtari et al. 2024, Pareto smoothed importance sampling, https://arxiv.org/abs/1507.02646).

    Args:
        values: k-hat of the data, of any shape.

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
    """Marginal densities of up to 6 components of the latents: those of global latents first, then those of datum 0.

    A single chain is drawn by ArviZ's `plot_posterior`, with its mean and 94% interval; several chains are drawn by
    `plot_kde`, a density each. ArviZ 1.x has neither, and they are histograms.

    Args:
        idata: an InferenceData or DataTree whose group "posterior" has the dimensions chain, draw, and any others.

    Raises:
        ValueError: if that group has no variable.
    """
    latents = group(idata, "posterior")
    draws = {} if latents is None else components(latents)
    if not draws:
        raise ValueError("expected a posterior of at least one variable, got none")
    shown = list(draws.items())[:MAX_PANELS]
    figure, grid = panels(len(shown), across=2, height=1.8)
    for axes, (name, of_chains) in zip(grid, shown, strict=True):
        _marginal(axes, of_chains)
        axes.set_title(name, fontsize=9.5)
        axes.set_yticks([])
    if (chains := len(shown[0][1])) > 1:
        handles = [Line2D([], [], color=PALETTE[i % len(PALETTE)], label=f"chain {i}") for i in range(chains)]
        figure.legend(handles=handles, loc="outside upper left", ncols=8)
    if len(draws) > len(shown):
        note(figure, f"{len(shown)} of {len(draws)} components")
    return figure


def components(latents: xr.Dataset, *, all_data: bool = False) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of each scalar component of the latents, by name, with its coordinates in brackets.

    Args:
        latents: the group "posterior".
        all_data: whether to include the latents of all data, not only those of the first datum.
    """
    found = {}
    for name, variable in sorted(latents.data_vars.items(), key=lambda item: "data" in item[1].dims):
        suffix = ""
        if "data" in variable.dims and not all_data:
            variable, suffix = variable.isel(data=0), ", datum 0"
        draws = variable.transpose("chain", "draw", ...)
        labels = [draws[d].values if d in draws.coords else range(draws.sizes[d]) for d in draws.dims[2:]]
        for index in np.ndindex(draws.shape[2:]):
            at = ", ".join(str(values[i]) for values, i in zip(labels, index, strict=True))
            found[f"{name}[{at}]{suffix}" if index else f"{name}{suffix}"] = draws.values[:, :, *index]
    return found


def _marginal(axes: Axes, draws: np.ndarray) -> None:
    """The density of draws (chain, draw)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 calls what matplotlib 3.11 deprecates
        az = arviz()
        smooth = (
            hasattr(az, "plot_posterior")
            and hasattr(az, "plot_kde")
            and np.isfinite(draws).all()
            and np.ptp(draws, axis=1).all()
        )
        if smooth and len(draws) == 1:
            az.plot_posterior({"draws": draws}, ax=axes, textsize=8)
            for text in axes.texts:  # readable over the curve
                text.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1})
            return
        for number, values in enumerate(draws):
            color = PALETTE[number % len(PALETTE)]
            if smooth:
                az.plot_kde(values, ax=axes, plot_kwargs={"color": color})
            else:
                axes.hist(values[np.isfinite(values)], 30, histtype="step", density=True, color=color)
