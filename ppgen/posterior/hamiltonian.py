"""Hamiltonian Monte Carlo at many points at once, for densities between a base b and a program's p.

    log f(y) = beta log p(y) + (1 - beta) log b(y),    0 <= beta <= 1

A move draws a momentum m = R^-T n, n ~ N(0, I), follows the dynamics by leapfrog steps, and accepts their end with the
probability min(1, exp(-change of energy)), so that f stays invariant (Neal 2011, https://arxiv.org/abs/1206.1901).
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["BridgePoints", "move"]


class BridgePoints(NamedTuple):
    """Points y (n, dim), with log p and log b as densities of y (n,), and the gradients of both (n, dim)."""

    y: Tensor
    log_p: Tensor
    log_b: Tensor
    gradient_p: Tensor
    gradient_b: Tensor

    def log_f(self, beta: float) -> Tensor:
        """The log density log f at this beta: (n,)."""
        return beta * self.log_p + (1 - beta) * self.log_b

    def gradient(self, beta: float) -> Tensor:
        """The gradient of log f at this beta: (n, dim)."""
        return beta * self.gradient_p + (1 - beta) * self.gradient_b

    def select(self, index: Tensor) -> Self:
        """The points of these numbers."""
        return type(self)(*(part[index] for part in self))

    def replaced(self, where: Tensor, new: Self) -> Self:
        """These points, with the new ones where a mask (n,) says so."""
        pairs = zip(new, self, strict=True)
        return type(self)(*(torch.where(where if n.dim() == 1 else where[:, None], n, old) for n, old in pairs))


def move(
    points: BridgePoints,
    beta: float,
    evaluate: Callable[[Tensor], BridgePoints],
    *,
    step: float | Tensor,
    leapfrog_steps: int,
    generator: torch.Generator,
    root: Tensor | None = None,
) -> tuple[BridgePoints, Tensor]:
    """One transition of each point that leaves f invariant.

    Args:
        points: the points, n of them.
        beta: of f.
        evaluate: the function from y to the points there.
        step: the length of a leapfrog step, or that of each point, (n, 1); times a random factor from 0.5 to 1.5.
        leapfrog_steps: how many there are.
        generator: source of the random numbers.
        root: R, a square root (dim, dim) of the covariance for which the dynamics are round; the identity if left out.

    Returns:
        the points after it; the probability with which each end was accepted, (n,).
    """

    def rooted(gradient: Tensor) -> Tensor:
        return gradient if root is None else gradient @ root

    uniform = torch.rand(len(points.y), 2, generator=generator, dtype=points.y.dtype)
    step = step * (0.5 + uniform[:, :1])  # so that no trajectory is periodic
    start = torch.randn(points.y.shape, generator=generator, dtype=points.y.dtype)
    end, momentum = points, start + 0.5 * step * rooted(points.gradient(beta))
    for number in range(leapfrog_steps):
        end = evaluate(end.y + step * (momentum if root is None else momentum @ root.mT))
        momentum = momentum + (0.5 if number == leapfrog_steps - 1 else 1.0) * step * rooted(end.gradient(beta))
    kinetic = 0.5 * (momentum.square() - start.square()).sum(-1)
    log_ratio = (end.log_f(beta) - points.log_f(beta) - kinetic).nan_to_num(nan=-math.inf)
    return points.replaced(uniform[:, 1].log() < log_ratio, end), log_ratio.clamp(max=0.0).exp()
