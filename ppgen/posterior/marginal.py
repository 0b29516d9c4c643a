"""The density of global latents, with the latents of each group integrated out by adaptive quadrature.

Given the global latents g, the latents z_j of group j have a mode, found by Newton's method for all groups at once, and
a curvature H_j there. With R_j R_j' = H_j^-1, and nodes e_k and weights w_k of a Gauss-Hermite rule for N(0, I),

    m_j(g) = log int exp f_j(g, z) dz
           ~ log sum_k w_k exp(f_j(g, z_j + R_j e_k) + |e_k|^2 / 2) + log |R_j| + L/2 log 2 pi

which with a single node is Laplace's approximation (Liu & Pierce 1994, https://doi.org/10.1093/biomet/81.3.624). The
gradient in g is that of this sum: it follows the nodes, since dz_j/dg = H_j^-1 d^2 f_j / dz dg at a mode. What a node's
place matters is small in a group, and adds up over thousands of them.

Draws of z_j given g are chosen from several of N(z_j, R_j R_j') by their importance weights.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from ppgen.posterior.grouped import Groups
from ppgen.utils.graphs import record_simplified

__all__ = ["CONVERGED", "STEPS", "STEPS_NEAR", "Conditional", "Line", "Marginal"]

NODES = {1: 9, 2: 5, 3: 3, 4: 3}  # of the rule in each dimension, by the number of latents of a group
STEPS, STEPS_NEAR = 8, 2  # of Newton's method, from anywhere and from a line through modes
CONVERGED = 1e-6  # largest squared distance of a group from its mode, in standard deviations
LENGTHS = (1.0, 0.2)  # of a step that are tried; without progress the point stays
MIN_CURVATURE = 1e-6
CLOSE = 1e-9  # relative difference of eigenvalues that count as equal
CANDIDATES = 8  # from which a draw is chosen


class Conditional(NamedTuple):
    """What is known of the latents of all groups given the global ones.

    Attributes:
        mode: z_j, (G, L).
        root: R_j, (G, L, L).
        log_evidence: m_j, (G,), in nats.
        of_none: the sum of the terms that depend on no group.
        distance: the largest squared distance of a group from its mode, in standard deviations, to first order.
    """

    mode: Tensor
    root: Tensor
    log_evidence: Tensor
    of_none: Tensor
    distance: Tensor


class Line(NamedTuple):
    """Modes of all groups as a linear function of the global latents.

    Attributes:
        at: global latents, (D,).
        mode: the modes there, (G, L).
        slope: their derivatives, (G, L, D).
    """

    at: Tensor
    mode: Tensor
    slope: Tensor

    @classmethod
    def constant(cls, dim: int, count: int, width: int) -> "Line":
        """Zero, for so many global latents, groups, and latents of a group."""
        zeros = torch.zeros(count, width, dtype=torch.float64)
        return cls(zeros.new_zeros(dim), zeros, zeros.new_zeros(count, width, dim))

    def part(self, index: Tensor | slice) -> "Line":
        """That of some groups."""
        return self._replace(mode=self.mode[index], slope=self.slope[index])

    def __call__(self, g: Tensor) -> Tensor:
        """The modes at global latents (D,): (G, L)."""
        return self.mode + self.slope @ (g - self.at)


class Marginal:
    """Integrates the latents of groups out.

    Args:
        groups: the groups.
        more_nodes: how many more nodes than by default the rule has in each dimension.
    """

    def __init__(self, groups: Groups, *, more_nodes: int = 0) -> None:
        self.groups, self._derivatives = groups, _recorded_derivatives(groups)
        rule, weights = np.polynomial.hermite_e.hermegauss(NODES[groups.width] + more_nodes)
        self.nodes = torch.tensor(list(itertools.product(rule, repeat=groups.width)))
        of_each = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=groups.width)))
        self.log_weights = of_each.log().sum(-1)

    @staticmethod
    def node_count(width: int) -> int:
        """The number of nodes for so many latents of a group."""
        return NODES[width] ** width

    def values(self, g: Tensor, z: Tensor) -> Tensor:
        """F of all groups at global latents (D,) and those of the groups (G, L): (G,)."""
        return self.groups.of_groups(self.groups.terms(g, z))

    def __call__(self, g: Tensor, start: Tensor, steps: int = STEPS, *, differentiable: bool = True) -> Conditional:
        """Integrates at the global latents (D,). Only the evidence and the terms of no group have gradients.

        Args:
            g: the global latents.
            start: where Newton's method begins, (G, L).
            steps: the number of its steps.
            differentiable: whether gradients are asked for.
        """
        mode, covariance, distance = self._mode(g.detach(), start, steps)
        place, root = self._follow(g, mode, covariance) if differentiable else (mode, _root(covariance))
        nodes = place + (root @ self.nodes.mT).movedim(-1, 0)  # (K, G, L)
        terms = vmap(lambda z: self.groups.terms(g, z))(nodes)
        f = vmap(self.groups.of_groups)(terms)
        raised = f + (self.log_weights + self.nodes.square().sum(-1) / 2)[:, None]
        constant = self.groups.width / 2 * math.log(2 * math.pi)
        log_evidence = raised.logsumexp(0) + root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + constant
        return Conditional(mode, root, log_evidence, self.groups.of_none(terms[0]), distance)

    def draw(self, g: Tensor, given: Conditional) -> Tensor:
        """Draws of the latents of all groups given the global ones, by torch's random numbers: (G, L)."""
        noise = torch.randn(CANDIDATES, *given.mode.shape, dtype=given.mode.dtype)
        points = given.mode + (given.root @ noise[..., None]).squeeze(-1)
        f = vmap(lambda z: self.values(g, z))(points)
        log_weights = f + noise.square().sum(-1) / 2
        gumbel = -(-torch.rand_like(log_weights).log()).log()
        chosen = (log_weights + gumbel).argmax(0)
        return points.gather(0, chosen[None, :, None].expand(1, *given.mode.shape))[0]

    def line(self, g: Tensor, start: Tensor) -> Line:
        """The modes at and near the global latents (D,), from a start (G, L) of Newton's method."""
        mode, covariance, _ = self._mode(g, start, STEPS)
        with torch.enable_grad():  # the columns of d slope / dg by reverse mode alone: d / dv of v' d slope / dg
            at = g.detach().clone().requires_grad_()
            slope = self._derivatives(at, mode)[1]
            v = torch.zeros_like(slope, requires_grad=True)
            (products,) = torch.autograd.grad(slope, at, v, create_graph=True)
            columns = [torch.autograd.grad(part, v, retain_graph=True)[0] for part in products]
        return Line(g, mode, covariance @ torch.stack(columns, -1))

    def _follow(self, g: Tensor, mode: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The modes and the roots of covariances, (G, L) and (G, L, L), as functions of the global latents (D,).

        Their values are those given, and their derivatives those of a mode and of the curvature there.
        """
        gradient = grad(lambda z: self.values(g, z).sum())(mode)
        place = mode + (covariance @ (gradient - gradient.detach())[..., None]).squeeze(-1)
        h = self._derivatives(g, place)[2]
        return place, _root(covariance - covariance @ (h - h.detach()) @ covariance)

    def _mode(self, g: Tensor, z: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The modes of all groups, (G, L), covariances there, and the largest squared distance from a mode."""
        f, gradient, h = self._derivatives(g, z)
        for _ in range(steps):
            step = (_inverse_of_absolute(h) @ gradient[..., None]).squeeze(-1)
            moved, best = z, f
            for length in LENGTHS:
                value = self.values(g, z + length * step)
                better = value > best
                moved, best = torch.where(better[:, None], z + length * step, moved), torch.where(better, value, best)
            z = moved
            f, gradient, h = self._derivatives(g, z)
        covariance = _inverse_of_absolute(h)
        return z, covariance, (gradient[..., None, :] @ covariance @ gradient[..., None]).max()


def _recorded_derivatives(groups: Groups) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The function from (g, z) to f, (G,), its gradient in z, (G, L), and its negative Hessian, (G, L, L).

    It is recorded, so that what they have in common is computed once, if the recording has derivatives.
    """

    def derivatives(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def values(z: Tensor) -> Tensor:
            return groups.of_groups(groups.terms(g, z))

        gradient = grad(lambda z: values(z).sum())
        columns = [-grad(lambda z, axis=axis: gradient(z)[:, axis].sum())(z) for axis in range(groups.width)]
        h = torch.stack(columns, -1)
        return values(z), gradient(z), (h + h.mT) / 2

    g = torch.zeros(len(groups.global_index), dtype=torch.float64)
    z = torch.zeros(groups.count, groups.width, dtype=torch.float64)
    try:
        recorded = record_simplified(derivatives, g, z)
        vmap(grad(lambda g: recorded(g, z)[2].sum()))(g[None])
        same = all(map(torch.equal, recorded(g + 0.1, z + 0.1), derivatives(g + 0.1, z + 0.1)))
    except Exception:  # the derivatives can be computed, so this is due to the recording
        return derivatives
    return recorded if same else derivatives


def _inverse_of_absolute(h: Tensor) -> Tensor:
    """|H|^-1 for symmetric matrices (G, L, L): with the absolute values of the eigenvalues."""
    if h.shape[-1] == 1:
        return 1 / h.abs().clamp(min=MIN_CURVATURE)
    if h.shape[-1] > 2:
        eigenvalues, q = torch.linalg.eigh(h)
        return (q / eigenvalues.abs().clamp(min=MIN_CURVATURE)[..., None, :]) @ q.mT
    # a function of a matrix with two eigenvalues is a + b H, much faster than many small decompositions
    a, b, c = h[..., 0, 0], h[..., 0, 1], h[..., 1, 1]
    middle, half = (a + c) / 2, torch.sqrt((a - c).square() / 4 + b.square())
    low, high = (1 / (middle + sign * half).abs().clamp(min=MIN_CURVATURE) for sign in (-1, 1))
    close = half < CLOSE * middle.abs()
    factor = torch.where(close, 0.0, (high - low) / (2 * torch.where(close, 1.0, half)))
    constant = torch.where(close, high, high - factor * (middle + half))
    return constant[..., None, None] * torch.eye(2, dtype=h.dtype) + factor[..., None, None] * h


def _root(covariance: Tensor) -> Tensor:
    """The lower triangular roots of matrices (G, L, L)."""
    if covariance.shape[-1] == 1:
        return covariance.sqrt()
    if covariance.shape[-1] > 2:
        return torch.linalg.cholesky(covariance)
    first = covariance[..., 0, 0].sqrt()
    below = covariance[..., 1, 0] / first
    last = (covariance[..., 1, 1] - below.square()).clamp(min=torch.finfo(covariance.dtype).tiny).sqrt()
    return torch.stack([torch.stack([first, torch.zeros_like(first)], -1), torch.stack([below, last], -1)], -2)
