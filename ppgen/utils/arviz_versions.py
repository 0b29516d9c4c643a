"""The differences between ArviZ 0.2x and 1.x: container, PSIS, leave-one-out result, R-hat, NetCDF.

ArviZ and xarray take more than a second to import, so functions import them when they are called.
"""

import warnings
from functools import cache, partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.utils.files import write_atomically
from ppgen.utils.regular_files import check_regular, check_size

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "build_container",
    "elpd_data",
    "ess",
    "from_netcdf",
    "group",
    "mixing",
    "pointwise_loo",
    "psislw",
    "rhat",
    "to_netcdf",
]

MOST_GROUPS = 100  # of a file; a hard link from a group to itself would have no end
IS_NEW = int(version("arviz").split(".")[0]) >= 1  # the container is then an xarray.DataTree


@cache
def arviz() -> Any:
    """The module `arviz`, imported without the announcement of 1.0 that 0.23 prints."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz

    return arviz


def build_container(groups: "dict[str, xr.Dataset]") -> Any:
    """An `InferenceData` (ArviZ 0.2x) or an `xarray.DataTree` (1.x) with these groups."""
    if not IS_NEW:
        return arviz().InferenceData(**groups)
    import xarray as xr

    return xr.DataTree.from_dict(groups)


def group(idata: Any, name: str) -> "xr.Dataset | None":
    """One group of a container, or of a mapping of datasets; None if there is no such group.

    Args:
        idata: an `InferenceData`, an `xarray.DataTree`, or a mapping.
        name: the group.
    """
    if callable(names := getattr(idata, "groups", None)):  # a method of InferenceData, a property of DataTree
        return idata[name] if name in names() else None
    found = idata.get(name)
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def elpd_data(pointwise: "xr.DataArray", pareto_k: "xr.DataArray", *, p: float, samples: int, good_k: float) -> Any:
    """A pointwise result of leave-one-out, as `az.loo` returns it and `az.compare` accepts it.

    Args:
        pointwise: the log density of each datum given the others, in nats.
        pareto_k: k-hat of each datum.
        p: the effective number of parameters.
        samples: the number of draws.
        good_k: the largest reliable k-hat.
    """
    n, total = pointwise.size, float(pointwise.sum())
    error = float(np.sqrt(n * pointwise.values.var(ddof=int(IS_NEW))))
    warning = bool(~(pareto_k <= good_k).all())
    fields = {"se": error, "n_samples": samples, "n_data_points": n, "warning": warning, "scale": "log"}
    fields |= {"pareto_k": pareto_k.rename("pareto_k"), "good_k": good_k}
    if IS_NEW:
        from arviz_stats import utils

        kind = getattr(utils, "ELPDDataLOO", None) or partial(utils.ELPDData, kind="loo")  # the latter up to 1.0
        return kind(elpd=total, p=p, elpd_i=pointwise.rename("elpd_i"), approx_posterior=True, **fields)
    from arviz.stats.stats_utils import ELPDData

    fields = {"elpd_loo": total, "se": fields.pop("se"), "p_loo": p, **fields, "loo_i": pointwise.rename("loo_i")}
    return ELPDData(data=list(fields.values()), index=list(fields))


def pointwise_loo(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """The log density of each datum given the others, in nats (n,), and its k-hat (n,), of an `elpd_data` result."""
    return np.ravel((result.elpd_i if IS_NEW else result.loo_i).values), np.ravel(result.pareto_k.values)


def rhat(dataset: "xr.Dataset") -> "xr.Dataset":
    """The rank-normalized split R-hat of each variable; NaN where all draws are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return arviz().rhat(dataset)


def ess(dataset: "xr.Dataset", method: str) -> "xr.Dataset":
    """The effective sample size of each variable, "bulk" or "tail"; NaN where all draws are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return arviz().ess(dataset, method=method)


def mixing(draws: np.ndarray) -> tuple[float, float]:
    """The largest R-hat, and the least effective sample size of bulk and tails, of draws (chains, draws, n)."""
    import xarray as xr

    dataset = xr.Dataset({"x": (("chain", "draw", "entry"), draws)})
    least = min(float(np.nanmin(ess(dataset, method)["x"].values, initial=np.inf)) for method in ("bulk", "tail"))
    return float(np.nanmax(rhat(dataset)["x"].values, initial=1.0)), least


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024, https://arxiv.org/abs/1507.02646).

    Args:
        log_weights: (..., K), smoothed along the last axis.

    Returns:
        smoothed and normalized log weights (..., K); the shape k-hat of the tail (...).
    """
    with np.errstate(over="ignore"):  # of very unlikely scales, whose weight is then zero
        array_stats = _array_stats()
        if array_stats is None:
            return arviz().psislw(log_weights)
        try:
            return array_stats.psislw(-log_weights)  # 1.x expects log likelihoods; minus one is a log weight
        except ValueError:
            if np.ptp(np.sort(log_weights)[..., -5:]) > 0:
                raise
            # 1.x cannot fit a tail of equal weights; 0.2x returns k-hat = inf
            return log_weights - np.logaddexp.reduce(log_weights), np.array(np.inf)


@cache
def _array_stats() -> Any:
    """The functions of arrays of arviz-stats, which ArviZ 1.x needs and which may be there beside 0.2x; None without.

    Their smoothing differs from that of 0.2x in the fifth digit, and should be that of ``arviz_stats.loo``.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        return None
    return array_stats


def to_netcdf(idata: Any, path: str | PathLike) -> None:
    """Writes all groups of a container to one NetCDF file, compressed. The file is complete or absent.

    Args:
        idata: an `InferenceData` or an `xarray.DataTree`.
        path: the file.
    """
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "idata.nc"
        if IS_NEW:
            names = {node.path: list(node.data_vars) for node in idata.subtree}
            compressed = {group: {str(name): {"zlib": True} for name in found} for group, found in names.items()}
            idata.to_netcdf(whole, engine="h5netcdf", encoding=compressed)
        else:
            idata.to_netcdf(str(whole), engine="h5netcdf")
        write_atomically(path, whole.read_bytes())


def from_netcdf(path: str | PathLike) -> Any:
    """Reads a file that `to_netcdf` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, names other files, or holds more than fits into memory.
    """
    check_regular(path)
    try:
        _check_hdf5(path)
        if not IS_NEW:
            return arviz().from_netcdf(str(path), engine="h5netcdf")
        import xarray as xr

        return xr.open_datatree(path, engine="h5netcdf")
    except Exception as error:  # the readers of damaged files raise many kinds
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a readable NetCDF file of ppgen ({error})") from error


def _check_hdf5(path: str | PathLike) -> None:
    """Checks that an HDF5 file has no link, that it holds its data itself, and that all of them fit into memory.

    Its other kinds of links and of storage would read whatever file they name.
    """
    import h5py

    size, groups = 0, ["/"]
    with h5py.File(path, "r") as file:
        for group in groups:
            for name in file[group]:
                place = f"{group.rstrip('/')}/{name}"
                if not isinstance(file.get(place, getlink=True), h5py.HardLink):
                    raise ValueError(f"{path}: {place} is a link to something else")
                item = file[place]
                if isinstance(item, h5py.Group):
                    if len(groups) >= MOST_GROUPS:
                        raise ValueError(f"{path}: expected at most {MOST_GROUPS} groups")
                    groups.append(place)
                elif isinstance(item, h5py.Dataset):
                    if item.external or item.is_virtual:
                        raise ValueError(f"{path}: {place} has its data in another file")
                    size += item.size * item.dtype.itemsize if item.size else 0
    check_size(path, size)
