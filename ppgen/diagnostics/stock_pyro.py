"""Stock Pyro objects in the data structure of ArviZ: `pyro.infer.MCMC`, and a model with a guide that SVI has trained.

The groups are those of `ppgen.diagnostics.arviz`, without what belongs to a fit's losses; plates become dimensions, as
in ``arviz_base.from_numpyro_svi``, and ``pyro.sample(..., infer={"event_dims": ["factor"]})`` names those of an event.

    from_pyro       sample_stats        lp, diverging: chain, draw
    from_pyro_svi   sample_stats        lp, log_q, log_weight, log_weight_smoothed: chain, draw (, data)
                    vi_stats            pareto_k, log_marginal, log_marginal_error, ess, elbo: chain (, data)
                    posterior_resampled draws of the posterior, where weights are reliable

Here lp = log p(x, z) and log_q = log q(z | x), in nats, of latents z in their own space. Leave-one-out densities are
the same by `ppgen.diagnostics.loo` and by ``arviz_stats.loo_approximate_posterior(idata, log_p=lp, log_q=log_q)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace

from ppgen.diagnostics.arviz import check_draws
from ppgen.diagnostics.chain_groups import (
    CHUNK,
    DrawOptions,
    Groups,
    chain_groups,
    drawn_groups,
    draws_at_a_time,
)
from ppgen.diagnostics.container import container
from ppgen.diagnostics.masked import Observed, either_observed
from ppgen.diagnostics.naming import EventNames
from ppgen.infer.parameters import EvalMode
from ppgen.models.simulator import WithoutDensity
from ppgen.tracing.particles import ConditionedTraces
from ppgen.tracing.sites import sample_sites
from ppgen.tracing.traces import Traces

__all__ = ["from_pyro", "from_pyro_svi"]

Names = Mapping[str, Sequence[str]]
Values = Mapping[str, Sequence[Any]]
WEIGHTS = ("log_q", "log_weight")


def from_pyro(
    mcmc: MCMC,
    *,
    predictive: bool = True,
    likelihood: bool = True,
    dims: Names | None = None,
    coords: Values | None = None,
    chunk: int | None = None,
    seed: int = 0,
) -> Any:
    """The draws of Pyro's MCMC, with all that follows from them under its model.

    These are deterministic sites, discrete latents that the sampler summed out, drawn from their conditional
    distribution, log p(x, z), the likelihood of each observation, and posterior and prior predictive draws.

    Args:
        mcmc: a `pyro.infer.MCMC` after ``mcmc.run(...)``.
        predictive: whether to draw observations too (posterior and prior predictive); they need the most memory.
        likelihood: whether to keep the likelihood of each row at each draw.
        dims: names for the dimensions of a variable, ``{"b": ["covariate"]}``, as in `az.from_dict`.
        coords: the values along a dimension.
        chunk: the number of draws that the model runs on at a time; if left out, as in `ppgen.diagnostics.to_arviz`.
        seed: the seed of predictive draws; the caller's random state does not change.

    Returns:
        An `InferenceData` (ArviZ 0.2x) or a `DataTree` (1.x), see the module's docstring.

    Raises:
        TypeError: if it is no `MCMC`, or its kernel has a potential function in the place of a model.
        ValueError: if it has not run; if a plate of the model subsamples; for dims or coords that do not match.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro.infer import MCMC, NUTS
        >>> import ppgen
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run(torch.randn(5))
        >>> ppgen.from_pyro(mcmc)["log_likelihood"]["x"].dims
        ('chain', 'draw', 'data')
    """
    if not isinstance(mcmc, MCMC):
        raise TypeError(f"from_pyro: expected a pyro.infer.MCMC, got {type(mcmc).__name__}")
    model = getattr(mcmc.kernel, "model", None)
    if model is None:
        raise TypeError("from_pyro: expected a kernel of a model, NUTS(model), got one of a potential function")
    if mcmc._args is None or mcmc._samples is None:
        raise ValueError("from_pyro: this MCMC has no draws yet; call mcmc.run(...) first")
    args, kwargs = mcmc._args, mcmc._kwargs
    samples = {name: value.detach() for name, value in mcmc.get_samples(group_by_chain=True).items()}
    chains, draws = next(iter(samples.values())).shape[:2]
    chunk = draws_at_a_time(args, CHUNK) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"from_pyro: expected chunks of at least 1 draw, got {chunk}")
    options = DrawOptions(draws, chunk, predictive, 0, seed, likelihood)
    found: list[Groups] = []
    seen: dict[str, Observed] = {}
    notes: dict[str, str] = {}
    names = EventNames()
    model = names(model)
    with EvalMode():
        for chain in range(chains):
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed + chain)
                parts = [
                    ConditionedTraces(
                        model, args, kwargs, {k: v[chain, start : start + chunk] for k, v in samples.items()}
                    )
                    for start in range(0, draws, chunk)
                ]
                _check_all_rows("from_pyro", parts[0].single.model_trace)
                groups, more, about = drawn_groups(parts, options)
            found.append(groups)
            seen, notes = either_observed(seen, more), notes | about
    for groups, diverging in zip(found, _divergences(mcmc, chains, draws), strict=True):
        stats = groups["sample_stats"]
        groups["sample_stats"] = {k: v for k, v in stats.items() if k not in WEIGHTS}
        groups["sample_stats"]["diverging"] = ("draw",), diverging
    return container(found, seen, _attributes() | notes, dims=names.found | dict(dims or {}), coords=coords)


def from_pyro_svi(
    model: Any,
    guide: Any,
    data: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    draws: int = 1000,
    predictive: bool = True,
    likelihood: bool = True,
    resampled: Literal["with", "without"] | None = "with",
    integrate: int = 0,
    dims: Names | None = None,
    coords: Values | None = None,
    sample_dims: Sequence[str] = ("chain", "draw"),
    chunk: int | None = None,
    seed: int = 0,
) -> Any:
    """Draws of a guide that Pyro's SVI has trained, with their importance weights and k-hat.

    Args:
        model: the model, a Pyro program.
        guide: the guide, a Pyro program or an autoguide, with trained parameters in Pyro's parameter store.
        data: the positional arguments of both, a tuple, or a single one. Give all rows, not a batch.
        kwargs: the keyword arguments of both.
        draws: the number of draws of the guide, at least 25.
        predictive: whether to draw observations too (posterior and prior predictive); they need the most memory.
        likelihood: whether to keep the likelihood of each row at each draw, where latents are global.
        resampled: as in `ppgen.diagnostics.to_arviz`.
        integrate: as in `ppgen.diagnostics.to_arviz`.
        dims: names for the dimensions of a variable, ``{"b": ["covariate"]}``, as in `az.from_dict`.
        coords: the values along a dimension.
        sample_dims: ``["sample"]`` for draws along one dimension of this name, as ``arviz_base.from_numpyro_svi`` has
            them. By default there is one chain, which ArviZ 0.2x and leave-one-out need.
        chunk: the number of draws that are made at a time; if left out, as in `ppgen.diagnostics.to_arviz`.
        seed: the seed of the draws; the caller's random state does not change.

    Returns:
        An `InferenceData` (ArviZ 0.2x) or a `DataTree` (1.x), see the module's docstring.

    Raises:
        ValueError: if the guide has never run; if a plate subsamples and the programs do not run on all of its rows;
            for other sample dimensions; for arguments that `ppgen.diagnostics.to_arviz` refuses.
        LookupError: if the guide misses a latent of the model or draws another site.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> import ppgen
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> guide, x = AutoNormal(model), torch.randn(5)
        >>> loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x)
        >>> ppgen.from_pyro_svi(model, guide, x, draws=50)["sample_stats"]["log_q"].shape
        (1, 50)
    """
    args = tuple(data) if isinstance(data, tuple | list) else (data,)
    if tuple(sample_dims) not in (("chain", "draw"), ("sample",)):
        raise ValueError(f'from_pyro_svi: sample_dims is ("chain", "draw") or ("sample",), got {sample_dims!r}')
    chunk = draws_at_a_time(args, CHUNK) if chunk is None else chunk
    check_draws("from_pyro_svi", draws, chunk, resampled)
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ValueError("from_pyro_svi: the guide has never run, so it is not trained; train it with SVI first")
    names = EventNames()
    model = WithoutDensity()(names(model))
    with EvalMode(), torch.random.fork_rng(), torch.no_grad():
        _check_programs(model, guide, args, kwargs)
        torch.manual_seed(seed)
        options = DrawOptions(draws, chunk, predictive, integrate, seed, likelihood)
        groups, seen, notes = chain_groups(model, guide, args, options, kwargs)
    return container(
        [groups],
        seen,
        _attributes() | notes,
        resampled=resampled,
        draws=draws,
        seed=seed,
        dims=names.found | dict(dims or {}),
        coords=coords,
        pooled=tuple(sample_dims) == ("sample",),
    )


def _attributes() -> dict[str, Any]:
    return {"inference_library": "pyro", "inference_library_version": pyro.__version__}


def _divergences(mcmc: MCMC, chains: int, draws: int) -> np.ndarray:
    """Whether each draw (chain, draw) ended a trajectory that diverged."""
    diverging = np.zeros((chains, draws), dtype=bool)
    for chain, found in enumerate(mcmc._diagnostics):
        diverging[chain, (found or {}).get("divergences", [])] = True
    return diverging


def _check_programs(model: Any, guide: Any, args: tuple, kwargs: Mapping[str, Any] | None) -> None:
    """Checks that the programs run on all rows of each plate."""
    try:
        traces = Traces(model, guide, args, kwargs, use_all_rows=True)
        traces.with_summed_discrete  # noqa: B018
    except (RuntimeError, ValueError, IndexError):
        _check_all_rows("from_pyro_svi", Traces(model, guide, args, kwargs).model_trace)
        raise
    _check_all_rows("from_pyro_svi", traces.model_trace)


def _check_all_rows(caller: str, trace: Trace) -> None:
    """Refuses plates that subsample, since weights and likelihoods of a part of the rows are not those of the data."""
    for name, site in sample_sites(trace).items():
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"{caller}: the plate {frame.name!r} has {frame.size} of {frame.full_size} rows at {name!r}: "
                    "weights and likelihoods need all rows. Index by the plate's rows in model and guide (x[rows]), "
                    "give all rows, and an autoguide create_plates= if it has latents in that plate"
                )
