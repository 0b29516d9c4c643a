"""Leave-one-out cross-validation of a variational posterior (Magnusson et al. 2019, https://arxiv.org/abs/1904.10679).

With draws theta_s ~ q, s = 1 .. S, the importance weights

    r_is = p(y, theta_s) / q(theta_s) * 1 / p(y_i | theta_s)

lead from q to the posterior without datum i. For each datum they are Pareto smoothed and normalized (Vehtari et al.
2017, https://arxiv.org/abs/1507.04544; 2024, https://arxiv.org/abs/1507.02646) to w_is, so that

    elpd_i = log sum_s w_is p(y_i | theta_s)           in nats
    pit_i  = sum_s w_is [y_is < y_i]                   y_s ~ p(y | theta_s);  U(0, 1) if the model is right

The weights thus correct the error of the guide and remove datum i at once, and k-hat of datum i judges both. Restarts
are pooled: the draws of each have the weights of its own guide. Draws of a sampler have equal weights, p / q = 1.
"""

from typing import Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from ppgen.diagnostics.reading import SAMPLE_DIMS, find_variable, pool_chains, randomized_pit, read_attribute
from ppgen.posterior.importance import khat_threshold, smooth
from ppgen.utils.arviz_versions import elpd_data, group
from ppgen.utils.user_warnings import warn_user

__all__ = ["loo", "loo_pit"]

NO_LIKELIHOOD = (
    "leave-one-out needs log p(y_i | theta) given global latents; here each row has latents of its own, and log p(y_i "
    "| z_i) at draws that have seen y_i says nothing about a row that is left out. If there are global latents too, "
    "integrate those of the rows out: to_arviz(..., integrate=100)"
)


def loo(idata: Any, *, var_name: str | None = None, chain: int | None = None) -> Any:
    """Expected log pointwise predictive density by leave-one-out, as `az.loo(pointwise=True)` of this ArviZ returns it.

    `az.compare` accepts the result. p_loo is the sum of log p(y_i | y), by smoothed weights too, minus elpd_i. The
    result's "warning" says that k-hat of a datum is above "good_k", min(1 - 1 / log10 S, 0.7).

    Args:
        idata: the result of `to_arviz`.
        var_name: the log likelihood, if there are several.
        chain: a single restart; all of them, pooled, if left out.

    Returns:
        An `ELPDData`, in nats.

    Raises:
        ValueError: if there is no pointwise likelihood, because the program has no density, or has latents of rows that
            are not integrated out; if there is no global latent; for an unknown name or chain.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> import ppgen
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> x = torch.randn(20)
        >>> idata = ppgen.fit(model, "auto", x, progress=False).to_arviz(x, draws=100)
        >>> ppgen.diagnostics.loo(idata).n_data_points
        20
    """
    likelihood, values, log_ratios = _read(idata, var_name, chain)
    flat = values.reshape(len(values), -1)
    log_weights, khat = smooth(log_ratios[:, None] - flat)
    full_log_weights, _ = smooth(log_ratios[:, None])
    pointwise = logsumexp(log_weights + flat, axis=0)
    within_sample = logsumexp(full_log_weights + flat, axis=0)
    return elpd_data(
        _by_datum(likelihood, pointwise),
        _by_datum(likelihood, khat),
        p=float((within_sample - pointwise).sum()),
        samples=len(values),
        good_k=khat_threshold(len(values)),
    )


def loo_pit(idata: Any, *, var_name: str | None = None, chain: int | None = None, seed: int = 0) -> xr.DataArray:
    """P(y_i' <= y_i | all other data) of each datum: uniform if the model is right.

    The draws y' are those of `posterior_predictive`, with the weights of this module. Ties are broken at random, so
    that it works for counts. Its resolution is 1 / S.

    Args:
        idata: the result of `to_arviz`.
        var_name: the log likelihood, if there are several.
        chain: a single restart; all of them, pooled, if left out.
        seed: of the ties.

    Returns:
        An array with the dimensions of the data.

    Raises:
        ValueError: as `loo`; without `posterior_predictive`; if the data are not one number for each likelihood.
    """
    likelihood, values, log_ratios = _read(idata, var_name, chain)
    name = str(likelihood.name)
    replicates = find_variable(idata, "posterior_predictive", name, missing="to_arviz(..., predictive=True) draws it")
    drawn = pool_chains(replicates, chain)
    observed = find_variable(idata, "observed_data", name, missing="to_arviz returns it").values
    if drawn.shape != values.shape:
        raise ValueError(
            f"loo_pit: expected a number for each likelihood of {name!r}, of shape {values.shape[1:]}, got data of "
            f"shape {drawn.shape[1:]}; an event of several numbers has no single distribution function"
        )
    log_weights, _ = smooth(log_ratios[:, None] - values.reshape(len(values), -1))
    pit = randomized_pit(drawn, observed, np.exp(log_weights).reshape(values.shape), seed)
    return _by_datum(likelihood, pit.reshape(-1)).rename(name)


def _read(idata: Any, var_name: str | None, chain: int | None) -> tuple[xr.DataArray, np.ndarray, np.ndarray]:
    """The log likelihood, its values (S, ...) and log p(y, theta) - log q(theta) (S,)."""
    factors = read_attribute(idata, "factors")
    likelihood = find_variable(idata, "log_likelihood", var_name, missing=factors or NO_LIKELIHOOD)
    if factors:
        warn_user(factors)
    stats = group(idata, "sample_stats")
    if stats is not None and "log_weight" not in stats and "lp" in stats:  # draws of the posterior by a sampler
        log_weight = stats["lp"] * 0.0
    else:
        log_weight = find_variable(idata, "sample_stats", "log_weight", missing="to_arviz returns it")
    if set(log_weight.dims) > set(SAMPLE_DIMS):
        raise ValueError(
            "leave-one-out needs latents that all rows share, and there are none: the parameters keep what they have "
            "learned from a row that is left out. vi_stats.log_marginal has log p(y_i) of each row under these "
            "parameters; use held-out data"
        )
    values, log_ratios = (pool_chains(part, chain).astype(np.float64) for part in (likelihood, log_weight))
    return likelihood, values, log_ratios


def _by_datum(likelihood: xr.DataArray, values: np.ndarray) -> xr.DataArray:
    """Values as an array with the dimensions of the data."""
    like = likelihood.isel(chain=0, draw=0, drop=True)
    return like.copy(data=values.reshape(like.shape))
