"""A first map of flows of tables: columns without correlations, of mean 0 and variance 1."""

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from ppgen.flows.zuko import lazy

__all__ = ["Whitening"]


class Whitening(lazy.LazyTransform):
    """z = C^(-1/2) (x - m) / s, with means m, standard deviations s and the correlations C of data, all constant.

    A flow that is the identity after it starts as the Gaussian of the data, so that maximum likelihood begins where a
    Gaussian ends. The symmetric root keeps each column as close to itself as whitened columns can be. C is shrunk to
    the identity, (1 - a) C + a I, with the weight a of Ledoit & Wolf 2004,
    https://doi.org/10.1016/S0047-259X(03)00096-4: with few rows it is close to singular, or singular.

    It is the identity until `ppgen.flows.Flow.initialize` is called.

    Args:
        dim: The width of x.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    log_det: Tensor
    initialized: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("inverse", torch.eye(dim))
        self.register_buffer("log_det", torch.zeros(()))
        self.register_buffer("initialized", torch.tensor(False))
        self.initializing = False  # set by `Flow.initialize` while it passes data through

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the map from data; a constant column is only moved.

        Args:
            x: Rows (*batch, dim).
        """
        rows = x.detach().reshape(-1, len(self.mean)).double()
        mean, scale = rows.mean(0), rows.std(0, correction=0)
        scale = scale.where(scale > 0, 1.0)
        values, vectors = torch.linalg.eigh(_shrunk_correlations((rows - mean) / scale))
        root = (vectors * values.sqrt()) @ vectors.mT
        self.mean.copy_(mean)
        self.matrix.copy_(((vectors / values.sqrt()) @ vectors.mT) / scale)
        self.inverse.copy_(scale[:, None] * root)
        self.log_det.copy_(-scale.log().sum() - values.log().sum() / 2)
        self.initialized.fill_(True)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform, which does not depend on the context c."""
        return _Affine(self)


class _Affine(Transform):
    """z = A (x - m)."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, whitening: Whitening) -> None:
        super().__init__()
        self.whitening = whitening

    def _call(self, x: Tensor) -> Tensor:
        if self.whitening.initializing:
            self.whitening.initialize(x)
        return (x - self.whitening.mean) @ self.whitening.matrix.mT

    def _inverse(self, z: Tensor) -> Tensor:
        return z @ self.whitening.inverse.mT + self.whitening.mean

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns log |dz/dx|, a constant."""
        return self.whitening.log_det.expand(x.shape[:-1])


def _shrunk_correlations(z: Tensor) -> Tensor:
    """(1 - a) C + a I of standardized rows z, with a = min(b^2, d^2) / d^2: the noise in C, and its distance from I."""
    rows, dim = z.shape
    correlations = z.mT @ z / rows
    identity = torch.eye(dim, dtype=z.dtype, device=z.device)
    distance = (correlations - identity).square().sum()
    squares = z.square()
    noise = ((squares.mT @ squares / rows - correlations.square()).sum() / rows).clamp(min=0.0)
    weight = (noise / distance.clamp(min=1e-12)).clamp(1e-6, 1.0)
    return (1 - weight) * correlations + weight * identity
