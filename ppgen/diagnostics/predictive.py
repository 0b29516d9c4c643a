"""Predictive checks: are the data y a likely draw of their predictive distribution?

With replicates y_s, s = 1 .. S, drawn from the posterior (Gelman et al. 1996) or from the prior (Box 1980,
https://doi.org/10.2307/2982063), and a statistic T, the p-value

    p = min(1, 2 min(P(T(y_s) >= T(y)), P(T(y_s) <= T(y))))

is small if y is in a tail. The posterior has seen y, so its p-value is not that of a test: it is close to 1 more often
than a uniform one, and a small value is strong evidence. The p-value of the prior is that of a test.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from ppgen.diagnostics.reading import SAMPLE_DIMS, find_variable, pool_chains, randomized_pit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STATISTICS", "pit", "predictive_check"]

Statistic = Callable[[np.ndarray], float]
Group = Literal["posterior_predictive", "prior_predictive"]

STATISTICS: dict[str, Statistic] = {
    "mean": np.mean,
    "sd": np.std,
    "min": np.min,
    "5 %": lambda y: np.quantile(y, 0.05),
    "25 %": lambda y: np.quantile(y, 0.25),
    "median": np.median,
    "75 %": lambda y: np.quantile(y, 0.75),
    "95 %": lambda y: np.quantile(y, 0.95),
    "max": np.max,
}


def predictive_check(
    idata: Any,
    *,
    group: Group = "posterior_predictive",
    var_name: str | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    weighted: bool = False,
    chain: int | None = None,
) -> "pd.DataFrame":
    """Compares statistics of the data with those of replicates.

    Args:
        idata: the result of `to_arviz`.
        group: the replicates.
        var_name: the observed site, if there are several.
        statistics: functions from data, in the shape of the observations, to a number, by name; by default `STATISTICS`
            of all numbers together. Numbers that are masked within an event are NaN here, in data and replicates.
        weighted: whether replicates are weighted by the smoothed importance weights, which makes them replicates of the
            posterior instead of the guide; for programs whose weights are those of the whole data set.
        chain: a single restart; all of them, pooled, if left out.

    Returns:
        A row for each statistic: "observed", the replicates' "mean" and "sd", and "p_value".

    Raises:
        ValueError: without replicates; for unknown names; for weights per datum, or no weights; for a statistic that is
            not a number, or NaN for the data.
    """
    import pandas as pd  # late: pandas is slow to import

    drawn, data = _read(idata, group, var_name)
    replicates, weights = pool_chains(drawn, chain), _weights(idata, group, drawn, weighted, chain)
    seen, keep = data.values, ~np.isnan(data.values)
    if statistics is None:
        seen, replicates = seen[keep], replicates[:, keep]
    elif not keep.all():
        replicates = np.where(keep, replicates, np.nan)
    rows = {}
    for name, statistic in (STATISTICS if statistics is None else statistics).items():
        observed = _as_number(name, statistic(seen))
        if np.isnan(observed):
            raise ValueError(
                f"statistics: {name!r} of the data is NaN; numbers that the program masks within an event are NaN, so "
                "use statistics that leave them out, such as np.nanmean"
            )
        values = np.array([_as_number(name, statistic(replicate)) for replicate in replicates])
        mean = float(weights @ values)
        tails = float(weights @ (values >= observed)), float(weights @ (values <= observed))
        sd = float(np.sqrt(weights @ (values - mean) ** 2))
        rows[name] = {"observed": observed, "mean": mean, "sd": sd, "p_value": min(1.0, 2 * min(tails))}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["observed", "mean", "sd", "p_value"])


def pit(
    idata: Any,
    *,
    group: Group = "posterior_predictive",
    var_name: str | None = None,
    weighted: bool = False,
    chain: int | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """P(y_s <= y) of each number of the data, with ties broken at random.

    The posterior has seen y; see `ppgen.diagnostics.loo_pit` for values that do not use it twice.

    Args:
        idata: the result of `to_arviz`.
        group: the replicates.
        var_name: the observed site, if there are several.
        weighted: whether replicates are weighted, as in `predictive_check`.
        chain: a single restart; all of them, pooled, if left out.
        seed: of the ties.

    Returns:
        An array with the dimensions of the data; NaN where a number is masked within an event.

    Raises:
        ValueError: without replicates; for unknown names; for weights per datum, or no weights.
    """
    drawn, data = _read(idata, group, var_name)
    replicates, weights = pool_chains(drawn, chain), _weights(idata, group, drawn, weighted, chain)
    weights = weights.reshape(-1, *(1,) * (replicates.ndim - 1))
    return data.copy(data=randomized_pit(replicates, data.values, weights, seed))


def _read(idata: Any, group: Group, var_name: str | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Replicates and data of a site."""
    if group not in ("posterior_predictive", "prior_predictive"):
        raise ValueError(f'group is "posterior_predictive" or "prior_predictive", got {group!r}')
    drawn = find_variable(idata, group, var_name, missing="to_arviz(..., predictive=True) draws it")
    return drawn, find_variable(idata, "observed_data", str(drawn.name), missing="to_arviz returns it")


def _weights(idata: Any, group: Group, drawn: xr.DataArray, weighted: bool, chain: int | None) -> np.ndarray:
    """Weights (S,) that sum to one; each of several chains has the same share."""
    if not weighted:
        count = drawn.sizes["draw"] * (drawn.sizes["chain"] if chain is None else 1)
        return np.full(count, 1 / count)
    log_weight = find_variable(idata, "sample_stats", "log_weight_smoothed", missing="there are no importance weights")
    if group == "prior_predictive" or set(log_weight.dims) > set(SAMPLE_DIMS):
        raise ValueError(
            "weighted: expected replicates of the posterior and weights of the whole data set, got "
            f"{group} and weights along {log_weight.dims}; leave weighted out"
        )
    weights = np.exp(pool_chains(log_weight, chain))
    return weights / weights.sum()


def _as_number(name: str, value: Any) -> float:
    found = np.asarray(value)
    if found.size != 1:
        raise ValueError(
            f"statistics: expected a number from {name!r}, got shape {found.shape}; use one entry for each component"
        )
    return float(found.reshape(()))
