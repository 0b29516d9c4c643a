"""A batch of Gaussians N(center, root root') on the real line."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOG_2PI_E", "GaussianBatch"]

LOG_2PI_E = 1 + math.log(2 * math.pi)
COVARIANCE_NATS = 0.02  # that the error of an estimated covariance matrix may cost


@dataclass
class GaussianBatch:
    """Gaussians N(center, root root'), one per row. A point is u = center + root e with noise e ~ N(0, I).

    Attributes:
        center: the means, (n, dim).
        root: square roots of the covariances, (n, dim, dim), not necessarily triangular.
    """

    center: Tensor
    root: Tensor

    @property
    def log_det(self) -> Tensor:
        """The log determinants log |det root|: (n,)."""
        return torch.linalg.slogdet(self.root).logabsdet

    @property
    def entropy(self) -> Tensor:
        """The differential entropies, in nats: (n,)."""
        return self.log_det + 0.5 * self.center.shape[-1] * LOG_2PI_E

    def moved_to(self, u: Tensor, weights: Tensor) -> "GaussianBatch":
        """A single Gaussian, with the mean and the covariance of weighted draws.

        The error of a covariance matrix costs about dim² / (4 ess) nats. Where that is much, only the widths along the
        axes of the root are those of the draws, which costs dim / (2 ess).

        Args:
            u: draws, (k, dim).
            weights: their weights, (k,), of sum 1.
        """
        dim, ess = u.shape[-1], 1 / float(weights.square().sum())
        mean = weights @ u
        e = torch.linalg.solve(self.root[0], (u - mean).mT).mT
        if dim**2 / (4 * ess) <= COVARIANCE_NATS:
            inner = torch.linalg.cholesky((e * weights[:, None]).mT @ e)
        else:
            inner = (weights @ e.square()).sqrt().diag()
        return GaussianBatch(mean[None], (self.root[0] @ inner)[None])

    def rsample(self, noise: Tensor) -> Tensor:
        """Points (n, k, dim) from noise e ~ N(0, I), (n, k, dim) or (k, dim)."""
        return self.center[:, None] + noise @ self.root.mT

    def whitened(self, u: Tensor) -> Tensor:
        """The noise (n, k, dim) of points (n, k, dim) or (k, dim), the inverse of `rsample`."""
        return torch.linalg.solve(self.root[:, None], (u - self.center[:, None])[..., None]).squeeze(-1)

    def log_prob(self, noise: Tensor) -> Tensor:
        """The log densities at the points ``rsample(noise)``, of noise (n, k, dim): (n, k)."""
        return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - self.log_det[:, None]
