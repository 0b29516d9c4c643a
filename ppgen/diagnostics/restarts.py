"""Whether restarts agree: R-hat, with each restart as a chain."""

from typing import Any

import numpy as np
import xarray as xr

from ppgen.utils.arviz_versions import group
from ppgen.utils.arviz_versions import rhat as rank_rhat

__all__ = ["rhat"]


def rhat(idata: Any, *, of: str = "posterior") -> xr.Dataset:
    """Rank-normalized split R-hat across restarts, of each variable of a group.

    Draws of one guide are independent, so there is nothing to converge within a chain, and R-hat measures only how much
    the restarts differ. It is NaN for a single restart. If it is close to one, the restarts agree; whether they agree
    on the posterior is a question for k-hat (Vehtari et al. 2021, https://doi.org/10.1214/20-BA1221).

    Args:
        idata: the result of `to_arviz`.
        of: the group, "posterior" or "posterior_resampled".

    Returns:
        R-hat of each variable, without chains and draws; the attribute "rhat" says how many restarts were compared.

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
    return empty.assign_attrs(rhat="undefined: there is one restart, and nothing to compare it with; use restarts=4")
