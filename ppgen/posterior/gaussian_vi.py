"""The Gaussian of most evidence, in coordinates whitened by a first guess.

    u = c + R (m + L e),    e ~ N(0, I),    L lower triangular

c and R are those of the guess, so that m and L start at 0 and I and one step size fits all. The gradient sticks the
landing (Roeder et al. 2017): with y = m + L e and s = R' d log p(u) / du + L'^-1 e, which is zero at every draw where q
is the posterior,

    d / dm = E s,    d / dL = E s e'        below and on the diagonal

Adam goes on at one step size until its path has stopped moving, that is until R-hat of the two halves of a window of
iterates is near 1; then the window's average is taken, the coordinates are whitened by it anew, and the step is halved.
The end is where the Monte Carlo error of that average, in posterior standard deviations, is small (after Welandawe et
al. 2022). Of many latents L is diagonal: correlations are then those of the guess, R, and each of its axes finds its
own width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.posterior.gaussians import LOG_2PI_E, GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity

__all__ = ["Gaussians", "fit_gaussians"]

DRAWS = 16
WINDOW, LONGEST = 40, 400  # iterates that are looked at together: at least, and at most before the step is halved
RATE = 0.1
BOUND = 10.0  # of a gradient's norm, for each square root of the dimension
STATIONARY = 1.2  # R-hat of the halves of a window
STANDING = 1e-3  # posterior standard deviations: halves that differ by less are the same
CLOSE = 0.05  # Monte Carlo error of m and L, in posterior standard deviations
STEPS = 1200
FULL = 48  # latents up to which L has more than its diagonal: beyond, its noise outweighs what it finds


@dataclass
class FittedGaussians(GaussianBatch):
    """A Gaussian a chain, their roots lower triangular.

    Attributes:
        evidence: (n, steps): the estimated evidence bound on the way, in nats.
        converged: (n,), whether the path has come to rest.
    """

    evidence: Tensor
    converged: Tensor


def fit_gaussians(
    target: UnconstrainedLogDensity,
    center: Tensor,
    root: Tensor,
    generator: torch.Generator,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> FittedGaussians:
    """Gaussians of most evidence, from guesses (n, dim), (n, dim, dim) of any square roots."""
    path = _Path(target, center, root, generator)
    while len(path.evidence) < STEPS:
        progress(f"Gaussian, {len(path.evidence)} steps")
        try:
            path.walk(WINDOW)
        except KeyboardInterrupt:
            if not path.evidence:
                raise
            errors = path.average() if len(path.iterates) > WINDOW else center.new_full((len(center),), torch.inf)
            break
        last = len(path.iterates) >= LONGEST or len(path.evidence) >= STEPS
        if (len(path.iterates) > WINDOW and path.at_rest()) or last:
            errors = path.average()
            if (errors < CLOSE).all():
                break
    return FittedGaussians(path.center, _triangular(path.root), torch.stack(path.evidence, 1), errors < CLOSE)


class _Path:
    """Adam on m and on log_l: what is below L's diagonal and the diagonal's logarithm, or that alone, (n, dim)."""

    def __init__(self, target: UnconstrainedLogDensity, center: Tensor, root: Tensor, generator: torch.Generator):
        self.target, self.center, self.root, self.generator = target, center, root, generator
        self.full = target.dim <= FULL
        self.eye = torch.eye(target.dim, dtype=center.dtype)
        self.rate = 2 * RATE / math.sqrt(max(1.0, target.dim / FULL))
        self.evidence: list[Tensor] = []
        self._begin()

    def _begin(self) -> None:
        """From m = 0 and L = I, by half the step."""
        self.log_det = torch.linalg.slogdet(self.root).logabsdet
        self.m = torch.zeros_like(self.center)
        self.log_l = torch.zeros_like(self.root if self.full else self.center)
        self.rate /= 2
        self.optim = torch.optim.Adam([self.m, self.log_l], lr=self.rate, betas=(0.9, 0.99))
        self.iterates: list[Tensor] = []

    def walk(self, steps: int) -> None:
        for _ in range(steps):
            self.m.grad, self.log_l.grad = self._gradients()
            self.optim.step()
            self.iterates.append(torch.cat([self.m, self.log_l.flatten(1)], 1))

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """Of minus the evidence, by m and by L's logarithm, of antithetic draws."""
        half = torch.randn(len(self.m), DRAWS // 2, self.target.dim, generator=self.generator, dtype=self.m.dtype)
        e = torch.cat([half, -half], 1)
        y, back = self._scaled(e)
        u = self.center[:, None] + (self.m[:, None] + y) @ self.root.mT
        log_p, slope = self.target.log_prob_and_grad(u.reshape(-1, self.target.dim))
        finite = log_p.isfinite() & slope.isfinite().all(-1)
        slope = torch.where(finite[:, None], slope, 0.0).reshape(u.shape)
        s = (slope @ self.root + back) * finite.reshape(*u.shape[:2], 1)
        entropy = self.log_det + self._diagonal().sum(-1) + 0.5 * self.target.dim * LOG_2PI_E
        kept = finite.reshape(s.shape[:2]).sum(-1)  # of q where there is a density, its evidence has these draws alone
        mean = torch.where(finite, log_p, 0.0).reshape(s.shape[:2]).sum(-1) / kept.clamp(min=1)
        self.evidence.append(mean + (kept / DRAWS).log() + entropy)
        by_m, by_log_l = -s.mean(1), -self._by_log_l(s, e)
        norm = (by_m.square().sum(-1) + by_log_l.square().flatten(1).sum(-1)).sqrt()
        held = (BOUND * math.sqrt(self.target.dim) / norm).clamp(max=1.0)
        return by_m * held[:, None], by_log_l * held.reshape(-1, *[1] * (by_log_l.dim() - 1))

    def _diagonal(self) -> Tensor:
        return self.log_l.diagonal(dim1=-2, dim2=-1) if self.full else self.log_l

    def _scaled(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """L e and L'^-1 e of noise (n, k, dim)."""
        if not self.full:
            scale = self.log_l.exp()[:, None]
            return scale * e, e / scale
        lower = self._lower(self.log_l)
        return e @ lower.mT, torch.linalg.solve_triangular(lower.mT, e.mT, upper=True).mT

    def _by_log_l(self, s: Tensor, e: Tensor) -> Tensor:
        """The evidence's gradient by log_l."""
        if not self.full:
            return (s * e).mean(1) * self.log_l.exp()
        by_l = (s.mT @ e / DRAWS).tril()
        return by_l * (1 - self.eye) + by_l * self.eye * self._lower(self.log_l)

    def _lower(self, log_l: Tensor) -> Tensor:
        """L."""
        if not self.full:
            return log_l.exp().diag_embed()
        return log_l * (1 - self.eye) + log_l.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _window(self) -> Tensor:
        """The latter half of the iterates, (n, k, entries)."""
        return torch.stack(self.iterates[len(self.iterates) // 2 :], 1)

    def at_rest(self) -> bool:
        """Whether all entries' R-hat of the window's halves is near 1, in all chains."""
        window = self._window()
        halves = torch.stack(window[:, : window.shape[1] // 2 * 2].chunk(2, 1), 1)
        within, between = halves.var(2).mean(1), halves.mean(2).var(1)
        apart = between.sqrt() > STANDING
        r_hat = torch.where(apart, 1 + between / within.clamp(min=1e-300), 1.0).sqrt()
        return bool((r_hat < STATIONARY).all())

    def average(self) -> Tensor:
        """Whitens by the window's average, and begins anew from there; the average's Monte Carlo errors, (n,)."""
        window = self._window()
        mean, count = window.mean(1), 8
        means = window[:, : window.shape[1] // count * count].unflatten(1, (count, -1)).mean(2)
        m, log_l = mean[:, : self.target.dim], mean[:, self.target.dim :].reshape(self.log_l.shape)
        self.center = self.center + (self.root @ m[..., None]).squeeze(-1)
        self.root = self.root @ self._lower(log_l)
        self._begin()
        return (means.var(1) / count).sqrt().amax(-1)


def _triangular(root: Tensor) -> Tensor:
    """The lower triangular root, with a positive diagonal, of root root'."""
    r = torch.linalg.qr(root.mT).R.mT
    return r * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
