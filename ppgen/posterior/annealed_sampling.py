"""Bounds on the evidence log p(x) by annealed importance sampling (AIS), with moves by Hamiltonian Monte Carlo.

Between a base b(u) that is easy to sample and the posterior lie the densities

    log f_t(u) = beta_t log p(u) + (1 - beta_t) log b(u),    0 = beta_0 < ... < beta_T = 1

A forward path starts at u_0 ~ b and moves by transitions that leave f_1, .., f_T invariant. Its weight (Neal 2001,
https://arxiv.org/abs/physics/9803008)

    log w = sum_t (beta_t - beta_{t-1}) (log p(u_{t-1}) - log b(u_{t-1})),    E w = p(x)

makes log mean w a lower bound of log p(x) on average. A reverse path from an exact draw of the posterior to b has
E 1 / w = 1 / p(x), so - log mean 1 / w is an upper bound on average (Grosse et al. 2015,
https://arxiv.org/abs/1511.02543). The upper bound may fail if the draws are not from the posterior. Coordinates are
whitened by the base, so that one step size fits all.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ppgen.posterior.hamiltonian import BridgePoints, move
from ppgen.posterior.log_density import UnconstrainedLogDensity

__all__ = ["EvidenceBounds", "ais_bounds", "log_mean_exp"]

LEAPFROG_STEPS = 5  # of one move
STEP_SIZE = 0.5  # of a leapfrog step, times dim^(-1/4) and a random factor between 0.5 and 1.5
MAX_LOGIT = 4.0  # beta follows a sigmoid of equally spaced logits up to this one


@dataclass(frozen=True)
class EvidenceBounds:
    """Bounds on log p(x), on average, in nats, with standard errors by the delta method.

    Attributes:
        lower: the lower bound.
        lower_error: its standard error.
        upper: the upper bound; NaN without draws of the posterior.
        upper_error: its standard error.
        accepted: the mean acceptance probability of the moves.
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
    """Bounds on the evidence, with the Gaussian base N(center, root root'), for example a widened Gaussian fit.

    Args:
        target: log p.
        center: the mean of the base, (dim,).
        root: a square root of the covariance of the base, (dim, dim).
        posterior: draws of the posterior, (n, dim), for the upper bound.
        draws: the number of forward paths.
        temperatures: T; beta follows a sigmoid, slowly at both ends.
        seed: of all random numbers.

    Raises:
        ValueError: for fewer than two draws, draws of the posterior, or temperatures.
    """
    if draws < 2 or temperatures < 2 or (posterior is not None and len(posterior) < 2):
        given = "" if posterior is None else f", and {len(posterior)} of the posterior"
        raise ValueError(
            f"ais_bounds: expected at least two draws and temperatures, got {draws} and {temperatures}{given}"
        )
    generator = torch.Generator().manual_seed(seed)
    annealing = _Annealing(target, center, root, generator)
    grid = torch.linspace(-MAX_LOGIT, MAX_LOGIT, temperatures + 1, dtype=torch.float64).sigmoid()
    betas = ((grid - grid[0]) / (grid[-1] - grid[0])).tolist()
    y = torch.randn(draws, target.dim, generator=generator, dtype=torch.float64)
    lower, lower_error = log_mean_exp(annealing.log_weights(y, betas))
    upper = upper_error = math.nan
    if posterior is not None:
        y = torch.linalg.solve(root, (posterior - center).mT).mT
        log_mean, upper_error = log_mean_exp(annealing.log_weights(y, betas[::-1]))
        upper = -log_mean
    return EvidenceBounds(lower, lower_error, upper, upper_error, annealing.accepted / max(annealing.proposed, 1))


class _Annealing:
    """Annealing paths in coordinates u = center + root y, in which the base is N(0, I)."""

    def __init__(
        self, target: UnconstrainedLogDensity, center: Tensor, root: Tensor, generator: torch.Generator
    ) -> None:
        self.target, self.center, self.root, self.generator = target, center, root, generator
        self.log_det = torch.linalg.slogdet(root).logabsdet
        self.accepted = self.proposed = 0.0

    def log_weights(self, y: Tensor, betas: list[float]) -> Tensor:
        """The log weights log w of paths from points y (n, dim), or log 1 / w if the betas decrease: (n,)."""
        points, log_weights = self._evaluate(y), torch.zeros(len(y), dtype=y.dtype)
        for number, (before, after) in enumerate(pairwise(betas)):
            if number or before == 1.0:  # draws of the base need no move at beta = 0
                points = self._move(points, before)
            log_weights += (after - before) * (points.log_p - points.log_b)
        return log_weights

    def _evaluate(self, y: Tensor) -> BridgePoints:
        value, gradient = self.target.log_prob_and_grad(self.center + y @ self.root.mT)
        finite = value.isfinite() & gradient.isfinite().all(-1)
        value, gradient = torch.where(finite, value, -torch.inf), torch.where(finite[:, None], gradient, 0.0)
        log_b = -0.5 * (y.square() + math.log(2 * math.pi)).sum(-1)
        return BridgePoints(y, value + self.log_det, log_b, gradient @ self.root, -y)

    def _move(self, points: BridgePoints, beta: float) -> BridgePoints:
        """One transition of Hamiltonian Monte Carlo that leaves f at this beta invariant."""
        step = STEP_SIZE * points.y.shape[-1] ** -0.25
        points, accepted = move(
            points, beta, self._evaluate, step=step, leapfrog_steps=LEAPFROG_STEPS, generator=self.generator
        )
        self.accepted, self.proposed = self.accepted + float(accepted.sum()), self.proposed + len(accepted)
        return points


def log_mean_exp(log_weights: Tensor) -> tuple[float, float]:
    """The logarithm of the mean weight, and its standard error by the delta method."""
    count = len(log_weights)
    weights = (log_weights - log_weights.max()).exp()
    error = float(weights.std() / weights.mean() / math.sqrt(count))
    return float(log_weights.logsumexp(0)) - math.log(count), error
