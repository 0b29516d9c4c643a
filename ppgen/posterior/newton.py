"""Finding modes from scattered starting points by Newton's method, with a local Gaussian at each.

At u, let g be the gradient of log p and H = -d^2 log p / du^2 (by finite differences) = S Q diag(l) Q' S, where the
diagonal matrix S holds the square roots of |H_ii|. Then

    R R' = S^-1 Q diag(1 / |l|) Q' S^-1        the covariance of the local Gaussian
    u <- u + t R R' g                          a Newton step; t is the best of a grid of step lengths

Both adapt to the scale of each coordinate. A density may be unbounded, as that of a hierarchical model is when its
scale tends to 0, so its mode may be useless: of all Gaussians N(u, R R') along the path, the one of highest ELBO is
returned, as in Pathfinder (Zhang et al. 2022, https://arxiv.org/abs/2108.03782), which estimates H instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.utils.budget import Budget
from ppgen.utils.user_warnings import warn_user

__all__ = ["ELBO_DRAWS", "LocalGaussians", "find_modes", "local_elbo"]

MAX_STEPS = 60
STEP_LENGTHS = 2.0 ** torch.cat([torch.arange(9.0, 0.0, -2), torch.arange(0.0, -5.0, -1), -torch.arange(6.0, 46.0, 4)])
MIN_EIGENVALUE = 1e-7  # of |l|, after scaling by S
FIRST_SPACING = 1e-5  # of the finite differences in the first step, relative to 1 + |u|
SPACING = 1e-3  # of the finite differences later, in conditional standard deviations of each coordinate
ELBO_DRAWS = 16  # draws that estimate the ELBO of a local Gaussian
MIN_INCREASE = 1e-9  # of log p in a step, relative to 1 + |log p|
FLAT = 1e-6  # relative change of log p far along a direction, below which the density is unbounded there


@dataclass
class LocalGaussians(GaussianBatch):
    """The Gaussian of highest ELBO on the path from each start.

    Attributes:
        elbo: the estimated ELBO of each, in nats, (n,).
        steps: how many Newton steps were made.
    """

    elbo: Tensor
    steps: int

    def update(self, rows: Tensor, other: "LocalGaussians") -> None:
        """Replaces these rows by the rows of others, in order.

        Args:
            rows: indices, or a mask (n,).
            other: as many Gaussians as there are rows.
        """
        self.center[rows], self.root[rows], self.elbo[rows] = other.center, other.root, other.elbo

    def joined(self, other: "LocalGaussians") -> "LocalGaussians":
        """These Gaussians and others.

        Args:
            other: the others.
        """
        center, root = torch.cat([self.center, other.center]), torch.cat([self.root, other.root])
        return LocalGaussians(center, root, torch.cat([self.elbo, other.elbo]), max(self.steps, other.steps))

    def select(self, rows: Tensor) -> "LocalGaussians":
        """These rows.

        Args:
            rows: indices, or a mask (n,).
        """
        return LocalGaussians(self.center[rows], self.root[rows], self.elbo[rows], self.steps)


def find_modes(
    target: UnconstrainedLogDensity,
    starts: Tensor,
    generator: torch.Generator,
    *,
    steps: int = MAX_STEPS,
    budget: Budget | None = None,
) -> LocalGaussians:
    """Gaussians near modes of a density.

    Args:
        target: log p.
        starts: starting points, (n, dim).
        generator: source of the random numbers that estimate ELBOs.
        steps: the largest number of Newton steps.
        budget: the time, after which the best so far is returned.

    Raises:
        ValueError: if the density is unbounded along some direction at a mode, so that there is no posterior.
    """
    u, count, dim, budget = starts, *starts.shape, budget or Budget()
    identity = torch.eye(dim).to(u).repeat(count, 1, 1)
    best = LocalGaussians(u.clone(), identity, u.new_full((count,), -torch.inf), 0)
    spacing = FIRST_SPACING * (1 + u.abs())
    noise = torch.randn(ELBO_DRAWS // 2, dim, generator=generator, dtype=u.dtype)
    noise, infinite = torch.cat([noise, -noise]), u[:0]
    for step in range(1, steps + 1):
        budget.show(f"finding modes, step {step}")
        log_p, gradient = target.log_prob_and_grad(u)
        h = -target.hessian(u, spacing)
        root = _covariance_root(h, gradient, u)
        spacing = torch.where(h.isfinite().all(-1), SPACING / _scales(h), spacing)
        local = LocalGaussians(u, root, local_elbo(target, GaussianBatch(u, root), noise), step)
        better = local.elbo > best.elbo
        best.update(better, local.select(better))
        best.steps = step
        u, increased, found = _line_search(target, u, log_p, (root @ (root.mT @ gradient[..., None])).squeeze(-1))
        infinite = found if len(found) else infinite
        if not increased.any() or not budget.left:
            break
    _check_bounded(target, u, h)
    if len(infinite):
        warn_user(f"the search for modes does not go where {_infinite(target, infinite[:1])}")
    return best


def local_elbo(target: UnconstrainedLogDensity, q: GaussianBatch, noise: Tensor) -> Tensor:
    """E_q[log p] + entropy of q restricted to where p has a density, from draws with this noise (k, dim): (n,)."""
    log_p = target.log_prob(q.rsample(noise).flatten(0, 1)).reshape(len(q.center), len(noise))
    finite = log_p > -torch.inf
    mean = torch.where(finite, log_p, 0.0).sum(-1) / finite.sum(-1).clamp(min=1)
    return mean + finite.double().mean(-1).log() + q.entropy


def _line_search(
    target: UnconstrainedLogDensity, u: Tensor, log_p: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best points u + t direction over a grid of t, and which rows increased log p; other rows stay at u.

    The third result are the points of the grid at which log p is +inf.
    """
    count, dim = u.shape
    lengths = STEP_LENGTHS.to(u)
    candidates = u[:, None] + lengths[:, None] * direction[:, None]
    values = target.log_prob(candidates.reshape(-1, dim)).reshape(count, len(lengths))
    infinite = values == torch.inf
    values = torch.where(infinite | values.isnan(), -torch.inf, values)
    value, chosen = values.max(-1)
    increased = value > log_p + MIN_INCREASE * (1 + log_p.abs())
    best = torch.where(increased[:, None], candidates[torch.arange(count), chosen], u)
    return best, increased, candidates[infinite]


