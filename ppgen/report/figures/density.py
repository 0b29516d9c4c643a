"""Densities on the plane."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ppgen.report.figures.style import EQUAL, panels, styled

__all__ = ["densities"]


@styled
def densities(
    side: np.ndarray, values: Mapping[str, np.ndarray], *, columns: Sequence[str] = ("x[0]", "x[1]")
) -> Figure:
    """Heat maps of several densities on one color scale.

    Args:
        side: the coordinates (m,) of the grid along either axis.
        values: the densities (m, m) on the grid by name; the first index is that of x[0].
        columns: the labels of the axes.

    Raises:
        ValueError: if there are no densities, or one has another shape.
    """
    shapes = [np.shape(density) for density in values.values()]
    if not shapes or any(shape != (len(side), len(side)) for shape in shapes):
        raise ValueError(f"expected densities of shape {(len(side), len(side))}, at least one, got {shapes}")
    figure, axes = panels(len(values), across=2, height=3.2)
    top = max(float(np.nanmax(density)) for density in values.values())
    for axis, (name, density) in zip(axes, values.items(), strict=True):
        heat = axis.pcolormesh(side, side, np.transpose(density), vmin=0, vmax=top, cmap="viridis", rasterized=True)
        axis.set(title=name, xlabel=columns[0], ylabel=columns[1], **EQUAL)
        axis.grid(False)
    figure.colorbar(heat, ax=axes, label="density", shrink=0.8)
    return figure
