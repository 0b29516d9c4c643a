"""Gaussian variational inference, in coordinates whitened by a first guess.

    u = c + R (m + L e),    e ~ N(0, I),    L lower triangular

c and R come from the guess, so that m and L start at 0 and I and one step size fits all coordinates. The gradient is
the path derivative ("sticking the landing", Roeder et al. 2017, https://arxiv.org/abs/1703.09194), which is zero at
every draw if q is the posterior:

    s = R' d log p(u) / du + L'^-1 e
    d ELBO / dm = E s,    d ELBO / dL = E s e'        on and below the diagonal

Adam runs at one step size until the iterates are stationary, that is, until R-hat of the two halves of a window of
iterates is near 1. Then the average of the window is taken, the coordinates are whitened by it again, and the step size
is halved. Optimization ends when the Monte Carlo error of that average is small, in posterior standard deviations
(after Welandawe et al. 2022, https://arxiv.org/abs/2203.15945). In high dimensions L is diagonal: the correlations are
then those of the guess, and only the width of each axis of R is fitted.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.posterior.gaussians import LOG_2PI_E, GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.utils.budget import Budget

__all__ = ["OUTSIDE_PULL", "FittedGaussians", "fit_gaussians"]

DRAWS = 16  # per step
MAX_STEPS = 1200
MIN_WINDOW, MAX_WINDOW = 40, 400  # iterates before a test of stationarity, and before the step is halved anyway
STEP_SIZE = 0.1
BETAS = (0.9, 0.99)  # of Adam
CLIP_NORM = 10.0  # of the gradient, times the square root of the dimension
STATIONARY_RHAT = 1.2  # of the two halves of a window
NEGLIGIBLE_SHIFT = 1e-3  # between the halves, in posterior standard deviations; smaller ones count as none
MAX_ERROR = 0.05  # Monte Carlo error of m and L at convergence, in posterior standard deviations
BATCH_MEANS = 8  # parts of a window, whose means estimate the Monte Carlo error
OUTSIDE_PULL = 10.0  # toward the center, of draws at which p has no density: as if it were N(0, 1 / 10) there
MAX_FULL_DIM = 48  # beyond this dimension the noise in a full L outweighs what it gains, so L is diagonal


@dataclass
class FittedGaussians(GaussianBatch):
    """One Gaussian per chain, with a lower triangular root.

    Attributes:
        elbo: the estimated ELBO of each step, in nats, (n, steps).
        converged: whether each chain has converged, (n,).
        steps: how many steps were made.
    """

    elbo: Tensor
    converged: Tensor
    steps: int

    @classmethod
    def without_steps(cls, q: GaussianBatch, elbo: Tensor) -> "FittedGaussians":
        """Gaussians that were not fitted by steps, with an estimate of the ELBO of each, (n,)."""
        return cls(q.center, _lower_triangular(q.root), elbo[:, None], torch.ones(len(elbo), dtype=torch.bool), 0)

    def stop_reason(self, chain: int) -> str:
        """Why a chain has ended, in words."""
        if not self.steps:
            return "the curvature at a mode and weighted draws around it serve"
        return f"{'converged' if self.converged[chain] else 'not converged'} after {self.steps} steps"


def fit_gaussians(
    target: UnconstrainedLogDensity,
    guess: GaussianBatch,
    generator: torch.Generator,
    *,
    budget: Budget | None = None,
) -> FittedGaussians:
    """The Gaussians of highest ELBO, one per guess.

    Args:
        target: log p.
        guess: first guesses, with any square roots of the covariances.
        generator: source of the draws.
        budget: the time, after which the fit ends with what it has reached.

    Raises:
        KeyboardInterrupt: before the first step is done. Later, Ctrl-C ends the fit with what it has reached.
    """
    optimizer, budget = _Optimizer(target, guess, generator), budget or Budget()
    errors = optimizer.center.new_full((len(optimizer.center),), torch.inf)
    while optimizer.steps < MAX_STEPS:
        budget.show(f"Gaussian, {optimizer.steps} steps")
        try:
            optimizer.run(MIN_WINDOW, budget)
            interrupted = not budget.left
        except KeyboardInterrupt:
            if not optimizer.elbo:
                raise
            interrupted = True
        if interrupted:
            errors = optimizer.whiten() if len(optimizer.iterates) > MIN_WINDOW else errors
            break
        count = len(optimizer.iterates)
        if (count > MIN_WINDOW and optimizer.is_stationary()) or count >= MAX_WINDOW or optimizer.steps >= MAX_STEPS:
            errors = optimizer.whiten()
            if (errors < MAX_ERROR).all():
                break
    root = _lower_triangular(optimizer.root)
    return FittedGaussians(optimizer.center, root, torch.stack(optimizer.elbo, 1), errors < MAX_ERROR, optimizer.steps)


class _Optimizer:
    """Adam on m (n, dim) and log_l: L with the logarithm of its diagonal (n, dim, dim), or that alone (n, dim).

    Attributes:
        center: c, (n, dim).
        root: R, (n, dim, dim).
        elbo: the estimated ELBO of each step, in nats, each (n,).
        iterates: m and log_l of each step since the coordinates were whitened, each (n, entries).
    """

    def __init__(self, target: UnconstrainedLogDensity, guess: GaussianBatch, generator: torch.Generator) -> None:
        self.target, self.center, self.root, self.generator = target, guess.center, guess.root, generator
        self.full = target.dim <= MAX_FULL_DIM
        self.eye = torch.eye(target.dim, dtype=self.center.dtype)
        self.elbo: list[Tensor] = []
        self._restart(STEP_SIZE / math.sqrt(max(1.0, target.dim / MAX_FULL_DIM)))

    def _restart(self, step_size: float) -> None:
        """Starts Adam from m = 0 and L = I in the present coordinates."""
        self.step_size = step_size
        self.log_det = torch.linalg.slogdet(self.root).logabsdet
        self.m = torch.zeros_like(self.center)
        self.log_l = torch.zeros_like(self.root if self.full else self.center)
        self.adam = torch.optim.Adam([self.m, self.log_l], lr=step_size, betas=BETAS)
        self.iterates: list[Tensor] = []

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return len(self.elbo)

    def run(self, steps: int, budget: Budget) -> None:
        """Makes some steps, as long as there is time."""
        for _ in range(steps):
            if self.elbo and not budget.left:
                break
            self.m.grad, self.log_l.grad = self._gradients()
            self.adam.step()
            self.iterates.append(torch.cat([self.m, self.log_l.flatten(1)], 1))

    def is_stationary(self) -> bool:
        """Whether R-hat of the two halves of the window is near 1, for all entries and chains."""
        window = self._window()
        halves = torch.stack(window[:, : window.shape[1] // 2 * 2].chunk(2, 1), 1)
        within, between = halves.var(2).mean(1), halves.mean(2).var(1)
        differ = between.sqrt() > NEGLIGIBLE_SHIFT
        r_hat = torch.where(differ, 1 + between / within.clamp(min=1e-300), 1.0).sqrt()
        return bool((r_hat < STATIONARY_RHAT).all())

    def whiten(self) -> Tensor:
        """Whitens by the window's average, and halves the step size.

        Returns:
            the Monte Carlo error of the average in each chain, the largest of all entries, (n,).
        """
        window = self._window()
        mean = window.mean(1)
        parts = window[:, : window.shape[1] // BATCH_MEANS * BATCH_MEANS].unflatten(1, (BATCH_MEANS, -1)).mean(2)
        m, log_l = mean[:, : self.target.dim], mean[:, self.target.dim :].reshape(self.log_l.shape)
        self.center = self.center + (self.root @ m[..., None]).squeeze(-1)
        self.root = self.root @ self._lower(log_l)
        self._restart(self.step_size / 2)
        return (parts.var(1) / BATCH_MEANS).sqrt().amax(-1)

    def _window(self) -> Tensor:
        """The latter half of the iterates, (n, k, entries)."""
        return torch.stack(self.iterates[len(self.iterates) // 2 :], 1)

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """The clipped gradients of -ELBO in m and log_l, from antithetic draws."""
        half = torch.randn(len(self.m), DRAWS // 2, self.target.dim, generator=self.generator, dtype=self.m.dtype)
        e = torch.cat([half, -half], 1)
        scaled, inverse = self._scale(e)
        u = self.center[:, None] + (self.m[:, None] + scaled) @ self.root.mT
        log_p, gradient = self.target.log_prob_and_grad(u.reshape(-1, self.target.dim))
        finite = log_p.isfinite() & gradient.isfinite().all(-1)
        gradient = torch.where(finite[:, None], gradient, 0.0).reshape(u.shape)
        inside = finite.reshape(*u.shape[:2], 1)
        s = torch.where(inside, gradient @ self.root + inverse, -OUTSIDE_PULL * e)
        log_p, finite = torch.where(finite, log_p, 0.0).reshape(s.shape[:2]), finite.reshape(s.shape[:2])
        entropy = self.log_det + self._log_diagonal().sum(-1) + 0.5 * self.target.dim * LOG_2PI_E
        count = finite.sum(-1)  # q is restricted to where p has a density: ELBO of these draws, plus log of their share
        self.elbo.append(log_p.sum(-1) / count.clamp(min=1) + (count / DRAWS).log() + entropy)
        by_m, by_log_l = -s.mean(1), -self._gradient_log_l(s, e)
        norm = (by_m.square().sum(-1) + by_log_l.square().flatten(1).sum(-1)).sqrt()
        factor = (CLIP_NORM * math.sqrt(self.target.dim) / norm).clamp(max=1.0)
        return by_m * factor[:, None], by_log_l * factor.reshape(-1, *[1] * (by_log_l.dim() - 1))

    def _gradient_log_l(self, s: Tensor, e: Tensor) -> Tensor:
        """The gradient of the ELBO in log_l."""
        if not self.full:
            return (s * e).mean(1) * self.log_l.exp()
        by_l = (s.mT @ e / DRAWS).tril()
        return by_l * (1 - self.eye) + by_l * self.eye * self._lower(self.log_l)

    def _scale(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """L e and L'^-1 e of noise (n, k, dim)."""
        if not self.full:
            scale = self.log_l.exp()[:, None]
            return scale * e, e / scale
        lower = self._lower(self.log_l)
        return e @ lower.mT, torch.linalg.solve_triangular(lower.mT, e.mT, upper=True).mT

    def _lower(self, log_l: Tensor) -> Tensor:
        """L from log_l."""
        if not self.full:
            return log_l.exp().diag_embed()
        return log_l * (1 - self.eye) + log_l.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _log_diagonal(self) -> Tensor:
        """The logarithm of L's diagonal, (n, dim)."""
        return self.log_l.diagonal(dim1=-2, dim2=-1) if self.full else self.log_l


def _lower_triangular(root: Tensor) -> Tensor:
    """The lower triangular square root, with a positive diagonal, of root root'."""
    r = torch.linalg.qr(root.mT).R.mT
    return r * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
