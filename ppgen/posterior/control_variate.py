"""Control variates for a log density that is estimated from some of its parts, the terms of rows.

Around a mode c, with a subset S of m of the N parts,

    f(u) = log prior(u) + N/m sum_{i in S} l_i(u) + D(u),    D(u) = v + g'(u - c) + (u - c)' H (u - c) / 2

where v, g and H are the value, the gradient and the Hessian at c of log p less those of the first two terms. So f has
the value and the first two derivatives of log p there, and its error is that of the third and higher derivatives, which
is small where the posterior is narrow (Baker et al. 2019, https://arxiv.org/abs/1706.05439; Quiroz et al. 2019,
https://doi.org/10.1080/01621459.2018.1448827). The error is measured, on all parts, at draws of the posterior.

Far from the mode the quadratic form would outweigh log p, so D is taken at the point of a ball of some standard
deviations that lies in the same direction. Of several modes the nearest counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity, central_differences
from ppgen.posterior.newton import SPACING
from ppgen.utils.budget import Budget

__all__ = ["FACTOR", "ControlVariate", "anchored", "same_arguments"]

RADIUS = 3.0  # least radius of the ball, times the root of the dimension
POLISH_STEPS = 12  # Newton steps on all parts, with the curvature of a subset
POLISHED = 1e-3  # length of a step, in standard deviations, below which the mode is found
FACTOR = "control_variate"


@dataclass
class ControlVariate:
    """What all parts say near some modes.

    Attributes:
        modes: Gaussians at the modes, k of them.
        value: log p at the modes, (k,), in nats.
        gradient: its gradients there, (k, dim).
        hessian: its Hessians there, (k, dim, dim).
    """

    modes: GaussianBatch
    value: Tensor
    gradient: Tensor
    hessian: Tensor

    @cached_property
    def radius(self) -> Tensor:
        """The standard deviations from each mode up to which the expansion holds, (k,).

        They reach well beyond the mode of the other density, which is a Newton step of the gradient away: there the
        expansion has to outweigh it.
        """
        step = (self.modes.root.mT @ self.gradient[..., None]).squeeze(-1).norm(dim=-1)
        return torch.maximum(2 * step, RADIUS * step.new_tensor(self.modes.center.shape[-1]).sqrt())

    def minus(self, density: UnconstrainedLogDensity) -> "ControlVariate":
        """The same of the difference between log p and another density."""
        center, root = self.modes.center, self.modes.root
        value, gradient = density.log_prob_and_grad(center)
        hessian = density.hessian(center, SPACING * root.square().sum(-1).sqrt())
        return ControlVariate(self.modes, self.value - value, self.gradient - gradient, self.hessian - hessian)

    def __call__(self, u: Tensor) -> Tensor:
        """D at a point (dim,)."""
        center, root = self.modes.center, self.modes.root
        offset = u - center
        distance = torch.linalg.solve(root, offset[..., None]).squeeze(-1).square().sum(-1)  # of each mode, squared
        largest = self.radius.square()
        offset = offset * (largest / torch.maximum(distance, largest)).sqrt()[:, None]
        quadratic = torch.einsum("ki,kij,kj->k", offset, self.hessian, offset) / 2
        of_each = self.value + (offset * self.gradient).sum(-1) + quadratic
        nearest = (distance == distance.min()).to(u.dtype)
        return (nearest / nearest.sum() * of_each).sum()


def same_arguments(data: tuple, other: tuple) -> bool:
    """Whether the arguments of a program are others, up to their precision.

    Args:
        data: arguments.
        other: other ones.
    """
    return len(data) == len(other) and all(
        (a.shape == b.shape and torch.equal(a.to(b), b)) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b
        for a, b in zip(data, other, strict=True)
    )


def anchored(chunks: Any, guess: GaussianBatch, budget: Budget) -> ControlVariate:
    """Moves modes that were found on a subset to those of all parts, and expands log p there.

    Args:
        chunks: all parts, which have `log_prob_and_grad`.
        guess: Gaussians at the modes of a subset.
        budget: the time; where it does not allow a Hessian on all parts, that of the guess stands for it.
    """
    parts = [_polished(chunks, center, root, budget) for center, root in zip(guess.center, guess.root, strict=True)]
    center, root, value, gradient, hessian = map(torch.stack, zip(*parts, strict=True))
    return ControlVariate(GaussianBatch(center, root), value, gradient, hessian)


def _polished(chunks: Any, center: Tensor, root: Tensor, budget: Budget) -> tuple[Tensor, ...]:
    """The mode, a root of the covariance there, and log p with its two derivatives."""
    budget = budget.part(1.0, "all parts")
    start = budget.clock()
    (value, gradient), length = _one(chunks, center, budget.show), 1.0
    pass_seconds = budget.clock() - start
    for _ in range(POLISH_STEPS):
        step = length * (root @ (root.mT @ gradient))
        if float((root.mT @ gradient).norm()) < POLISHED or not budget.left:
            break
        moved, there = _one(chunks, center + step, budget.show)
        if moved >= value:
            center, value, gradient, length = center + step, moved, there, min(1.0, 2 * length)
        else:
            length /= 4
    hessian = -torch.linalg.inv(root @ root.mT)
    if budget.allows(2 * len(center) * pass_seconds):
        spacing = SPACING * root.square().sum(-1).sqrt()
        (hessian,) = central_differences(
            lambda points: chunks.log_prob_and_grad(points, budget.show)[1], center[None], spacing[None]
        )
        covariance_root, failed = torch.linalg.cholesky_ex(torch.linalg.inv(-hessian))
        root = root if failed else covariance_root
    return center, root, value, gradient, hessian


def _one(chunks: Any, u: Tensor, show: Callable[[str], object]) -> tuple[Tensor, Tensor]:
    value, gradient = chunks.log_prob_and_grad(u[None], show)
    return value[0].nan_to_num(nan=-torch.inf), gradient[0]
