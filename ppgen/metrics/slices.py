"""Samples laid on lines: the projections that sliced metrics share.

A line has a direction ``theta``, ``|theta| = 1``, and a row lies at ``theta . x`` on it. Distances between laws on a
line need no more than a sort, and averages or maxima of them over many lines are distances between the laws
themselves (Cramér and Wold 1936: the laws of all projections determine the law). A one-dimensional sample lies on
one line already, and is taken as it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def centered(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples about their common center, so that rounding is relative to their extent, not to the origin."""
    center = torch.cat((x, y)).detach().mean(0)
    return x - center, y - center


def directions(x: Tensor, number: int) -> Tensor:
    """``number`` directions ``(number, d)``, uniform on the sphere, by torch's global generator.

    They are drawn in single precision, so that a seed gives the same lines at every precision of the samples.
    """
    return F.normalize(torch.randn(number, x.shape[1], device=x.device).to(x), dim=1)


def on_lines(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Positions ``(lines, n)`` and ``(lines, m)`` on ``number`` random lines; on one line where ``d = 1``."""
    x, y = centered(x, y)
    if x.shape[1] == 1:
        return x.T, y.T
    theta = directions(x, number)
    return theta @ x.T, theta @ y.T


def line_plan(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best plan on each line for every convex cost: row numbers ``i``, ``j`` and the mass that goes between them.

    It carries the quantile of one sample to the same quantile of the other. Both quantile functions are steps, and
    between two levels at which either has one the rows stay: ``n + m`` pieces a line.
    """
    i, j = u.detach().argsort(1), v.detach().argsort(1)
    below_u, below_v = p[i].cumsum(1), q[j].cumsum(1)
    levels = torch.cat((below_u, below_v), dim=1).sort(1).values
    mass = levels.diff(dim=1, prepend=levels.new_zeros(len(levels), 1))
    at_u, at_v = (torch.searchsorted(below.detach(), levels.detach()) for below in (below_u, below_v))
    # By rounding the last level of one sample may lie above the other's.
    return i.gather(1, at_u.clamp(max=len(p) - 1)), j.gather(1, at_v.clamp(max=len(q) - 1)), mass


def check_number(name: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number of {least} or more, got {value!r}")


def check_positive(name: str, value: object, expected: str = "a positive number") -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
