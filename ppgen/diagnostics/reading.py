"""Variables out of what `to_arviz` gives, with restarts pooled, for diagnostics that are computed from it."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.sites import nearest
from ppgen.utils.arviz_versions import group

__all__ = ["attribute", "cumulative", "on_the_line", "pick", "pooled"]

DRAWN = ("chain", "draw")


def attribute(idata: Any, name: str) -> str | None:
    """What `to_arviz` notes of all groups under this name, such as why there is no "density"; None for nothing."""
    groups = (group(idata, of) for of in ("observed_data", "posterior", "vi_stats"))
    return next((found.attrs[name] for found in groups if found is not None and name in found.attrs), None)


def on_the_line(target: UnconstrainedLogDensity, posterior: xr.Dataset, chain: int) -> Tensor:
    """Draws (S, dim) of a chain, as the target has its latents: side by side, on the real line."""
    values = {name: torch.as_tensor(posterior[name].values[chain].copy()) for name in target.shapes}
    return target.unconstrain(values)


def pick(idata: Any, of: str, var_name: str | None, *, otherwise: str) -> xr.DataArray:
    """A group's variable of that name, or its only one.

    Args:
        otherwise: what is said where there is no such group; its attribute "density" comes first if it has one.

    Raises:
        ValueError: if there is no such group; for an unknown name; for several variables and no name.
    """
    found = group(idata, of)
    if found is None or not found.data_vars:
        reason = attribute(idata, "density")
        raise ValueError(f"no group {of!r}: {'density: ' + reason if reason else otherwise}")
    names = [str(name) for name in found.data_vars]
    if var_name is None and len(names) > 1:
        raise ValueError(f"{of} has several variables: name one, var_name=; there are {', '.join(map(repr, names))}")
    if var_name is not None and var_name not in names:
        raise ValueError(f"{of} has no variable {var_name!r}; {nearest(var_name, names)}")
    return found[var_name or names[0]]


def pooled(array: xr.DataArray, chain: int | None) -> np.ndarray:
    """Values (S, ...) of one chain, or of all, one after another.

    Raises:
        ValueError: for a chain that is not there.
    """
    known = [int(number) for number in array["chain"].values]
    if chain is not None and chain not in known:
        raise ValueError(f"chain: expected one of {known}, got {chain}")
    array = array if chain is None else array.sel(chain=[chain])
    values = array.transpose(*DRAWN, ...).values
    return values.reshape(-1, *values.shape[2:])


def cumulative(drawn: np.ndarray, seen: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """P(y' < y) + U P(y' = y), U ~ U(0, 1): uniform where y is one more draw, whether its law has atoms or not.

    Args:
        drawn: (S, ...) draws y'.
        seen: (...) observations y.
        weights: of draws, (S, ...) or what broadcasts to it, that sum to one.
    """
    ties = np.random.default_rng(seed).uniform(size=seen.shape)
    below = np.where(drawn < seen, 1.0, np.where(drawn == seen, ties, 0.0))
    return np.clip((weights * below).sum(0), 0.0, 1.0)
