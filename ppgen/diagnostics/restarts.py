"""Whether restarts agree: R-hat with each restart a chain."""

from typing import Any

import numpy as np
import xarray as xr

from ppgen.utils.arviz_versions import group
from ppgen.utils.arviz_versions import rhat as rank_rhat

__all__ = ["rhat"]


def rhat(idata: Any, *, of: str = "posterior") -> xr.Dataset:
    """Rank-normalized split R-hat across restarts (Vehtari et al. 2021), of each variable of a group.

    Draws of one guide are independent, so within a chain there is nothing to converge: all of R-hat is what restarts
    disagree about. Of one chain it is therefore vacuous, NaN, and the attribute "rhat" says so. Near one it says that
    restarts ended alike, and not that they ended at the posterior: see k-hat for that.

    Args:
        idata: what `to_arviz` gives.
        of: the group, "posterior" or "posterior_resampled".

    Raises:
        ValueError: if there is no such group.
    """
    found = group(idata, of)
    if found is None:
        raise ValueError(
            f"rhat: no group {of!r}: programs without latents have none, and see the attribute 'resampled'"
        )
    if found.sizes["chain"] > 1:
        return rank_rhat(found).assign_attrs(rhat=f"across {found.sizes['chain']} restarts")
    empty = found.isel(chain=0, draw=0, drop=True).map(lambda value: xr.full_like(value, np.nan, dtype=float))
    return empty.assign_attrs(rhat="vacuous: one restart has nothing to be compared with; fit with restarts=4, say")
