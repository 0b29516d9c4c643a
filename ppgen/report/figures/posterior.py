"""The posterior as ArviZ draws it, and how far importance sampling from the guide can be trusted."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppgen.report.figures.style import MUTED, PALETTE, canvas, panels, percent, styled

__all__ = ["khat", "posterior"]

GOOD, USABLE = 0.5, 0.7
LIMIT = 6  # components drawn


@styled
def khat(values: np.ndarray) -> Figure:
    """The Pareto k-hat of each datum as a histogram, with the shares below 0.5, below 0.7 and above.

    k-hat estimates the shape of the tail of the importance weights p(x, z) / q(z | x). Below 0.5 their variance is
    finite and the guide is close to the posterior; up to 0.7 averages over them are still usable; above, they are
    not (Vehtari et al., Pareto smoothed importance sampling, 2024; Yao et al., Yes, but did it work?, 2018).

    Raises:
        ValueError: if there are no values.
    """
    values = np.asarray(values, dtype=float).ravel()
    if not len(values):
        raise ValueError("expected a k-hat for each datum, got none")
    low, high = -0.5, 1.5
    edges = np.linspace(low, high, 41)
    clipped = np.clip(np.nan_to_num(values, nan=high, posinf=high, neginf=low), low, high)
    groups = {
        f"up to {GOOD}: the guide is close": (values <= GOOD, PALETTE[2]),
        f"up to {USABLE}: usable": ((values > GOOD) & (values <= USABLE), PALETTE[4]),
        f"above {USABLE}: not to be trusted": (~(values <= USABLE), PALETTE[1]),
    }
    figure = canvas(2.8)
    axes = figure.add_subplot(xlabel="Pareto k-hat", ylabel="data")
    ...
    return figure
