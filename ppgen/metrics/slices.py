"""One-dimensional projections of samples, which all sliced metrics share.

A line has a direction ``theta`` with ``|theta| = 1``, and a row ``x`` is projected to ``theta . x``. Distances between
distributions on a line need no more than a sort. Averages or maxima of them over all lines are distances between the
distributions themselves, because the projections determine the distribution (Cramér and Wold 1936,
https://doi.org/10.1112/jlms/s1-11.4.290). A one-dimensional sample is not projected.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["centered", "project", "random_directions", "transport_plan"]


def centered(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the common center, so that rounding errors are relative to the extent of the samples.

    Args:
        x: Rows ``(n, d)``.
        y: Rows ``(m, d)``.
    """
    center = torch.cat((x, y)).detach().mean(0)
    return x - center, y - center


def random_directions(x: Tensor, number: int) -> Tensor:
    """Directions ``(number, d)``, uniform on the sphere, from torch's global generator.

    They are sampled in single precision, so that a seed gives the same directions at every precision of the samples.

    Args:
        x: Rows ``(n, d)``, of the dtype and device that the directions get.
        number: How many directions.
    """
    return F.normalize(torch.randn(number, x.shape[1], device=x.device).to(x), dim=1)


def project(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Projections ``(number, n)`` and ``(number, m)`` on random lines; on one line if ``d = 1``.

    Args:
        x: Rows ``(n, d)``.
        y: Rows ``(m, d)``.
        number: How many lines.
    """
    x, y = centered(x, y)
    if x.shape[1] == 1:
        return x.T, y.T
    theta = random_directions(x, number)
    return theta @ x.T, theta @ y.T


def transport_plan(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The transport plan on each line that is optimal for every convex cost.

    It maps each quantile of one sample to the same quantile of the other. Both quantile functions are step functions;
    between two consecutive levels at which either has a step, the pair of rows stays the same. This gives ``n + m``
    pairs on each line.

    Args:
        u: Projections ``(lines, n)``.
        v: Projections ``(lines, m)``.
        p: Weights ``(n,)``.
        q: Weights ``(m,)``.

    Returns:
        Row indices ``i`` into ``u`` and ``j`` into ``v``, and the mass that is moved between the two rows.
    """
    i, j = u.detach().argsort(1), v.detach().argsort(1)
    levels_u, levels_v = p[i].cumsum(1), q[j].cumsum(1)
    levels = torch.cat((levels_u, levels_v), dim=1).sort(1).values
    mass = levels.diff(dim=1, prepend=levels.new_zeros(len(levels), 1))
    at_u, at_v = (torch.searchsorted(own.detach(), levels.detach()) for own in (levels_u, levels_v))
    # By rounding, the last level of one sample may be above that of the other.
    return i.gather(1, at_u.clamp(max=len(p) - 1)), j.gather(1, at_v.clamp(max=len(q) - 1)), mass
