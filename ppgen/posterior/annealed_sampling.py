"""The evidence log p(x) from both sides, by annealed importance sampling with moves of Hamiltonian Monte Carlo.

Between a base b(u) that is easy to draw from and the posterior lie the laws

    log f_t(u) = beta_t log p(u) + (1 - beta_t) log b(u),    0 = beta_0 < ... < beta_T = 1

Forth, u_0 ~ b is moved by steps that leave f_1, .., f_T as they are, and weighs (Neal 2001)

    log w = sum_t (beta_t - beta_{t-1}) (log p(u_{t-1}) - log b(u_{t-1})),    E w = p(x)

so that log mean w is below log p(x) on average. Back, the same from a draw of the posterior down to b has E 1 / w =
1 / p(x), and - log mean 1 / w is above it (Grosse et al. 2015): exact draws make a sandwich, and draws that are none
may not. Coordinates are whitened by the base, where one length of step serves.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.posterior.log_density import UnconstrainedLogDensity

__all__ = ["EvidenceBounds", "ais_bounds"]

LEAPS = 5  # leapfrog steps of a move
LENGTH = 0.5  # of such a step, for each dimension to the power of -1/4; drawn anew within a half of itself


@dataclass(frozen=True)
class EvidenceBounds:
    """Bounds on log p(x) on average, in nats, with standard errors by the delta method.

    `upper` is NaN where no draws of the posterior were given; `accepted` is the share of moves that were.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float
    accepted: float


def ais_bounds(
    target: UnconstrainedLogDensity,
    center: Tensor,
    root: Tensor,
    *,
    posterior: Tensor | None = None,
    draws: int = 64,
    temperatures: int = 100,
    seed: int = 0,
) -> EvidenceBounds:
    """Bounds on the evidence, from a Gaussian base.

    Args:
        center, root: the base N(center, root root'), on the real line: a Gaussian fit made wider, say.
        posterior: draws (n, dim) of the posterior, for the upper bound.
        draws: paths up.
        temperatures: T; beta rises along a sigmoid, slowly at both ends.

    Raises:
        ValueError: for fewer than two draws, of the posterior too, or temperatures.
    """
    if draws < 2 or temperatures < 2 or (posterior is not None and len(posterior) < 2):
        given = "" if posterior is None else f", and {len(posterior)} of the posterior"
        raise ValueError(f"sandwich: at least two draws and temperatures, got {draws} and {temperatures}{given}")
    generator = torch.Generator().manual_seed(seed)
    walk = _Walk(target, center, root, generator)
    grid = torch.linspace(-4, 4, temperatures + 1, dtype=torch.float64).sigmoid()
    betas = ((grid - grid[0]) / (grid[-1] - grid[0])).tolist()
    y = torch.randn(draws, target.dim, generator=generator, dtype=torch.float64)
    up = walk.path(y, betas)
    lower, lower_error = _log_mean(up)
    upper = upper_error = math.nan
    if posterior is not None:
        y = torch.linalg.solve(root, (posterior - center).mT).mT
        down = walk.path(y, betas[::-1])
        upper, upper_error = _log_mean(down)
        upper = -upper
    return EvidenceBounds(lower, lower_error, upper, upper_error, walk.accepted / max(walk.tried, 1))


class _Walk:
    """Moves in coordinates u = center + root y, in which the base is N(0, I)."""

    def __init__(self, target: UnconstrainedLogDensity, center: Tensor, root: Tensor, generator: torch.Generator):
        self.target, self.center, self.root, self.generator = target, center, root, generator
        self.log_det = torch.linalg.slogdet(root).logabsdet
        self.accepted = self.tried = 0.0

    def path(self, y: Tensor, betas: list[float]) -> Tensor:
        """The logarithms of weights w, or of 1 / w where betas fall, of points y (n, dim) moved along."""
        here, log_weights = self._at(y), torch.zeros(len(y), dtype=y.dtype)
        for number, (before, after) in enumerate(pairwise(betas)):
            if number or before == 1.0:  # draws of the base are at rest there; those of the posterior may be moved
                here = self._move(here, before)
            log_weights += (after - before) * (here.log_p - here.log_b)
        return log_weights

    def _at(self, y: Tensor) -> "_Points":
        value, slope = self.target.log_prob_and_grad(self.center + y @ self.root.mT)
        known = value.isfinite() & slope.isfinite().all(-1)
        value, slope = torch.where(known, value, -torch.inf), torch.where(known[:, None], slope, 0.0)
        log_b = -0.5 * (y.square() + math.log(2 * math.pi)).sum(-1)
        return _Points(y, value + self.log_det, log_b, slope @ self.root, -y)

    def _move(self, here: "_Points", beta: float) -> "_Points":
        shape = here.y.shape
        uniform = torch.rand(len(here.y), 2, generator=self.generator, dtype=here.y.dtype)
        step = LENGTH * shape[-1] ** -0.25 * (0.5 + uniform[:, :1])
        momentum = torch.randn(shape, generator=self.generator, dtype=here.y.dtype)
        there, speed = here, momentum + 0.5 * step * here.slope(beta)
        for leap in range(LEAPS):
            there = self._at(there.y + step * speed)
            speed = speed + (0.5 if leap == LEAPS - 1 else 1.0) * step * there.slope(beta)
        energy = 0.5 * (speed.square() - momentum.square()).sum(-1)
        gain = there.height(beta) - here.height(beta) - energy
        taken = uniform[:, 1].log() < gain.nan_to_num(nan=-math.inf)
        self.accepted, self.tried = self.accepted + float(taken.sum()), self.tried + len(here.y)
        parts = (
            torch.where(taken if new.dim() == 1 else taken[:, None], new, old)
            for new, old in zip(there, here, strict=True)
        )
        return _Points(*parts)


class _Points(NamedTuple):
    """Points y (n, dim), log p and log b as densities of y, and the slopes of both."""

    y: Tensor
    log_p: Tensor
    log_b: Tensor
    by_p: Tensor
    by_b: Tensor

    def height(self, beta: float) -> Tensor:
        """Log f."""
        return beta * self.log_p + (1 - beta) * self.log_b

    def slope(self, beta: float) -> Tensor:
        return beta * self.by_p + (1 - beta) * self.by_b


def _log_mean(log_weights: Tensor) -> tuple[float, float]:
    """The logarithm of the mean of weights, and its standard error."""
    count = len(log_weights)
    weights = (log_weights - log_weights.max()).exp()
    error = float(weights.std() / weights.mean() / math.sqrt(count))
    return float(log_weights.logsumexp(0)) - math.log(count), error
