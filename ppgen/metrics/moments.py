"""Metrics of means and covariances alone: cheap, and blind to all else.

Of rows ``x_i`` with weights ``p_i`` the mean is ``m = sum_i p_i x_i`` and the covariance

    S = sum_i p_i (x_i - m) (x_i - m)^T,

which is the biased one (``1/n`` at uniform weights, not ``1/(n - 1)``), so that a weight of two is a row twice.
``m1, S1`` are those of ``x`` and ``m2, S2`` those of ``y``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.metric import Metric
from ppgen.metrics.slices import centered


@dataclass(kw_only=True, eq=False, repr=False)
class Frechet(Metric):
    """The Fréchet distance between the Gaussians of the samples' moments (Dowson and Landau 1982), squared:

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)``,

    in squared units of the data; between Gaussians it is ``W_2^2``. On features of an image classifier it is the
    FID (Heusel et al. 2017), which takes the unbiased covariance. Finite samples of one law have a positive
    distance, of order ``d^2 / n``: compare values at equal ``n`` only.

    With ``S1 = A^T A`` and ``S2 = B^T B`` the trace of the root is the nuclear norm of ``A B^T``, the largest
    ``<O, A B^T>`` of all ``O`` of spectral norm 1. The gradient holds the best ``O`` fixed, with nothing in
    directions that one sample does not span; it is right to first order, and finite for any rank.
    """

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        x, y = centered(x, y)
        (mx, a), (my, b) = _moments(x, p), _moments(y, q)
        shift = (mx - my).square().sum()
        with torch.no_grad():
            # A row that is not finite makes the value NaN below; the decompositions would raise.
            base_a, base_b = (torch.linalg.qr(root.nan_to_num(0.0, 0.0, 0.0)).Q for root in (a, b))
            core = ((base_a.T @ a) @ (base_b.T @ b).T).nan_to_num(0.0, 0.0, 0.0)
            left, size, right = torch.linalg.svd(core, full_matrices=False)
            spanned = size > size.amax() * max(core.shape) * torch.finfo(x.dtype).eps
            best = (left * spanned) @ right
        common = (best * ((base_a.T @ a) @ (base_b.T @ b).T)).sum()
        return shift + a.square().sum() + b.square().sum() - 2 * common


@dataclass(kw_only=True, eq=False, repr=False)
class CORAL(Metric):
    """Correlation alignment (Sun and Saenko 2016, equation 1): ``|S1 - S2|_F^2 / (4 d^2)``, Frobenius norm.

    In units of the data to the fourth power. It does not see the means, nor any law's shape beyond the covariance.
    """

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        (_, a), (_, b) = _moments(x, p), _moments(y, q)
        return (a.T @ a - b.T @ b).square().sum() / (4 * x.shape[1] ** 2)


def _moments(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``(d,)``, and rows ``A`` ``(n, d)`` with ``S = A^T A``."""
    center = (p @ x).detach()
    apart = x - center
    rest = p @ apart  # what rounding left of the mean, and its gradient
    # A weight of zero has a root without slope.
    root = torch.where(p > 0, torch.where(p > 0, p, 1.0).sqrt(), 0.0)
    return center + rest, root[:, None] * (apart - rest)
