"""Metrics of means and covariances alone. They are cheap, and ignore every other property of the distributions.

For rows ``x_i`` with weights ``p_i`` the mean is ``m = sum_i p_i x_i`` and the covariance is

    S = sum_i p_i (x_i - m) (x_i - m)^T,

the biased one (``1/n`` for uniform weights, not ``1/(n - 1)``), so that a weight of two is equivalent to a repeated
row. ``m1, S1`` are those of ``x`` and ``m2, S2`` those of ``y``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.metric import Metric
from ppgen.metrics.slices import centered

__all__ = ["CORAL", "Frechet"]


@dataclass(kw_only=True, eq=False, repr=False)
class Frechet(Metric):
    """The squared Fréchet distance between the Gaussians with the means and covariances of the samples.

        |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

    It is in squared units of the data, and between Gaussians it is ``W_2^2`` (Dowson and Landau 1982,
    https://doi.org/10.1016/0047-259X(82)90077-X). On features of an image classifier it is the FID (Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500), which uses the unbiased covariance. Finite samples of one distribution have a
    positive distance, of order ``d^2 / n``: compare values at equal ``n`` only.

    With ``S1 = A^T A`` and ``S2 = B^T B``, the trace of the root is the nuclear norm of ``A B^T``, the largest
    ``<O, A B^T>`` over all ``O`` of spectral norm 1. The gradient holds the maximizing ``O`` fixed, which is exact to
    first order. Directions that one sample does not span contribute nothing to it, so it is finite for any rank.
    """

    title = "Fréchet"

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The squared distance."""
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
    """Correlation alignment, ``|S1 - S2|_F^2 / (4 d^2)`` with the Frobenius norm.

    It is in units of the data to the fourth power. It depends neither on the means nor on any property of the
    distributions but their covariances. Sun and Saenko 2016, https://arxiv.org/abs/1607.01719, equation 1.
    """

    title = "CORAL"

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The squared Frobenius norm of the difference."""
        (_, a), (_, b) = _moments(x, p), _moments(y, q)
        return (a.T @ a - b.T @ b).square().sum() / (4 * x.shape[1] ** 2)


def _moments(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``(d,)``, and rows ``A`` ``(n, d)`` with ``S = A^T A``."""
    center = (p @ x).detach()
    deviations = x - center
    rest = p @ deviations  # the rounding error of the mean, and its gradient
    # The derivative of the square root is infinite at a weight of zero.
    root = torch.where(p > 0, torch.where(p > 0, p, 1.0).sqrt(), 0.0)
    return center + rest, root[:, None] * (deviations - rest)
