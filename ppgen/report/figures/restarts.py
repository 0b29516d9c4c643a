"""Whether restarts ended at the same place."""

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppgen.report.figures.style import PALE, PALETTE, note, panels, shorten, styled

__all__ = ["restart_intervals"]

QUANTILES = (0.03, 0.25, 0.5, 0.75, 0.97)


@styled
def restart_intervals(
    draws: Mapping[str, np.ndarray],
    *,
    r_hat: Mapping[str, float] | None = None,
    compared: Collection[int] | None = None,
    total: int | None = None,
) -> Figure:
    """A forest plot: the median of each restart's draws with central 50% and 94% intervals, a panel a component.

    Args:
        draws: draws (chains, S) of the components, by name.
        r_hat: r-hat of the components, for their titles.
        compared: the chains that R-hat compares; the others are pale.
        total: the number of components of which these are shown.

    Raises:
        ValueError: if there are no components.
    """
    if not draws:
        raise ValueError("expected at least one component of the latents, got none")
    chains = len(next(iter(draws.values())))
    figure, grid = panels(len(draws), across=3, height=0.85 + 0.17 * chains)
    for number, (axes, (name, of_chains)) in enumerate(zip(grid, draws.items(), strict=True)):
        for chain, values in enumerate(of_chains):
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            low, left, middle, right, high = np.quantile(values, QUANTILES)
            color = PALETTE[chain % len(PALETTE)] if compared is None or chain in compared else PALE
            axes.plot([low, high], [chain, chain], color=color, linewidth=1.2)
            axes.plot([left, right], [chain, chain], color=color, linewidth=3.2, solid_capstyle="butt")
            axes.plot(middle, chain, "o", color="white", markeredgecolor=color, markersize=4.5)
        remark = "" if r_hat is None or name not in r_hat else f"\nR-hat {r_hat[name]:.3f}"
        axes.set_title(f"{shorten(name, 26)}{remark}", fontsize=8.5)
        axes.set_ylim(chains - 0.5, -0.5)
        axes.set_yticks(range(chains), [str(chain) for chain in range(chains)] if number % 3 == 0 else [])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="y")
        if number % 3 == 0:
            axes.set_ylabel("restart")
    some = total is not None and total > len(draws)
    note(figure, f"{len(draws)} of {total} components, those that differ most" if some else "")
    return figure
