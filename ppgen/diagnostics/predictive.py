"""Predictive checks: are data y a likely draw of the law that the model predicts them by?

With replicates y_s, s = 1 .. S, drawn by the posterior (Gelman et al. 1996) or the prior (Box 1980), and a statistic T,

    p = min(1, 2 min(P(T(y_s) >= T(y)), P(T(y_s) <= T(y))))

is small where y is in a tail. By the posterior it has seen y, and is no p-value of a test: it gathers around 1, so that
a small one is all the more telling. By the prior it is one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.diagnostics.reading import SAMPLE_DIMS, find_variable, pool_chains, randomized_pit

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
ABSENT = "to_arviz(..., predictive=True) draws it"


def predictive_check(
    idata: Any,
    *,
    group: Group = "posterior_predictive",
    var_name: str | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    weighted: bool = False,
    chain: int | None = None,
) -> pd.DataFrame:
    """A table of statistics of data and of replicates.

    Args:
        idata: what `to_arviz` gives.
        group: which replicates.
        var_name: of the observed site, where there are several.
        statistics: functions of data, of the shape that they are observed in, to a number, by name; `STATISTICS` of all
            numbers together if left out.
        weighted: whether replicates count by the smoothed importance weights, so that they are those of the posterior
            rather than of the guide; of programs whose weights are of the whole data set.
        chain: one restart alone; all of them, pooled, if left out.

    Returns:
        a row a statistic: "observed", the replicates' "mean" and "sd", and "p_value".

    Raises:
        ValueError: without replicates; for unknown names; for weights that are per datum or not there; for a statistic
            that is no number.
    """
    drawn, seen = _both(idata, group, var_name)
    replicates, weights = pool_chains(drawn, chain), _weights(idata, group, drawn, weighted, chain)
    rows = {}
    for name, statistic in (STATISTICS if statistics is None else statistics).items():
        observed = _number(name, statistic, seen.values)
        values = np.array([_number(name, statistic, replicate) for replicate in replicates])
        mean = float(weights @ values)
        tails = float(weights @ (values >= observed)), float(weights @ (values <= observed))
        spread = float(np.sqrt(weights @ (values - mean) ** 2))
        rows[name] = {"observed": observed, "mean": mean, "sd": spread, "p_value": min(1.0, 2 * min(tails))}
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
    """P(y_s <= y) of each number of the data by itself, ties broken at random; by the posterior it has seen y.

    See `ppgen.diagnostics.loo_pit` for values that have not, and `predictive_check` for the arguments.
    """
    drawn, seen = _both(idata, group, var_name)
    replicates, weights = pool_chains(drawn, chain), _weights(idata, group, drawn, weighted, chain)
    weights = weights.reshape(-1, *(1,) * (replicates.ndim - 1))
    return seen.copy(data=randomized_pit(replicates, seen.values, weights, seed))


def _both(idata: Any, group: Group, var_name: str | None) -> tuple[xr.DataArray, xr.DataArray]:
    if group not in ("posterior_predictive", "prior_predictive"):
        raise ValueError(f'group is "posterior_predictive" or "prior_predictive", got {group!r}')
    drawn = find_variable(idata, group, var_name, missing=ABSENT)
    return drawn, find_variable(idata, "observed_data", str(drawn.name), missing="to_arviz gives it")


def _weights(idata: Any, group: Group, drawn: xr.DataArray, weighted: bool, chain: int | None) -> np.ndarray:
    """Weights (S,) that sum to one; of several chains, each has the same share."""
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


def _number(name: str, statistic: Statistic, values: np.ndarray) -> float:
    found = np.asarray(statistic(values))
    if found.size != 1:
        raise ValueError(
            f"statistics: expected a number of {name!r}, got shape {found.shape}; one entry for each of its parts"
        )
    return float(found.reshape(()))
