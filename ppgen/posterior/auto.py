"""``guide="auto"``: the posterior of a program's global latents, found from the model alone.

1. Scattered starting points, one per chain.
2. A mode from each, with a local Gaussian (`find_modes`). If they are not one mode, more starting points, some of them
   the best of many draws of the prior, and the best modes of all.
3. One Gaussian for each mode, weighed by importance sampling: those of the curvature; where a single one is usable but
   not good, that with the moments of its weighted draws; or the mixture, if there are several modes.
4. The Gaussian of full rank with the highest ELBO at each mode (`fit_gaussians`), and their mixture.
5. A flow on top of the best Gaussian (`fit_flow`).

The search ends with the first of 3 to 5 whose importance weights call its draws good. All steps run in double precision
and on the real line. The result is the fit of highest ELBO, with a guide of Pyro's own, an `AutoMixture` or an
`AutoFlow`.

Of many rows a random subset serves, with control variates from a few passes over all rows (`ManyRows`): modes are found
on the subset and moved to those of all rows; at the end the error of the subset is measured at draws of the posterior,
and a larger one is taken if it is large. Of many latents, those of groups that are independent given the others are
integrated out first (`ppgen.posterior.marginal`).
"""

import math
import time

import numpy as np
import torch
from torch import Tensor

from ppgen.posterior.candidates import Candidate, CandidateBuilder
from ppgen.posterior.directions import Directions
from ppgen.posterior.gaussian_vi import FittedGaussians, fit_gaussians
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.importance import NEGLIGIBLE_NATS
from ppgen.posterior.latent_field import unreadable_because
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.many_rows import ManyRows
from ppgen.posterior.newton import LocalGaussians, find_modes
from ppgen.posterior.starts import initial_points, likely_points
from ppgen.tracing.sites import Program
from ppgen.training.result import Fitted
from ppgen.utils.budget import Budget
from ppgen.utils.user_warnings import warn_user

__all__ = ["find_posterior", "search_from"]

MAX_DIM = 3000  # full covariances of more latents take too much time and memory
HOPELESS_NATS = 100.0  # a point whose ELBO is this far below the best is no mode, or one without mass
RESTART_SPREAD = 5.0  # of new starting points around the best mode, in its standard deviations
MODES_SHARE, GAUSSIANS_SHARE, FLOW_SHARE = 0.5, 0.6, 0.9  # of the time that is left, for each; the rest is for weighing
MODE_ERROR = 0.1  # standard deviations per coordinate by which two fits of one mode may differ


def find_posterior(
    model: Program,
    data: tuple[Tensor, ...] = (),
    *,
    restarts: int = 4,
    seed: int = 0,
    budget: Budget | None = None,
) -> Fitted:
    """Finds the posterior of a program's global latents on data.

    Ctrl-C ends the fit of Gaussians with what it has reached, and abandons the fit of a flow; before there is a
    Gaussian it is raised.

    Args:
        model: a Pyro program without parameters.
        data: its arguments.
        restarts: the number of starting points, one per chain.
        seed: of all random numbers; the caller's random state is preserved.
        budget: the time that it may take. When that is over, the best so far is the result, with a warning.

    Returns:
        the fit of highest ELBO, with its best chain selected.

    Raises:
        ValueError: if the program has parameters, no continuous latent, too many latents, or discrete latents that
            cannot be enumerated; if the density is unbounded along some direction, so that there is no posterior; if
            the time is over before the search for modes begins.
        FloatingPointError: if log p is finite nowhere; the message names the sites.
    """
    began = time.perf_counter()
    budget = budget or Budget()
    budget.show("starting points")
    whole, generator = UnconstrainedLogDensity(Directions(model), data), torch.Generator().manual_seed(seed)
    many = ManyRows.of(whole, generator, budget, report=whole.dim <= MAX_DIM)
    target = whole if many is None else many.scaled
    if target.dim > MAX_DIM:
        raise ValueError(
            f'guide="auto" needs the full covariance of all latents, of dimension {MAX_DIM} at most; the latents of '
            f"this program have dimension {whole.dim}, and they are not integrated out, since "
            f"{unreadable_because(whole)}. Give a guide, such as AutoLowRankMultivariateNormal(model) or "
            "AutoNormal(model), or an amortized guide if most latents are local to a datum"
        )
    starts = initial_points(target, restarts, generator)
    if not budget.left:
        raise ValueError(
            f"fit: the budget of {budget.seconds:g} s was over before the search began, since the starting points took "
            f"{time.perf_counter() - began:.2g} s: give more"
        )
    modes = None if many is None else many.find_modes(starts, budget.part(MODES_SHARE))
    if modes is None:
        modes = search_from(target, starts, generator, budget.part(MODES_SHARE))
    elif distinct := _distinct_modes(modes, modes.elbo.numpy(), HOPELESS_NATS):
        modes = modes.select(torch.tensor(distinct))
    if many is None:
        builder = CandidateBuilder(whole, starts, seed, began)
        best = _best_fit(builder, modes, generator, budget)
    else:
        many.anchor(modes, budget)
        builder = CandidateBuilder(many.program, starts, seed, began)
        while True:
            builder.target = many.estimate
            best = _best_fit(builder, many.modes(generator), generator, budget)
            if many.serves(best.u, generator, budget):
                break
        many.finish(best.fit)
    if not best.is_good and not budget.left:
        description, reason = best.fit.metadata["auto"], best.fit.chains[best.fit.best].stop_reason
        warn_user(
            f"the budget of {budget.seconds:g} s was over: this is a {description} ({reason}), and its importance "
            "weights do not call it good; more time may help"
        )
    best.fit.metadata["evaluations"] = dict(builder.target.evaluations)
    best.fit.select_chain(best.fit.best)
    return best.fit


