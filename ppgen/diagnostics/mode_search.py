"""A search for modes of the posterior that a guide misses.

From several starting points, around 0 in unconstrained space and from the prior, the modes are found, and a Gaussian is
fitted to each. The posterior's mass in a ball around a mode is estimated twice: by importance sampling from that
Gaussian, and by the guide's weighted draws. The guide misses the mode if its estimate is less than a quarter of the
other one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppgen.diagnostics.proposals import NO_DENSITY, Proposal
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.importance import importance_summary
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import find_modes
from ppgen.posterior.starts import initial_points
from ppgen.utils.budget import Budget

__all__ = ["NEGLIGIBLE_MASS", "ModeSearch", "search_modes"]

POINTS_PER_START = 10  # draws of the prior that are tried for each starting point
NEGLIGIBLE_MASS = 1e-3  # of a mode
COVERED = 4.0  # the guide covers a mode if it has at least the fourth part of the mass there


@dataclass(frozen=True)
class ModeSearch:
    """The modes that the guide misses.

    Attributes:
        missed_mass: the share of the posterior's mass at the one that is missed most; 0 if none is.
        location: the latents there, by name.
        modes: the Gaussians at all modes with mass that were found, on the real line, by decreasing mass.
        missed: which of these the guide misses.
    """

    missed_mass: float
    location: dict[str, Tensor]
    modes: GaussianBatch
    missed: np.ndarray


def search_modes(
    target: UnconstrainedLogDensity,
    u: Tensor,
    log_weights: np.ndarray,
    log_evidence: float,
    *,
    starts: int,
    generator: torch.Generator,
    prior: Proposal | None = None,
    budget: Budget | None = None,
) -> ModeSearch | None:
    """Searches for modes that the guide misses.

    Args:
        target: the program's unconstrained log density.
        u: draws (S, dim) of the guide in unconstrained space.
        log_weights: their smoothed and normalized log weights (S,).
        log_evidence: the log evidence by these weights, in nats.
        starts: the number of starting points around 0, and of those drawn by the prior.
        generator: the source of random numbers.
        prior: the prior, if it is available.
        budget: the time, after which modes are what the search has reached.

    Returns:
        The mode that is missed most; None if no mode can be found, or no weight is finite.
    """
    try:
        points = initial_points(target, starts, generator)
        if prior is not None:
            points = torch.cat([points, _draws_with_density(target, prior, starts)])
        modes = find_modes(target, points, generator, budget=budget)
    except NO_DENSITY:
        return None
    noise = torch.randn(len(points), *u.shape, generator=generator, dtype=torch.float64)
    log_p = target.log_prob(modes.rsample(noise).flatten(0, 1)).reshape(len(points), len(u))
    if not (np.isfinite(log_weights).any() and np.isfinite(log_evidence)):
        return None
    radius = math.sqrt(target.dim) + 2
    log_ratio = torch.where(noise.norm(dim=-1) < radius, log_p - modes.log_prob(noise), -torch.inf)
    log_mass = importance_summary(log_ratio.mT.numpy()).log_marginal
    guide_mass = (modes.whitened(u).norm(dim=-1) < radius).double().numpy() @ np.exp(log_weights)
    share = np.where(np.isfinite(log_mass), 1 / (1 + np.exp(np.clip(log_evidence - log_mass, -50, 50))), 0.0)
    missed = np.where(guide_mass < share / COVERED, share, 0.0)
    location = target.constrain(modes.center[int(missed.argmax())])
    kept = _distinct(modes, share)
    found = GaussianBatch(modes.center[kept], modes.root[kept])
    return ModeSearch(float(missed.max(initial=0.0)), location, found, missed[kept] > 0)


def _distinct(modes: GaussianBatch, share: np.ndarray) -> list[int]:
    """The numbers of Gaussians whose share (n,) of the mass is not negligible, one for each mode."""
    distance = modes.whitened(modes.center).norm(dim=-1)  # row: whose standard deviations; column: whose center
    kept: list[int] = []
    for number in map(int, np.argsort(-share)):
        if share[number] > NEGLIGIBLE_MASS and all(float(distance[other, number]) > 1 for other in kept):
            kept.append(number)
    return kept


def _draws_with_density(target: UnconstrainedLogDensity, prior: Proposal, count: int) -> Tensor:
    """The first draws of the prior at which log p and its gradient are finite, at most this many."""
    points = prior.u[prior.u.isfinite().all(1)][: POINTS_PER_START * count]
    value, gradient = target.log_prob_and_grad(points)
    return points[value.isfinite() & gradient.isfinite().all(1)][:count]
