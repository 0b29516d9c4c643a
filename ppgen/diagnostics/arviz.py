"""A fit's posterior in the data structure of ArviZ: restarts are chains, and draws are draws of the guide.

    posterior                z: chain, draw, data, z_dim           latents, and deterministic sites given them
    posterior_resampled      as "posterior", resampled by the smoothed weights: draws of the posterior, not the guide
    sample_stats             lp, log_q, log_weight, log_weight_smoothed: chain, draw (, data)
    posterior_predictive     x: chain, draw, data, x_dim           observations, drawn given the guide's latents
    prior, prior_predictive  z, x: chain, draw, data, ...          draws of the model alone
    observed_data            x: data, x_dim
    log_likelihood           x: chain, draw, data                  log p(x_i | global latents)
    vi_stats                 pareto_k, log_marginal, log_marginal_error, ess, elbo: chain (, data);
                             elbo_trace or loss_trace: chain, step
    two_sample               x: chain, two_sample                  only for programs without a density

Weights are per datum if all latents are in the plate "data", and for the whole data set otherwise. R-hat is meaningful
across restarts, but not within one fit (see `ppgen.diagnostics.rhat`).

**Masks.** Observations that the program masks, or leaves out as NaN, are no data (`ppgen.diagnostics.masked`): a site x
of which some rows are masked has the dimension "x_observed" in the place of "data" in "observed_data",
"log_likelihood" and the predictive groups, with the coordinate "x_data", the numbers of its observed rows.

**Many rows.** A fit of many rows by ``guide="auto"`` (more than 10,000, independent given the latents) has groups of a
random subset of the rows, and log p is that of all rows, estimated with control variates; the attribute "rows" says how
well.

**All rows.** Plates that subsample use all of their rows here, so that weights and likelihoods are those of the whole
data set.

**Discrete latents** that a guide leaves to enumeration are summed out of all densities. The group "posterior" has draws
from their conditional distribution given all other latents. Sites that share such a latent have one likelihood, which
is named after all of them: "x+y".

**Pointwise likelihoods** exist for programs whose latents are all global: leave-one-out cannot use log p(x_i | z_i) of
an amortized model. With ``integrate=K`` the latents of each row are integrated out with K draws of the guide.

**Without a density** (the observations of a generator are a Delta, those of a simulator an `Implicit`, or the guide is
a point estimate) there are no weights and no k-hat. The attribute "density" gives the reason, and "two_sample" compares
data with the model's draws.

**A sampler** (`ppgen.Fit.refine`) leaves draws in their order, so that R-hat and effective sample sizes of ArviZ apply.
"sample_stats" has lp alone, and "vi_stats" log_marginal and log_marginal_error by all chains, log_marginal_of_chain by
each; there are no weights.

**Without the response**, ``to_arviz(fit, x_new)`` of a program ``model(x, y=None)``, there are the latents and the
predictions given them, "posterior", "posterior_predictive", "prior" and "prior_predictive", and no weights.

**Frames.** A fit of a program that takes the columns of a frame by name has their categories as coordinates: a plate
"county" has those of the column "county", and the plate "data" the index of the frame.

**Resampled draws** exist for chains whose weights are reliable (`ppgen.posterior.importance.psis_reliable`): where
k-hat is large, weights cannot correct the guide. With weights per datum, rows with unreliable weights are NaN. If no
chain is left, neither is the group, and the attribute "resampled" gives the reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ppgen.diagnostics.absent import with_responses
from ppgen.diagnostics.chain_groups import CHUNK, DrawOptions, Groups, chain_groups, draws_at_a_time
from ppgen.diagnostics.container import container
from ppgen.diagnostics.masked import Observed, either_observed
from ppgen.diagnostics.naming import Variable
from ppgen.diagnostics.predictions import predictive_groups
from ppgen.infer.parameters import owning_module
from ppgen.models.simulator import WithoutDensity
from ppgen.posterior.importance import MIN_DRAWS
from ppgen.tracing.sites import DATA
from ppgen.training.result import Fitted

__all__ = ["check_draws", "to_arviz"]

DRAWS, AUTO_DRAWS = 500, 2000  # in each chain; in all chains of a fit by guide="auto"


def to_arviz(
    fit: Fitted,
    *data: Any,
    draws: int | None = None,
    predictive: bool = True,
    resampled: Literal["with", "without"] | None = "with",
    integrate: int = 0,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    chunk: int | None = None,
    likelihood: bool = True,
    rows: Sequence[Any] | None = None,
    seed: int = 0,
) -> Any:
    """Draws a fit's posterior on data.

    Args:
        fit: the fit.
        *data: the arguments of the programs: ``to_arviz(fit, x)`` or ``to_arviz(fit, x, y)``; None for a response that
            is absent.
        draws: the number of draws of the guide in each chain, at least 25; by default 500, and at least 2000 in all
            chains of a fit by ``guide="auto"``, which has one for each mode. Of a sampler's draws these are the first,
            by default all.
        predictive: whether to draw observations too (posterior and prior predictive); they need the most memory.
        resampled: whether `posterior_resampled` has as many draws, taken with replacement, or a tenth of them, taken
            without; None for no such group.
        integrate: K, for programs with both global latents and latents of each row: the number of draws that integrate
            the latter out of the pointwise likelihood. Its logarithm is biased downwards by about half the relative
            variance of a mean of K weights.
        dims: names for the dimensions of a variable, ``{"b": ["covariate"]}``, as in `az.from_dict`.
        coords: the values along a dimension, ``{"covariate": ["age", "weight"]}``.
        chunk: the number of draws that are made at a time; if left out, at most 50, and fewer for data of more than
            40,000 numbers, so that the memory does not grow with the data.
        likelihood: whether to keep the likelihood of each row at each draw, where latents are global.
        rows: the values along the plate "data", such as the index of a frame.
        seed: the seed of the draws; the caller's random state does not change.

    Returns:
        An `InferenceData` (ArviZ 0.2x) or a `DataTree` (1.x) with the groups that this module lists.

    Raises:
        ValueError: for fewer than 25 draws or an empty chunk; for dims or coords that do not match a variable; for
            discrete latents that cannot be enumerated; for latents of rows that cannot be integrated out; if the
            programs do not run on these data, for example because the guide has latents for the rows of other data.
        LookupError: if the guide does not match the model on these data.
    """
    if stored := fit.stored_draws:
        draws = stored if draws is None else draws
        if draws > stored:
            raise ValueError(f"to_arviz: the sampler made {stored} draws in each chain, got draws={draws}")
    elif draws is None:
        draws = max(DRAWS, AUTO_DRAWS // len(fit.chains)) if "auto" in fit.metadata else DRAWS
    chunk = draws_at_a_time(data, CHUNK) if chunk is None else chunk
    check_draws("to_arviz", draws, chunk, resampled)
    # the program of a model such as flow matching is a regression; its density is another program
    model = getattr(owning_module(fit.model), "density_model", fit.model)
    options = DrawOptions(draws, chunk, predictive, integrate, seed, likelihood, weights=not stored)
    bounded = getattr(fit.loss, "is_negative_elbo", False) and model is fit.model
    with fit.eval_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model, absent = with_responses(fit, model, data)
    model = WithoutDensity()(model)
    chains: list[Groups] = []
    observed: dict[str, Observed] = {}
    attributes: dict[str, Any] = {
        "inference_library": "ppgen",
        "loss": str(fit.loss),
        "stop_reason": [chain.stop_reason for chain in fit.chains],
    }
    if about := fit.metadata.get("rows", {}).get("about"):
        attributes["rows"] = about
    for number in range(len(fit.chains)):
        with fit.eval_mode(number), torch.random.fork_rng():
            torch.manual_seed(seed + number)
            if absent:
                groups, notes = predictive_groups(model, fit.guide, data, absent, options)
                seen: dict[str, Observed] = {}
            else:
                groups, seen, notes = chain_groups(model, fit.guide, data, options)
        chains.append(groups)
        observed = either_observed(observed, seen)
        attributes |= notes
    kind = "elbo_trace" if bounded else "loss_trace"
    more = {kind: _loss_trace(fit, sign=-1 if kind == "elbo_trace" else 1)}
    return container(
        chains,
        observed,
        attributes,
        resampled=None if stored else resampled,
        draws=draws,
        seed=seed,
        dims=dims,
        coords=coords,
        known=_known_coords(fit, rows),
        more={"vi_stats": _evidence_of_sample(fit) if stored else more},
    )


def check_draws(caller: str, draws: int, chunk: int, resampled: str | None) -> None:
    """Checks how many weighted draws are asked for.

    Args:
        caller: the name of the function, for messages.
        draws: the number of draws.
        chunk: the number that is made at a time.
        resampled: how they are resampled.

    Raises:
        ValueError: for too few draws to judge weights, an empty chunk, or an unknown way of resampling.
    """
    if resampled not in ("with", "without", None):
        raise ValueError(f'{caller}: resampled is "with" or "without" replacement, or None, got {resampled!r}')
    if draws < MIN_DRAWS or chunk < 1:
        raise ValueError(
            f"{caller}: expected at least {MIN_DRAWS} draws, in chunks of at least 1, got {draws} in {chunk}"
        )


def _known_coords(fit: Fitted, rows: Sequence[Any] | None) -> dict[str, Sequence[Any]]:
    """The categories of each column of the frame of a fit, and the names of rows."""
    known: dict[str, Sequence[Any]] = {} if rows is None else {DATA: rows}
    return known | (fit.frame.coords if fit.frame is not None else {})


def _evidence_of_sample(fit: Fitted) -> dict[str, Variable]:
    """The log evidence by all chains of a sampler, with its error, and that by each, in nats."""
    refined, num_data = fit.metadata["refined"], fit.num_data
    count = len(fit.chains)
    of_chain = np.array([-chain.final * num_data for chain in fit.chains])
    return {
        "log_marginal": (("chain",), np.full(count, refined["log_marginal"])),
        "log_marginal_error": (("chain",), np.full(count, refined["error"])),
        "log_marginal_of_chain": (("chain",), of_chain),
    }


def _loss_trace(fit: Fitted, *, sign: int) -> Variable:
    """The losses (chain, step), NaN after the end of a chain that took fewer steps."""
    losses = [chain.history["loss"] for chain in fit.chains]
    trace = np.full((len(losses), max(map(len, losses))), np.nan)
    for row, values in zip(trace, losses, strict=True):
        row[: len(values)] = sign * values
    return ("chain", "step"), trace