def _covariance_root(h: Tensor, gradient: Tensor, u: Tensor) -> Tensor:
    """R of the module's docstring, from H (n, dim, dim). If H is not finite, the step becomes as long as 1 + |u|."""
    finite = h.isfinite().all((-2, -1))
    eye = torch.eye(h.shape[-1], dtype=h.dtype)
    scale, eigenvalues, q = _spectrum(torch.where(finite[:, None, None], h, eye))
    root = q * eigenvalues.abs().clamp(min=MIN_EIGENVALUE).rsqrt()[:, None] / scale[..., None]
    length = (1 + u.norm(dim=-1)) / gradient.norm(dim=-1)
    return torch.where(finite[:, None, None], root, eye * length.sqrt()[:, None, None])


def _scales(h: Tensor) -> Tensor:
    """The diagonal of S: (n, dim)."""
    scale = h.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    return torch.where(scale > 0, scale, 1.0)


def _spectrum(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The diagonal of S, l and Q."""
    scale = _scales(h)
    return scale, *torch.linalg.eigh(h / scale[:, None] / scale[..., None])


def _check_bounded(target: UnconstrainedLogDensity, u: Tensor, h: Tensor) -> None:
    """Checks that the density falls along its flattest direction, far from a mode."""
    finite = h.isfinite().all((-2, -1))
    if not finite.any():
        return
    u = u[finite]
    scale, eigenvalues, q = _spectrum(h[finite])
    flattest = eigenvalues.abs().argmin(-1)
    rows = torch.arange(len(u))
    directions = q[rows, :, flattest] / scale
    directions = directions / directions.abs().amax(-1, keepdim=True)
    log_p, distance = target.log_prob(u), 1e4 * (1 + u.abs().amax(-1, keepdim=True))
    far = torch.stack([target.log_prob(u + sign * distance * directions) for sign in (1, -1)])
    constant = ((far - log_p).abs() < FLAT * (1 + log_p.abs())).all(0)
    unbounded = (eigenvalues[rows, flattest].abs() < MIN_EIGENVALUE) & constant
    if unbounded.any():
        direction = directions[unbounded][0]
        largest = direction.abs().argsort(descending=True)[:5]
        named = ", ".join(
            f"{float(direction[i]):+.2g} {target.labels[i]}" for i in largest if direction[i].abs() > 1e-3
        )
        raise ValueError(
            f"there is no posterior: its density is constant along the direction ({named}) on the real line, which "
            "neither the data nor the prior informs; give these latents a proper prior, which a mask takes away, "
            "or remove collinear ones"
        )


def _infinite(target: UnconstrainedLogDensity, u: Tensor) -> str:
    """Where log p is +inf, and why it may be, at a point (1, dim)."""
    single = {name: value[0] for name, value in target.constrain(u).items() if value[0].numel() == 1}
    where = ", ".join(f"{name} = {float(value):.4g}" for name, value in single.items()) or "some point"
    return (
        f"log p is +inf at {where}. A normalizing constant may round to log 0 there, as log(1 - cdf(0)) of a normal "
        "distribution does; torch.special.log_ndtr(loc / scale) does not"
    )
