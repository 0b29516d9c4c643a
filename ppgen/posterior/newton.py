"""From points that lie wide apart up to modes, and the Gaussian of each way's curvature that has most evidence.

At u, with slope g and H = -d^2 log p / du^2 (by differences) = S Q diag(l) Q' S, S the square roots of |H_ii|,

    R R' = S^-1 Q diag(1 / |l|) Q' S^-1        the covariance that the curvature gives
    u <- u + t R R' g                          Newton's step, its length t the best of a row

which the scales of covariates do not change. A density may rise without end, as a hierarchy's does where its scale goes
to 0, and its mode is then no place to be: of all N(u, R R') on the way the one of most evidence is taken (as in
Pathfinder, Zhang et al. 2022, there with estimates of H).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity

__all__ = ["LocalGaussian", "find_modes"]

STEPS = 60
LENGTHS = 2.0 ** torch.cat([torch.arange(9.0, 0.0, -2), torch.arange(0.0, -5.0, -1), -torch.arange(6.0, 46.0, 4)])
FLOOR = 1e-7  # of |l|, where the scales are taken out
NEAR = 1e-3  # over which slopes are compared, in standard deviations of an entry given the others
DRAWS = 16  # of a Gaussian on the way, by which its evidence is judged
FLAT = 1e-6  # nats by which a density falls along a direction that it does not bound


@dataclass
class LocalGaussians(GaussianBatch):
    """A Gaussian a start.

    Attributes:
        evidence: (n,) the estimated evidence bound of each, in nats.
        steps: how many steps of Newton's were made.
    """

    evidence: Tensor
    steps: int


def find_modes(
    target: UnconstrainedLogDensity,
    starts: Tensor,
    generator: torch.Generator,
    *,
    steps: int = STEPS,
    progress: Callable[[str], None] = lambda _: None,
) -> LocalGaussians:
    """Gaussians near modes, from starts (n, dim).

    Raises:
        ValueError: if the density has no bound along some direction at a mode, so that there is no posterior.
    """
    u, count, dim = starts, *starts.shape
    lengths = LENGTHS.to(u)
    best = LocalGaussians(u.clone(), torch.eye(dim).to(u).repeat(count, 1, 1), u.new_full((count,), -torch.inf), 0)
    near = 1e-5 * (1 + u.abs())  # over which slopes are compared; later a part of a standard deviation
    noise = torch.randn(DRAWS // 2, dim, generator=generator, dtype=u.dtype)
    noise = torch.cat([noise, -noise])
    for step in range(1, steps + 1):
        progress(f"climbing to modes, step {step}")
        value, slope = target.log_prob_and_grad(u)
        h = -target.hessian(u, near)
        root = _root(h, slope, u)
        near = torch.where(h.isfinite().all(-1), NEAR / _scales(h), near)
        here = GaussianBatch(u, root)
        log_p = target.log_prob(here.rsample(noise).reshape(-1, dim)).reshape(count, DRAWS)
        evidence = log_p.mean(-1) + here.entropy
        better = evidence > best.evidence
        best.center[better], best.root[better], best.evidence[better] = u[better], root[better], evidence[better]
        best.steps = step
        move = (root @ (root.mT @ slope[..., None])).squeeze(-1)
        tried = u[:, None] + lengths[:, None] * move[:, None]
        heights = target.log_prob(tried.reshape(-1, dim)).reshape(count, len(lengths)).nan_to_num(nan=-torch.inf)
        height, chosen = heights.max(-1)
        moving = height > value + 1e-9 * (1 + value.abs())
        u = torch.where(moving[:, None], tried[torch.arange(count), chosen], u)
        if not moving.any():
            break
    _check_bounded(target, u, h)
    return best


def _root(h: Tensor, slope: Tensor, u: Tensor) -> Tensor:
    """R of the module's docstring, from H (n, dim, dim); where H overflows, that of a step as long as u itself."""
    known = h.isfinite().all((-2, -1))
    eye = torch.eye(h.shape[-1], dtype=h.dtype)
    scale, size, q = _spectrum(torch.where(known[:, None, None], h, eye))
    root = q * size.abs().clamp(min=FLOOR).rsqrt()[:, None] / scale[..., None]
    length = (1 + u.norm(dim=-1)) / slope.norm(dim=-1)
    return torch.where(known[:, None, None], root, eye * length.sqrt()[:, None, None])


def _scales(h: Tensor) -> Tensor:
    scale = h.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    return torch.where(scale > 0, scale, 1.0)


def _spectrum(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S as its diagonal, l and Q."""
    scale = _scales(h)
    return scale, *torch.linalg.eigh(h / scale[:, None] / scale[..., None])


def _check_bounded(target: UnconstrainedLogDensity, u: Tensor, h: Tensor) -> None:
    """Refuses a density that does not fall along its flattest direction, however far one goes."""
    known = h.isfinite().all((-2, -1))
    u = u[known]
    scale, size, q = _spectrum(h[known])
    flattest = size.abs().argmin(-1)
    rows = torch.arange(len(u))
    ways = q[rows, :, flattest] / scale
    ways = ways / ways.abs().amax(-1, keepdim=True)
    here, far = target.log_prob(u), 1e4 * (1 + u.abs().amax(-1, keepdim=True))
    there = torch.stack([target.log_prob(u + sign * far * ways) for sign in (1, -1)])
    flat = (size[rows, flattest].abs() < FLOOR) & ((there - here).abs() < FLAT * (1 + here.abs())).all(0)
    if flat.any():
        way = ways[flat][0]
        parts = way.abs().argsort(descending=True)[:5]
        named = ", ".join(f"{float(way[i]):+.2g} {target.labels[i]}" for i in parts if way[i].abs() > 1e-3)
        raise ValueError(
            f"there is no posterior: its density has no bound along the direction ({named}) on the real line, along "
            "which neither the data nor the prior says anything; give these latents a proper prior, or leave out what "
            "is collinear"
        )
