"""Gaussians N(center, root root') on the real line, several side by side."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOG_2PI_E", "Normals"]

LOG_2PI_E = 1 + math.log(2 * math.pi)


@dataclass
class GaussianBatch:
    """N(center, root root'), one a row.

    Attributes:
        center: (n, dim).
        root: (n, dim, dim), any square roots of the covariances.
    """

    center: Tensor
    root: Tensor

    @property
    def log_det(self) -> Tensor:
        """Log |det root|: (n,)."""
        return torch.linalg.slogdet(self.root).logabsdet

    @property
    def entropy(self) -> Tensor:
        """In nats: (n,)."""
        return self.log_det + 0.5 * self.center.shape[-1] * LOG_2PI_E

    def rsample(self, noise: Tensor) -> Tensor:
        """Points (n, k, dim) of noise e ~ N(0, I), (n, k, dim) or (k, dim)."""
        return self.center[:, None] + noise @ self.root.mT

    def whitened(self, u: Tensor) -> Tensor:
        """The noise (n, k, dim) of points (n, k, dim) or (k, dim)."""
        return torch.linalg.solve(self.root[:, None], (u - self.center[:, None])[..., None]).squeeze(-1)

    def log_prob(self, noise: Tensor) -> Tensor:
        """Log q at the points of noise: (n, k)."""
        return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - self.log_det[:, None]