def _best_fit(
    builder: CandidateBuilder,
    modes: LocalGaussians,
    generator: torch.Generator,
    budget: Budget,
) -> Candidate:
    """The candidate of highest ELBO, of those that the search makes until one is good.

    Args:
        builder: makes the candidates.
        modes: Gaussians at the modes.
        generator: source of random numbers.
        budget: the time.
    """
    target = builder.target
    gaussians = FittedGaussians.without_steps(modes, modes.elbo)
    best, chain = _weigh(builder, gaussians, generator, budget)
    if len(modes.center) == 1 and best.is_usable and not best.is_good:
        moved = modes.moved_to(best.u, torch.as_tensor(best.weights.log_smoothed[:, 0]).exp())
        gaussians = FittedGaussians.without_steps(moved, torch.tensor([best.elbo]))
        best, chain = _weigh(builder, gaussians, generator, budget)
    if not best.is_good and budget.left:
        gaussians = fit_gaussians(target, modes, generator, budget=budget.part(GAUSSIANS_SHARE))
        best, chain = _weigh(builder, gaussians, generator, budget)
    center, root = gaussians.center[chain], gaussians.root[chain]
    if not best.is_good and budget.left:
        try:
            flow = builder.flow(center, root, budget.part(FLOW_SHARE))
            best = max(best, flow, key=lambda candidate: candidate.elbo)
        except KeyboardInterrupt:
            description = best.fit.metadata["auto"]
            warn_user(
                f"interrupted during the fit of a flow: this is a {description}, to be used with importance weights"
            )
    target.check(center)  # whether the program is still what it was at the beginning
    return best


def search_from(
    target: UnconstrainedLogDensity, starts: Tensor, generator: torch.Generator, budget: Budget
) -> LocalGaussians:
    """Distinct modes, at most as many as there are starts, by decreasing ELBO.

    Where the starts lead to several, others may have been missed: twice as many new ones follow, half of them likely
    draws of the prior.

    Args:
        target: log p.
        starts: starting points, (n, dim).
        generator: source of random numbers.
        budget: the time.
    """
    modes = _find_modes_with_retry(target, starts, generator, budget)
    distinct = _distinct_modes(modes, modes.elbo.numpy(), HOPELESS_NATS)
    if len(distinct) > 1 and budget.left:
        count = len(starts)
        others = initial_points(target, count, generator), likely_points(target, count, generator)
        modes = modes.joined(find_modes(target, torch.cat(others), generator, budget=budget))
        distinct = _distinct_modes(modes, modes.elbo.numpy(), HOPELESS_NATS)
    return modes.select(torch.tensor(distinct[: len(starts)])) if distinct else modes


def _find_modes_with_retry(
    target: UnconstrainedLogDensity, starts: Tensor, generator: torch.Generator, budget: Budget
) -> LocalGaussians:
    """Modes from all starts; hopeless ones are searched again, from points widely around the best mode."""
    modes = find_modes(target, starts, generator, budget=budget)
    best = modes.elbo.argmax()
    hopeless = modes.elbo < modes.elbo[best] - HOPELESS_NATS
    if hopeless.any() and budget.left:
        noise = torch.randn(int(hopeless.sum()), target.dim, generator=generator, dtype=starts.dtype)
        points = modes.center[best] + RESTART_SPREAD * noise @ modes.root[best].mT
        retried = find_modes(target, points, generator, budget=budget)
        better = retried.elbo > modes.elbo[hopeless]
        modes.update(hopeless.nonzero()[:, 0][better], retried.select(better))
    return modes


def _weigh(
    builder: CandidateBuilder, q: FittedGaussians, generator: torch.Generator, budget: Budget
) -> tuple[Candidate, int]:
    """The best of the Gaussians and of their mixture, and which of the Gaussians is the best."""
    budget.show("weighing Gaussians")
    best, log_marginal = builder.gaussian(q, generator, budget)
    chain = best.fit.best
    if len(chains := _distinct_modes(q, log_marginal, NEGLIGIBLE_NATS)) > 1:
        mixture = builder.mixture(q, chains, log_marginal[chains], generator, budget)
        best = max(best, mixture, key=lambda candidate: candidate.elbo)
    return best, chain


def _distinct_modes(q: GaussianBatch, evidence: np.ndarray, within: float) -> list[int]:
    """Gaussians at different modes, by decreasing evidence.

    Args:
        q: the Gaussians.
        evidence: the log evidence of each, or a bound, in nats, (n,).
        within: how far below the best, in nats, evidence counts.
    """
    chains: list[int] = []
    evidence = np.where(np.isfinite(evidence), evidence, -np.inf)
    distance = q.whitened(q.center).norm(dim=-1)  # row: whose standard deviations; column: whose center
    for chain in map(int, np.argsort(-evidence)):
        if not (np.isfinite(evidence[chain]) and evidence[chain] >= evidence.max() - within):
            break
        if all(float(distance[other, chain]) > 1 + MODE_ERROR * math.sqrt(len(q.center[0])) for other in chains):
            chains.append(chain)
    return chains
