"""The log density of many rows, estimated from a random subset of them with control variates.

Around a mode c, with a subset S of m of the N rows,

    f(u) = log prior(u) + N/m sum_{i in S} l_i(u) + D(u),    D(u) = v + g'(u - c) + (u - c)' H (u - c) / 2

where v, g and H are the value, the gradient and the Hessian at c of log p less those of the first two terms. So f has
the value and the first two derivatives of log p there, and its error is that of the third and higher derivatives, which
is small where the posterior is narrow (Baker et al. 2019, https://arxiv.org/abs/1706.05439; Quiroz et al. 2019,
https://doi.org/10.1080/01621459.2018.1448827). The error is measured, on all rows, at draws of the posterior.

Far from the mode the quadratic form would outweigh log p, so D is taken at the point of a ball of some standard
deviations that lies in the same direction. Of several modes the nearest counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import SPACING
from ppgen.posterior.row_chunks import RowChunks
from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.sites import Site
from ppgen.utils.budget import Budget

__all__ = ["ControlVariate", "RowSubset", "anchored"]

RADIUS = 3.0  # least radius of the ball, times the root of the dimension
POLISH_STEPS = 12  # Newton steps on all rows, with the curvature of a subset
POLISHED = 1e-3  # length of a step, in standard deviations, below which the mode is found
FACTOR = "control_variate"


@dataclass
class ControlVariate:
    """What all rows say near some modes.

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


class RowSubset(ProgramInContext):
    """A program on a subset of its rows, whose log density estimates that of all rows.

    Args:
        chunks: all rows.
        index: the subset, (m,).
        difference: D, as the difference of two control variates.
    """

    def __init__(self, chunks: RowChunks, index: Tensor, difference: ControlVariate) -> None:
        program = chunks.program(row_weight=chunks.size / len(index))
        super().__init__(program)
        self.index, self.difference, self.args = index, difference, chunks.args(index)
        self.size, self.names, self._all = chunks.size, tuple(chunks.whole.shapes), chunks.whole.args

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with _Unconstrained(self.names) as latents:
            result = self.program(*args, **kwargs)
        u = torch.cat([latents.parts[name].reshape(-1) for name in self.names])
        if u.shape != self.difference.modes.center.shape[1:]:  # particles then run under vmap
            raise ValueError("a program on a subset of rows does not broadcast over particles")
        pyro.factor(FACTOR, self.difference(u))
        return result

    def is_of(self, data: tuple) -> bool:
        """Whether these are the arguments from which the subset was taken.

        Args:
            data: the arguments.
        """
        pairs = list(zip(data, self._all, strict=False))
        return len(data) == len(self._all) and all(
            a.shape == b.shape and torch.equal(a.to(b), b) if isinstance(b, Tensor) else a is b for a, b in pairs
        )


class _Unconstrained(Messenger):
    """A handler that notes the values of latents, on the real line."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.parts: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            self.parts[msg["name"]] = biject_to(msg["fn"].support).inv(msg["value"])


def anchored(chunks: RowChunks, guess: GaussianBatch, budget: Budget) -> ControlVariate:
    """Moves modes that were found on a subset to those of all rows, and expands log p there.

    Args:
        chunks: all rows.
        guess: Gaussians at the modes of a subset.
        budget: the time; where it does not allow a Hessian on all rows, that of the guess stands for it.
    """
    parts = [_polished(chunks, center, root, budget) for center, root in zip(guess.center, guess.root, strict=True)]
    center, root, value, gradient, hessian = map(torch.stack, zip(*parts, strict=True))
    return ControlVariate(GaussianBatch(center, root), value, gradient, hessian)


def _polished(chunks: RowChunks, center: Tensor, root: Tensor, budget: Budget) -> tuple[Tensor, ...]:
    """The mode, a root of the covariance there, and log p with its two derivatives."""
    budget = budget.part(1.0, "all rows")
    start = budget.clock()
    (value, gradient), length = _one(chunks, center, budget.show), 1.0
    pass_seconds = budget.clock() - start
    for _ in range(POLISH_STEPS):
        step = length * (root @ (root.mT @ gradient))
        if float((root.mT @ gradient).norm()) < POLISHED or not budget.left:
            break
        moved, slope = _one(chunks, center + step, budget.show)
        if moved >= value:
            center, value, gradient, length = center + step, moved, slope, min(1.0, 2 * length)
        else:
            length /= 4
    hessian = -torch.linalg.inv(root @ root.mT)
    if budget.allows(2 * len(center) * pass_seconds):
        hessian = chunks.hessian(center, SPACING * root.square().sum(-1).sqrt(), budget.show)
        covariance_root, failed = torch.linalg.cholesky_ex(torch.linalg.inv(-hessian))
        root = root if failed else covariance_root
    return center, root, value, gradient, hessian


def _one(chunks: RowChunks, u: Tensor, show: Callable[[str], object]) -> tuple[Tensor, Tensor]:
    value, gradient = chunks.log_prob_and_grad(u[None], show)
    return value[0].nan_to_num(nan=-torch.inf), gradient[0]
