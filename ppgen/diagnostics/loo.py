"""Leave-one-out cross-validation of a variational posterior (Magnusson et al. 2019).

With draws theta_s ~ q, s = 1 .. S, the posterior without datum i is reached from q by the weights

    r_is = p(y, theta_s) / q(theta_s) * 1 / p(y_i | theta_s)

which are Pareto-smoothed and normalized for each datum (Vehtari et al. 2017, 2024), w_is, so that

    elpd_i = log sum_s w_is p(y_i | theta_s)           in nats
    pit_i  = sum_s w_is [y_is < y_i]                   y_s ~ p(y | theta_s);  U(0, 1) where the model is right

The guide's own error is thus mended along with the step from the posterior to that without i, and k-hat of datum i
judges both at once. Restarts are pooled: the draws of each have the weights of its own guide.
"""

from typing import Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from ppgen.diagnostics.reading import SAMPLE_DIMS, find_variable, pool_chains, randomized_pit
from ppgen.posterior.importance import khat_threshold, smooth
from ppgen.utils.arviz_versions import elpd_data

__all__ = ["loo", "loo_pit"]

UNFIT = (
    "leave-one-out takes log p(y_i | theta) of latents that are global; here each row has latents of its own, and "
    "log p(y_i | z_i) at draws that have seen y_i says nothing of a row that is left out. Integrate them out: "
    "to_arviz(..., integrate=100), if there are global latents beside them"
)


def loo(idata: Any, *, var_name: str | None = None, chain: int | None = None) -> Any:
    """Expected log pointwise predictive density by leave-one-out: what `az.loo(pointwise=True)` returns of this ArviZ.

    `az.compare` takes such results. p_loo is log p(y_i | y), by smoothed weights too, less elpd_i, summed. The result's
    "warning" says that a datum's k-hat is above "good_k", min(1 - 1 / log10 S, .7).

    Args:
        idata: what `to_arviz` gives.
        var_name: of the log likelihood, where there are several.
        chain: one restart alone; all of them, pooled, if left out.

    Raises:
        ValueError: if there is no pointwise likelihood: of programs without a density, or with latents of rows that are
            not integrated out; if nothing is global, so that nothing forgets a row that is left out; for an unknown
            name or chain.
    """
    likelihood, values, ratios = _given(idata, var_name, chain)
    flat = values.reshape(len(values), -1)
    log_weights, khat = smooth(ratios[:, None] - flat)
    whole, _ = smooth(ratios[:, None])
    pointwise = logsumexp(log_weights + flat, axis=0)
    within = logsumexp(whole + flat, axis=0)
    return elpd_data(
        _by_datum(likelihood, pointwise),
        _by_datum(likelihood, khat),
        p=float((within - pointwise).sum()),
        samples=len(values),
        good_k=khat_threshold(len(values)),
    )


def loo_pit(idata: Any, *, var_name: str | None = None, chain: int | None = None, seed: int = 0) -> xr.DataArray:
    """P(y_i' <= y_i | all other data) of each datum, of numbers: uniform where the model is right.

    By draws y' of `posterior_predictive` at the weights of the module; ties are broken at random, so that counts serve.
    It is no finer than 1 / S.

    Args:
        idata, var_name, chain: as `loo` takes them.
        seed: of ties.

    Raises:
        ValueError: as `loo`; without `posterior_predictive`; for data that are not a number for each likelihood.
    """
    likelihood, values, ratios = _given(idata, var_name, chain)
    name = str(likelihood.name)
    drawn = pool_chains(
        find_variable(idata, "posterior_predictive", name, missing="to_arviz(..., predictive=True) draws it"), chain
    )
    seen = find_variable(idata, "observed_data", name, missing="to_arviz gives it").values
    if drawn.shape != values.shape:
        raise ValueError(
            f"loo_pit: expected a number for each likelihood of {name!r}, of shape {values.shape[1:]}, got data of "
            f"shape {drawn.shape[1:]}; an event of several numbers has no one distribution function"
        )
    log_weights, _ = smooth(ratios[:, None] - values.reshape(len(values), -1))
    found = randomized_pit(drawn, seen, np.exp(log_weights).reshape(values.shape), seed)
    return _by_datum(likelihood, found.reshape(-1)).rename(name)


def _given(idata: Any, var_name: str | None, chain: int | None) -> tuple[xr.DataArray, np.ndarray, np.ndarray]:
    """The log likelihood, its values (S, ...) and log p(y, theta) - log q(theta) (S,)."""
    likelihood = find_variable(idata, "log_likelihood", var_name, missing=UNFIT)
    log_weight = find_variable(idata, "sample_stats", "log_weight", missing="to_arviz gives it")
    if set(log_weight.dims) > set(SAMPLE_DIMS):
        raise ValueError(
            "leave-one-out needs latents that all rows share, and here is none: what the parameters have learned of a "
            "row stays when it is left out. vi_stats.log_marginal has log p(y_i) of each row under them; give it "
            "held-out data"
        )
    return (
        likelihood,
        pool_chains(likelihood, chain).astype(np.float64),
        pool_chains(log_weight, chain).astype(np.float64),
    )


def _by_datum(likelihood: xr.DataArray, values: np.ndarray) -> xr.DataArray:
    like = likelihood.isel(chain=0, draw=0, drop=True)
    return like.copy(data=values.reshape(like.shape))
