"""A first map of flows of tables: columns without correlations, of mean 0 and variance 1."""

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from ppgen.flows.zuko import lazy

__all__ = ["Whitening", "mean_and_scale"]

LEAST_SHRINKAGE = -6  # log10 of the least weight of the identity, which bounds the density of collinear columns
ROUNDING = 1e-7  # of numbers in single precision, relative to their size


class Whitening(lazy.LazyTransform):
    """z = C^(-1/2) (x - m) / s, with means m, standard deviations s and the correlations C of data, all constant.

    A flow that is the identity after it starts as the Gaussian of the data, so that maximum likelihood begins where a
    Gaussian ends. The symmetric root keeps each column as close to itself as whitened columns can be. C is shrunk to
    the identity, (1 - a) C + a I, since with few rows it is close to singular, or singular: a is the weight at which
    each row is most probable given the others. The least mean squared error of C (Ledoit & Wolf 2004) has larger
    weights, which widen the directions of least variance, those that matter most to a density, many times over.

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
        mean, scale = mean_and_scale(rows)
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


def mean_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the columns, these 1 where all values are equal up to rounding.

    Args:
        rows: Rows (n, dim) in double precision.
    """
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    return mean, scale.where(scale > ROUNDING * mean.abs(), 1.0)


def _shrunk_correlations(z: Tensor) -> Tensor:
    """(1 - a) C + a I of standardized rows z, with the a of least leave-one-out loss of N(0, .) on a grid.

    Without row z_k the estimate is G - b z_k z_k', with b = (1 - a) / (n - 1) and G = n b C + a I, so that with
    r_k = z_k' G^-1 z_k the loss of all rows takes one G (Theiler 2012, https://doi.org/10.1117/12.918718):

        log |G| + mean_k [log(1 - b r_k) + r_k / (1 - b r_k)]
    """
    rows, dim = z.shape
    correlations = z.mT @ z / rows
    values, vectors = torch.linalg.eigh(correlations)
    weights = torch.logspace(LEAST_SHRINKAGE, 0, 61, dtype=z.dtype, device=z.device)
    share = (1 - weights) / max(rows - 1, 1)
    spectra = rows * share[:, None] * values.clamp(min=0.0) + weights[:, None]  # the eigenvalues of each G
    r = spectra.reciprocal() @ (z @ vectors).square().mT
    rest = 1 - share[:, None] * r
    loss = spectra.log().sum(1) + (rest.log() + r / rest).mean(1)
    weight = weights[loss.nan_to_num(nan=torch.inf).argmin()]  # `rest` of an outlier may be 0 up to rounding
    return (1 - weight) * correlations + weight * torch.eye(dim, dtype=z.dtype, device=z.device)
