"""The Gaussian of most evidence, in coordinates whitened by a first guess.

    u = c + R (m + L e),    e ~ N(0, I),    L lower triangular (full rank) or diagonal (mean field)

c and R are those of the guess, so that m and L start at 0 and I and one step size fits all. The gradient sticks the
landing (Roeder et al. 2017): with y = m + L e and s = R' d log p(u) / du + L'^-1 e, which is zero at every draw where q
is the posterior,

    d / dm = E s,    d / dL = E s e'        restricted to the entries that L has

Adam goes on at one step size until its path has stopped moving, that is until R-hat of the two halves of a window of
iterates is near 1; then the window's average is taken, the coordinates are whitened by it anew, and the step is halved.
The end is where the Monte Carlo error of that average, in posterior standard deviations, is small (after Welandawe et
al. 2022).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppgen.posterior.climb import LOG_2PI_E
from ppgen.posterior.unconstrained import Unconstrained

__all__ = ["Gaussians", "climb_evidence"]

DRAWS = 16
WINDOW = 40
RATE = 0.1
STATIONARY = 1.2  # R-hat of the halves of a window
CLOSE = 0.05  # Monte Carlo error of m and L, in posterior standard deviations
STEPS = 1200


@dataclass
class Gaussians:
    """N(center, root root'), one a chain.

    Attributes:
        center, root: (n, dim), (n, dim, dim), root lower triangular.
        evidence: arrays (n, steps): the estimated evidence bound on the way, in nats.
        converged: whether the path has come to rest, a chain.
        stopped: why it ended, in words.
    """

    center: Tensor
    root: Tensor
    evidence: Tensor
    converged: Tensor
    stopped: list[str] = field(default_factory=list)

    def rsample(self, noise: Tensor) -> Tensor:
        """Points (n, k, dim) of noise (n, k, dim)."""
        return self.center[:, None] + noise @ self.root.mT

    def log_prob(self, noise: Tensor) -> Tensor:
        """log q at the points of noise (n, k, dim): (n, k)."""
        log_det = self.root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - log_det[:, None]


def climb_evidence(
    target: Unconstrained,
    center: Tensor,
    root: Tensor,
    generator: torch.Generator,
    *,
    full: bool = True,
    steps: int = STEPS,
    progress=lambda *_: None,
) -> Gaussians:
    """Gaussians of most evidence, from guesses (n, dim), (n, dim, dim)."""
    count, dim = center.shape
    eye = torch.eye(dim, dtype=center.dtype)
    allowed = torch.ones_like(eye).tril() if full else eye
    if not full:
        root = torch.linalg.cholesky(root @ root.mT).diagonal(dim1=-2, dim2=-1).diag_embed()
    m = torch.zeros(count, dim, dtype=center.dtype, requires_grad=True)
    a = torch.zeros(count, dim, dim, dtype=center.dtype, requires_grad=True)  # L but for its diagonal's exponential
    optim, rate = _adam(m, a, RATE), RATE
    path: list[Tensor] = []
    evidence: list[Tensor] = []
    errors = m.new_full((count,), torch.inf)
    settled = torch.zeros(count, dtype=torch.bool)
    for step in range(1, steps + 1):
        with torch.no_grad():
            lower = _lower(a, eye)
            half = torch.randn(count, DRAWS // 2, dim, generator=generator, dtype=center.dtype)
            e = torch.cat([half, -half], 1)
            u = center[:, None] + (m[:, None] + e @ lower.mT) @ root.mT
            log_p, slope = target.log_prob_and_grad(u.reshape(-1, dim))
            good = log_p.isfinite() & slope.isfinite().all(-1)
            slope = torch.where(good[:, None], slope, 0.0).reshape(u.shape)
            s = slope @ root + torch.linalg.solve_triangular(lower.mT, e.mT, upper=True).mT
            s = s * good.reshape(count, DRAWS, 1)
            log_det = torch.linalg.slogdet(root).logabsdet + a.diagonal(dim1=-2, dim2=-1).sum(-1)
            evidence.append(log_p.reshape(count, -1).mean(-1) + log_det + 0.5 * dim * LOG_2PI_E)
            d_lower = (s.mT @ e / DRAWS) * allowed
            m.grad = -s.mean(1)
            a.grad = -(d_lower * (1 - eye) + d_lower * eye * lower)
            norm = (m.grad.square().sum(-1) + a.grad.square().sum((-2, -1))).sqrt()[:, None]
            clip = (10.0 * math.sqrt(dim) / norm).clamp(max=1.0)
            m.grad *= clip
            a.grad *= clip[..., None]
        optim.step()
        path.append(torch.cat([m, a.flatten(1)], 1).detach())
        progress(step, evidence[-1])
        if step % WINDOW == 0 and len(path) >= 2 * WINDOW or len(path) >= 10 * WINDOW:
            iterates = torch.stack(path[len(path) // 2 :], 1)  # (n, k, entries)
            if not (_r_hat(iterates) < STATIONARY).all():
                if len(path) < 10 * WINDOW:
                    continue
            errors = _error(iterates)
            with torch.no_grad():
                mean = iterates.mean(1)
                lower = _lower(mean[:, dim:].reshape(a.shape), eye)
                center = center + (root @ mean[:, :dim, None]).squeeze(-1)
                root = root @ lower
                m.zero_()
                a.zero_()
            settled = errors < CLOSE
            if settled.all():
                break
            rate /= 2
            optim, path = _adam(m, a, rate), []
    return Gaussians(center, _triangular(root), torch.stack(evidence, 1), settled, [])


def _adam(m: Tensor, a: Tensor, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam([m, a], lr=rate, betas=(0.9, 0.99))


def _lower(a: Tensor, eye: Tensor) -> Tensor:
    return a * (1 - eye) + a.diagonal(dim1=-2, dim2=-1).exp().diag_embed()


def _triangular(root: Tensor) -> Tensor:
    """The lower triangular root, with a positive diagonal, of root root'."""
    _, r = torch.linalg.qr(root.mT)
    return r.mT * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def _r_hat(iterates: Tensor) -> Tensor:
    """The largest R-hat of the two halves of iterates (n, k, entries): (n,)."""
    halves = torch.stack(iterates[:, : iterates.shape[1] // 2 * 2].chunk(2, 1), 1)
    within = halves.var(2).mean(1)
    between = halves.mean(2).var(1)
    ratio = torch.where(within > 0, between / within.clamp(min=1e-300), 0.0)
    # what moves by less than a thousandth of a standard deviation stands
    ratio = torch.where(between.sqrt() < 1e-3, 0.0, ratio)
    return (1 + ratio).sqrt().amax(-1)


def _error(iterates: Tensor) -> Tensor:
    """The largest Monte Carlo error of the average of iterates, by the means of batches: (n,)."""
    count = 8
    size = iterates.shape[1] // count
    means = iterates[:, : size * count].reshape(iterates.shape[0], count, size, -1).mean(2)
    return (means.var(1) / count).sqrt().amax(-1)
