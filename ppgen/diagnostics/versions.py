"""The one place that knows ArviZ 0.2x from 1.x: container, PSIS, NetCDF."""

import warnings
from importlib.metadata import version
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

with warnings.catch_warnings():
    # 0.23 announces 1.0 once a day; both are served here, so its user has nothing to do
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    import arviz as az

__all__ = ["assemble", "from_netcdf", "psislw", "to_netcdf"]

IS_NEW = int(version("arviz").split(".")[0]) >= 1  # groups are then an xarray.DataTree


def assemble(groups: dict[str, xr.Dataset]) -> Any:
    """Groups as an `InferenceData` (ArviZ 0.2x) or an `xarray.DataTree` (1.x)."""
    return xr.DataTree.from_dict(groups) if IS_NEW else az.InferenceData(**groups)


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto smoothed importance sampling (Vehtari et al. 2024) along the last axis.

    Returns:
        normalised smoothed log weights, and the shape k-hat of the tail.
    """
    if IS_NEW:
        from arviz_stats.base import array_stats

        return array_stats.psislw(-log_weights)  # 1.x takes log likelihoods, whose negative is a log weight
    return az.psislw(log_weights)


def to_netcdf(idata: Any, path: str | PathLike) -> None:
    """Writes all groups to one NetCDF file."""
    if IS_NEW:
        idata.to_netcdf(path, engine="h5netcdf")
    else:
        idata.to_netcdf(str(path), engine="h5netcdf")


def from_netcdf(path: str | PathLike) -> Any:
    """Reads what `to_netcdf` wrote."""
    return xr.open_datatree(path, engine="h5netcdf") if IS_NEW else az.from_netcdf(str(path), engine="h5netcdf")
