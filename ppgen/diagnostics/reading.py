"""Access to the groups that `to_arviz` returns, for the diagnostics that are computed from them."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.sites import did_you_mean
from ppgen.utils.arviz_versions import group

__all__ = [
    "SAMPLE_DIMS",
    "find_variable",
    "pool_chains",
    "randomized_pit",
    "read_attribute",
    "unconstrained_draws",
]

SAMPLE_DIMS = ("chain", "draw")


def read_attribute(idata: Any, name: str) -> str | None:
    """An attribute that `to_arviz` gives to all groups, such as the reason why there is no "density", or None."""
    groups = (group(idata, of) for of in ("observed_data", "posterior", "vi_stats"))
    return next((found.attrs[name] for found in groups if found is not None and name in found.attrs), None)


def unconstrained_draws(target: UnconstrainedLogDensity, posterior: xr.Dataset, chain: int) -> Tensor:
    """The draws (S, dim) of a chain in the target's unconstrained space.

    Args:
        target: the unconstrained log density, which has the order of the latents.
        posterior: the group "posterior".
        chain: the chain.
    """
    values = {name: torch.as_tensor(posterior[name].values[chain].copy()) for name in target.shapes}
    return target.unconstrain(values)


def find_variable(idata: Any, of: str, var_name: str | None, *, missing: str) -> xr.DataArray:
    """A variable of a group.

    Args:
        idata: the result of `to_arviz`.
        of: the group.
        var_name: the variable's name; not needed if the group has only one.
        missing: what the error says if there is no such group; the attribute "density" comes first if there is one.

    Raises:
        ValueError: if there is no such group; for an unknown name; for several variables and no name.
    """
    found = group(idata, of)
    if found is None or not found.data_vars:
        reason = read_attribute(idata, "density")
        raise ValueError(f"no group {of!r}: {'density: ' + reason if reason else missing}")
    names = [str(name) for name in found.data_vars]
    if var_name is None and len(names) > 1:
        raise ValueError(f"{of} has several variables: name one, var_name=; there are {', '.join(map(repr, names))}")
    if var_name is not None and var_name not in names:
        raise ValueError(f"{of} has no variable {var_name!r}; {did_you_mean(var_name, names)}")
    array = found[var_name or names[0]]
    return array.rename(sample="draw").expand_dims(chain=[0]) if "sample" in array.dims else array  # a single chain


def pool_chains(array: xr.DataArray, chain: int | None) -> np.ndarray:
    """The values (S, ...) of one chain, or of all chains one after another.

    Args:
        array: a variable with the dimensions "chain" and "draw".
        chain: the chain; all of them if None.

    Raises:
        ValueError: if there is no such chain.
    """
    known = [int(number) for number in array["chain"].values]
    if chain is not None and chain not in known:
        raise ValueError(f"chain: expected one of {known}, got {chain}")
    array = array if chain is None else array.sel(chain=[chain])
    values = array.transpose(*SAMPLE_DIMS, ...).values
    return values.reshape(-1, *values.shape[2:])


def randomized_pit(drawn: np.ndarray, observed: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """P(y' < y) + U P(y' = y) with U ~ U(0, 1): uniform if y has the distribution of y', continuous or discrete.

    Args:
        drawn: draws y' (S, ...).
        observed: observations y (...); the result is NaN where they are.
        weights: weights of the draws, of a shape that broadcasts to (S, ...), whose sum over draws is one.
        seed: the seed of U.
    """
    ties = np.random.default_rng(seed).uniform(size=observed.shape)
    below = np.where(drawn < observed, 1.0, np.where(drawn == observed, ties, 0.0))
    return np.where(np.isnan(observed), np.nan, np.clip((weights * below).sum(0), 0.0, 1.0))
