"""The density of global latents, with the latents of each group integrated out by adaptive quadrature.

Given the global latents g, the latents z_j of group j have a mode, found by Newton's method for all groups at once, and
a curvature H_j there. With R_j R_j' = H_j^-1, and nodes e_k and weights w_k of a Gauss-Hermite rule for N(0, I),

    m_j(g) = log int exp f_j(g, z) dz
           ~ log sum_k w_k exp(f_j(g, z_j + R_j e_k) + |e_k|^2 / 2) + log |R_j| + L/2 log 2 pi

which with a single node is Laplace's approximation (Liu & Pierce 1994, https://doi.org/10.1093/biomet/81.3.624). The
value hardly depends on where the nodes are, so its gradient in g is taken at fixed nodes: by Fisher's identity it is
the mean of d f_j / dg over z_j given g.

Draws of z_j given g are chosen from several of N(z_j, R_j R_j') by their importance weights.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from ppgen.posterior.grouped import Groups

__all__ = ["STEPS", "STEPS_NEAR", "Conditional", "Marginal"]

NODES = {1: 9, 2: 5, 3: 3, 4: 3}  # of the rule in each dimension, by the number of latents of a group
STEPS, STEPS_NEAR = 8, 3  # of Newton's method, from anywhere and from modes at similar global latents
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
    """

    mode: Tensor
    root: Tensor
    log_evidence: Tensor
    of_none: Tensor


class Marginal:
    """Integrates the latents of groups out.

    Args:
        groups: the groups.
        start: where Newton's method begins, (G, L).
        steps: the number of its steps.
        more_nodes: how many more nodes than by default the rule has in each dimension.

    Attributes:
        weight_of_none: the share of the terms of no group that counts here, where groups are one chunk of many.
    """

    def __init__(self, groups: Groups, start: Tensor, *, steps: int = STEPS, more_nodes: int = 0) -> None:
        self.groups, self.start, self.weight_of_none, self.steps = groups, start, 1.0, steps
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

    def __call__(self, g: Tensor) -> Conditional:
        """Integrates at the global latents (D,). Only the evidence and the terms of no group have gradients."""
        mode, root = self._mode(g.detach())
        nodes = mode + (root @ self.nodes.mT).movedim(-1, 0)  # (K, G, L)
        terms = vmap(lambda z: self.groups.terms(g, z))(nodes)
        f = vmap(self.groups.of_groups)(terms)
        raised = f + (self.log_weights + self.nodes.square().sum(-1) / 2)[:, None]
        constant = self.groups.width / 2 * math.log(2 * math.pi)
        log_evidence = raised.logsumexp(0) + root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + constant
        return Conditional(mode, root, log_evidence, self.groups.of_none(terms[0]))

    def draw(self, g: Tensor, given: Conditional) -> Tensor:
        """Draws of the latents of all groups given the global ones, by torch's random numbers: (G, L)."""
        noise = torch.randn(CANDIDATES, *given.mode.shape, dtype=given.mode.dtype)
        points = given.mode + (given.root @ noise[..., None]).squeeze(-1)
        f = vmap(lambda z: self.values(g, z))(points)
        log_weights = f + noise.square().sum(-1) / 2
        gumbel = -(-torch.rand_like(log_weights).log()).log()
        chosen = (log_weights + gumbel).argmax(0)
        return points.gather(0, chosen[None, :, None].expand(1, *given.mode.shape))[0]

    def _mode(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The modes of all groups, (G, L), and lower triangular roots of the covariances there."""
        z = self.start
        f = self.values(g, z)
        for _ in range(self.steps):
            gradient, h = self._derivatives(g, z)
            step = (_inverse_of_absolute(h) @ gradient[..., None]).squeeze(-1)
            for length in LENGTHS:
                moved = z + length * step
                value = self.values(g, moved)
                better = value > f
                z, f = torch.where(better[:, None], moved, z), torch.where(better, value, f)
        _, h = self._derivatives(g, z)
        return z, _root(_inverse_of_absolute(h))

    def _derivatives(self, g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of f in z, (G, L), and its negative Hessian, (G, L, L)."""
        gradient = grad(lambda z: self.values(g, z).sum())
        value = gradient(z)
        columns = [-grad(lambda z, axis=axis: gradient(z)[:, axis].sum())(z) for axis in range(self.groups.width)]
        h = torch.stack(columns, -1)
        return value, (h + h.mT) / 2


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
