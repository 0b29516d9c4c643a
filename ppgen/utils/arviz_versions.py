"""The one place that knows ArviZ 0.2x from 1.x: container, PSIS, LOO's result, R-hat, NetCDF.

ArviZ and xarray take more than a second to import, so they are imported where they are used.
"""

import warnings
from functools import cache, partial
from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["assemble", "by_datum", "elpd", "from_netcdf", "group", "psislw", "rhat", "to_netcdf"]

IS_NEW = int(version("arviz").split(".")[0]) >= 1  # groups are then an xarray.DataTree


@cache
def arviz() -> Any:
    """The module `arviz`, imported without the notice of 0.23 that 1.0 is coming: both are served here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz

    return arviz


def assemble(groups: "dict[str, xr.Dataset]") -> Any:
    """Groups as an `InferenceData` (ArviZ 0.2x) or an `xarray.DataTree` (1.x)."""
    if not IS_NEW:
        return arviz().InferenceData(**groups)
    import xarray as xr

    return xr.DataTree.from_dict(groups)


def group(idata: Any, name: str) -> "xr.Dataset | None":
    """One group of either container (or of a mapping of datasets); None if it has no such group."""
    if callable(names := getattr(idata, "groups", None)):  # an InferenceData; of a DataTree it is a property
        return idata[name] if name in names() else None
    found = idata.get(name)
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def elpd(pointwise: "xr.DataArray", pareto_k: "xr.DataArray", *, p: float, samples: int, good_k: float) -> Any:
    """A result of leave-one-out as `az.loo` of this version returns it, pointwise, in nats; `az.compare` takes it."""
    n, total = pointwise.size, float(pointwise.sum())
    error = float(np.sqrt(n * pointwise.values.var(ddof=int(IS_NEW))))
    warning = bool(~(pareto_k <= good_k).all())
    facts = {"se": error, "n_samples": samples, "n_data_points": n, "warning": warning, "scale": "log"}
    facts |= {"pareto_k": pareto_k.rename("pareto_k"), "good_k": good_k}
    if IS_NEW:
        from arviz_stats import utils

        kind = getattr(utils, "ELPDDataLOO", None) or partial(utils.ELPDData, kind="loo")  # the latter up to 1.0
        return kind(elpd=total, p=p, elpd_i=pointwise.rename("elpd_i"), approx_posterior=True, **facts)
    from arviz.stats.stats_utils import ELPDData

    facts = {"elpd_loo": total, "se": facts.pop("se"), "p_loo": p, **facts, "loo_i": pointwise.rename("loo_i")}
    return ELPDData(data=list(facts.values()), index=list(facts))


def by_datum(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """Densities (n,) and k-hats (n,) of what `elpd` gave."""
    return np.ravel((result.elpd_i if IS_NEW else result.loo_i).values), np.ravel(result.pareto_k.values)


def rhat(dataset: "xr.Dataset") -> "xr.Dataset":
    """Rank-normalized split R-hat of each variable, NaN where all draws are the same."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return arviz().rhat(dataset)


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto smoothed importance sampling (Vehtari et al. 2024) along the last axis.

    Returns:
        normalized smoothed log weights, and the shape k-hat of the tail.
    """
    with np.errstate(over="ignore"):  # of scales out of the question, whose weight is then zero
        if not IS_NEW:
            return arviz().psislw(log_weights)
        from arviz_stats.base import array_stats

        try:
            return array_stats.psislw(-log_weights)  # 1.x takes log likelihoods, whose negative is a log weight
        except ValueError:
            if np.ptp(np.sort(log_weights)[..., -5:]) > 0:
                raise
            # no law is fitted to a tail of ties; 0.2x says so by its shape
            return log_weights - np.logaddexp.reduce(log_weights), np.array(np.inf)


def to_netcdf(idata: Any, path: str | PathLike) -> None:
    """Writes all groups to one NetCDF file."""
    if IS_NEW:
        idata.to_netcdf(path, engine="h5netcdf")
    else:
        idata.to_netcdf(str(path), engine="h5netcdf")


def from_netcdf(path: str | PathLike) -> Any:
    """Reads what `to_netcdf` wrote."""
    if not IS_NEW:
        return arviz().from_netcdf(str(path), engine="h5netcdf")
    import xarray as xr

    return xr.open_datatree(path, engine="h5netcdf")
