"""Whether restarts ended at one place."""

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppgen.report.figures.style import PALE, PALETTE, note, panels, shorten, styled

__all__ = ["restarts"]

QUANTILES = (0.03, 0.25, 0.5, 0.75, 0.97)


@styled
def restarts(
    entries: Mapping[str, np.ndarray],
    *,
    r_hat: Mapping[str, float] | None = None,
    counted: Collection[int] | None = None,
    of: int | None = None,
) -> Figure:
    """A forest: the median of each restart's draws and their central 50% and 94%, an entry of the latents a panel.

    Args:
        entries: draws (chains, S) by name.
        r_hat: of the entries, for their titles.
        counted: the chains that R-hat is of; others are pale.
        of: how many entries there are, of which these are shown.

    Raises:
        ValueError: for no entries.
    """
    if not entries:
        raise ValueError("expected an entry of the latents at least, got none")
    chains = len(next(iter(entries.values())))
    figure, grid = panels(len(entries), across=3, height=0.85 + 0.17 * chains)
    for number, (axes, (name, draws)) in enumerate(zip(grid, entries.items(), strict=True)):
        for chain, values in enumerate(draws):
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            low, left, middle, right, high = np.quantile(values, QUANTILES)
            color = PALETTE[chain % len(PALETTE)] if counted is None or chain in counted else PALE
            axes.plot([low, high], [chain, chain], color=color, linewidth=1.2)
            axes.plot([left, right], [chain, chain], color=color, linewidth=3.2, solid_capstyle="butt")
            axes.plot(middle, chain, "o", color="white", markeredgecolor=color, markersize=4.5)
        found = "" if r_hat is None or name not in r_hat else f"\nR-hat {r_hat[name]:.3f}"
        axes.set_title(f"{shorten(name, 26)}{found}", fontsize=8.5)
        axes.set_ylim(chains - 0.5, -0.5)
        axes.set_yticks(range(chains), [str(chain) for chain in range(chains)] if number % 3 == 0 else [])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="y")
        if number % 3 == 0:
            axes.set_ylabel("restart")
    note(figure, "" if of is None or of <= len(entries) else f"{len(entries)} of {of} entries, those that differ most")
    return figure
