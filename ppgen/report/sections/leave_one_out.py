"""The section on leave-one-out cross-validation of the posterior."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ppgen.diagnostics import Ranks, khat_threshold, loo, loo_pit
from ppgen.diagnostics.reading import SAMPLE_DIMS
from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.page import Figure, Section, Table
from ppgen.utils.arviz_versions import group, pointwise_loo

__all__ = ["leave_one_out"]

MAX_DATA, MIN_DATA = 1000, 10  # that are left out one by one
TEXT = (
    "Each datum is predicted from all others, by importance weights that remove it from the posterior. Where k-hat of "
    "a datum is large, the weights do not remove it reliably."
)


def leave_one_out(context: FitContext) -> Section | None:
    """The predictive density and the PIT of data that are left out; None without a likelihood of each datum."""
    stats, likelihood = context.group("sample_stats"), context.group("log_likelihood")
    if stats is None or stats["lp"].ndim > 2 or likelihood is None:
        return None
    chain = context.fit.best
    rows: list[tuple] = []
    items: list[Figure | Table] = []
    max_khat = khat_threshold(likelihood.sizes["draw"])
    for key, values in likelihood.data_vars.items():
        name, size = str(key), values.size // (values.sizes["chain"] * values.sizes["draw"])
        if size < MIN_DATA or not np.isfinite(values.values[chain]).all():
            continue
        groups = _thinned(context.idata, values)
        pointwise, khat = pointwise_loo(loo(groups, var_name=name, chain=chain))
        count, bad = len(pointwise), int((~(khat <= max_khat)).sum())
        total = float(pointwise.sum()), float(pointwise.std() * count**0.5)
        rows.append((name, f"{count} of {size}", total, bad))
        replicates = group(groups, "posterior_predictive")
        has_pit = replicates is not None and name in replicates and replicates[name].dims == values.dims
        if has_pit and bad <= count / 2:
            items.append(_pit(loo_pit(groups, var_name=name, chain=chain).values.reshape(-1), name))
    if not rows:
        return None
    header = ("site", "data", "expected log predictive density (nats)", f"data with k-hat above {max_khat:.2f}")
    items.append(Table(header, rows, "The log predictive density of each datum given all others, summed over data."))
    return Section("Leave-one-out predictions", TEXT, items)


def _pit(pit: np.ndarray, name: str) -> Figure:
    ranks = Ranks(np.minimum((100 * pit).astype(int), 99)[:, None], 99, (name,))
    caption = (
        f"LOO-PIT: P(y' <= y) of each of {len(pit)} data of {name!r} given all others, which is uniform if the model "
        "is right. If the line rises and then falls below zero, the predictions are too narrow; if it falls and then "
        "rises, they are too wide. The band and p treat the values as independent."
    )
    picture = figures.uniformity(ranks, xlabel="P(y' <= y | all other data)")
    return Figure(picture, caption, f"Line chart. {caption}")


def _thinned(idata: object, likelihood: xr.DataArray) -> Mapping[str, xr.Dataset]:
    """The groups that leave-one-out reads, with at most about `MAX_DATA` evenly spaced data."""
    names = ("log_likelihood", "posterior_predictive", "observed_data", "sample_stats")
    groups = {name: found for name in names if (found := group(idata, name)) is not None}
    longest = max((dim for dim in likelihood.dims if dim not in SAMPLE_DIMS), key=lambda dim: likelihood.sizes[dim])
    size = likelihood.sizes[longest]
    kept = max(1, MAX_DATA * size * likelihood.sizes["chain"] * likelihood.sizes["draw"] // likelihood.size)
    if kept >= size:
        return groups
    rows = np.linspace(0, size - 1, kept).round().astype(int)
    return {name: found.isel({longest: rows}, missing_dims="ignore") for name, found in groups.items()}
