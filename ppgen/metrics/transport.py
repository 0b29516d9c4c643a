"""Optimal transport: the least work that turns one law into the other.

With the cost ``|x - y|^p`` and a plan ``pi >= 0`` ``(n, m)`` that carries the weights ``p_i`` of ``x`` to ``q_j``
of ``y``, its row sums being ``p_i`` and its column sums ``q_j``,

    W_p^p(P, Q) = min_pi sum_ij pi_ij |x_i - y_j|^p.

All metrics here return that power, in units of the data to the power ``p``. ``root=True``, an option of all but
:class:`Sinkhorn`, takes the root ``1/p``, which is a distance in the units of the data; where the value is zero the
root has no gradient, and zero stands for it. All are biased estimates: positive for two finite samples of one law.

Gradients hold the plan, or the direction, or the potentials fixed at the optimum, which is right to first order (the
envelope theorem).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppgen.metrics.kernel import distance_power
from ppgen.metrics.metric import Metric, squared_distances
from ppgen.metrics.slices import centered, check_number, check_positive, directions, line_plan, on_lines


@dataclass(kw_only=True, eq=False, repr=False)
class TransportMetric(Metric):
    """What transport metrics share: the exponent ``p`` of the cost ``|x - y|^p``, a number of 1 or more."""

    p: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.p, int | float) and math.isfinite(self.p) and self.p >= 1):
            raise ValueError(f"p: expected a number of 1 or more, got {self.p!r}")

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        """``|x_i - y_j|^p`` as ``(n, m)``."""
        return distance_power(squared_distances(x, y), self.p)


@dataclass(kw_only=True, eq=False, repr=False)
class SlicedWasserstein(TransportMetric):
    """Sliced Wasserstein distance (Bonneel et al. 2015), the mean over directions on the unit sphere

    ``SW_p^p = E_theta W_p^p(theta . X, theta . Y)``,

    by ``projections`` random directions, new ones in each call, from torch's global generator. On a line the best
    plan keeps the order of the rows, and is found exactly for any numbers of rows and any weights: time
    ``projections (n + m) log(n + m)``. In one dimension no direction is drawn and the value is ``W_p^p`` itself.
    As a training loss the power is taken as it is (Deshpande et al. 2018, Kolouri et al. 2019), hence
    ``root=False``. A shift by ``s`` has ``SW_2^2 = |s|^2 / d``.

    Raises ``ValueError`` for ``p < 1`` and for ``projections < 1``.
    """

    projections: int = 100
    root: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("projections", self.projections)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        value = line_costs(*on_lines(x, y, self.projections), p, q, self.p).mean()
        return _root(value, self.p) if self.root else value


@dataclass(kw_only=True, eq=False, repr=False)
class MaxSlicedWasserstein(TransportMetric):
    """Max-sliced Wasserstein distance (Deshpande et al. 2019), ``max_theta W_p^p(theta . X, theta . Y)``.

    From ``starts`` random directions, ``steps`` times ``theta <- normalize(theta + g / |g|)``, where ``g`` is the
    gradient in ``theta``; the best direction met anywhere on the way counts. The maximum is local, and thereby a
    lower bound. The search sees detached samples and takes as long as a :class:`SlicedWasserstein` of
    ``starts * steps`` projections; in one dimension there is none. A shift by ``s`` has ``max W_2^2 = |s|^2``.

    Raises ``ValueError`` for ``p < 1``, ``starts < 1`` and ``steps < 1``.
    """

    starts: int = 8
    steps: int = 30
    root: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("starts", self.starts)
        check_number("steps", self.steps)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        x, y = centered(x, y)
        theta = x.new_ones(1, 1) if x.shape[1] == 1 else self.best(x, y, p, q)
        value = line_costs(theta @ x.T, theta @ y.T, p, q, self.p).sum()
        return _root(value, self.p) if self.root else value

    @torch.no_grad()
    def best(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The direction ``(1, d)`` of the largest distance that was met."""
        theta = directions(x, self.starts)
        most, best = x.new_full((self.starts,), -math.inf), theta
        for step in range(self.steps + 1):
            u, v = theta @ x.T, theta @ y.T
            i, j, mass = line_plan(u, v, p, q)
            gap = u.gather(1, i) - v.gather(1, j)
            value = (mass * gap.abs() ** self.p).sum(1)
            best = torch.where((value > most)[:, None], theta, best)
            most = torch.maximum(value, most)
            if step < self.steps:
                pull = mass * gap.abs() ** (self.p - 1) * gap.sign()
                slope = (
                    torch.zeros_like(u).scatter_add(1, i, pull) @ x - torch.zeros_like(v).scatter_add(1, j, pull) @ y
                )
                theta = F.normalize(theta + F.normalize(slope, dim=1), dim=1)
        return best.index_select(0, most.argmax(0, keepdim=True))


@dataclass(kw_only=True, eq=False, repr=False)
class Sinkhorn(TransportMetric):
    """Sinkhorn divergence (Genevay et al. 2018, Feydy et al. 2019), transport with plans that entropy blurs:

    ``S = OT(P, Q) - OT(P, P) / 2 - OT(Q, Q) / 2``,
    ``OT(P, Q) = min_pi sum_ij pi_ij |x_i - y_j|^p + eps KL(pi, p (x) q)``.

    ``S`` is zero for equal samples and not negative for ``p`` of 1 and 2. As ``eps`` falls to zero it becomes
    ``W_p^p``, and as it grows, at ``p = 1``, half the energy distance. ``debias=False`` returns ``OT(P, Q)`` alone.

    - ``epsilon``: ``eps`` in units of ``unit``.
    - ``unit``: ``"mean"`` for the mean cost ``E|X - Y|^p`` of the two samples, through which no gradient passes, or
      a number, in units of the data to the power ``p``; ``unit=1.0`` makes ``epsilon`` absolute.
    - ``scaling``: the iterations start from an ``eps`` as large as the box around the samples, which falls
      geometrically to the one asked for, in as many steps as ``scaling ** steps <= epsilon`` takes.
    - ``steps``: iterations at the last ``eps``. Their number is thus known from the options. Many are needed for
      an ``epsilon`` of 0.01 and below; too few leave the value and its gradient too small or too large.

    Potentials are updated in logarithms and by halves, both sides at once (Feydy et al. 2019, section 3); no step
    but the last is kept for the gradient. Time and memory grow as ``n^2 + n m + m^2``.

    Raises ``ValueError`` for ``p < 1``, for ``epsilon`` or ``unit`` that are not positive, for a ``scaling`` outside
    of 0 to 1, and for ``steps < 1``.
    """

    epsilon: float = 0.05
    unit: str | float = "mean"
    scaling: float = 0.5
    steps: int = 20
    debias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("epsilon", self.epsilon)
        if self.unit != "mean":
            check_positive("unit", self.unit, "'mean' or a positive number")
        if not 0 < self.scaling < 1:
            raise ValueError(f"scaling: expected a number between 0 and 1, excluded, got {self.scaling}")
        check_number("steps", self.steps)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ladder = self.ladder(x.detach(), y.detach(), p.detach(), q.detach())
        f, g = self.potentials(x, y, p, q, ladder)
        if self.debias:
            f, g = f - self.own_potential(x, p, ladder), g - self.own_potential(y, q, ladder)
        return p @ f + q @ g

    def ladder(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> list[Tensor]:
        """The values that ``eps`` takes, one an iteration."""
        unit = p @ self.costs(x, y) @ q if isinstance(self.unit, str) else x.new_full((), self.unit)
        last = self.epsilon * torch.where(unit > 0, unit, 1.0)  # where nothing costs anything, any will do
        low, high = torch.cat((x, y)).aminmax(dim=0)
        first = torch.maximum((high - low).norm() ** self.p, last)
        fall = max(0, math.ceil(math.log(self.epsilon) / math.log(self.scaling)))
        return [first * (last / first) ** (k / fall) for k in range(fall)] + [last] * self.steps

    def potentials(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor, ladder: list[Tensor]) -> tuple[Tensor, Tensor]:
        """``f`` ``(n,)`` and ``g`` ``(m,)`` with ``OT(P, Q) = p . f + q . g``.

        The gradient takes the other side's rows and potential as constants: that of ``p . f`` in ``x`` is then
        ``sum_j pi_ij grad |x_i - y_j|^p``, and so for ``g`` in ``y``; together they are the whole of it.
        """
        with torch.no_grad():
            cost, log_p, log_q = self.costs(x, y), p.log(), q.log()
            f, g = _soft_min(ladder[0], cost, log_q), _soft_min(ladder[0], cost.T, log_p)
            for eps in ladder:
                toward = _soft_min(eps, cost, log_q + g / eps), _soft_min(eps, cost.T, log_p + f / eps)
                f, g = (f + toward[0]) / 2, (g + toward[1]) / 2
        x_costs, y_costs = self.costs(x, y.detach()), self.costs(y, x.detach())
        return _soft_min(eps, x_costs, log_q + g / eps), _soft_min(eps, y_costs, log_p + f / eps)

    def own_potential(self, x: Tensor, p: Tensor, ladder: list[Tensor]) -> Tensor:
        """``f`` of :meth:`potentials` for ``Q = P``, where ``g`` is the same, so that ``OT(P, P) / 2 = p . f``."""
        with torch.no_grad():
            cost, log_p = self.costs(x, x), p.log()
            f = _soft_min(ladder[0], cost, log_p)
            for eps in ladder:
                f = (f + _soft_min(eps, cost, log_p + f / eps)) / 2
        return _soft_min(eps, self.costs(x, x.detach()), log_p + f / eps)


@dataclass(kw_only=True, eq=False, repr=False)
class Wasserstein(TransportMetric):
    """The exact ``W_p^p`` between the two samples, by the network simplex of POT (Bonneel et al. 2011).

    For evaluation, and as a slow loss: the plan comes from the CPU, in time of about ``n^3``, is read back into
    Python, and cannot be part of a compiled step. The gradient in the rows holds the plan fixed, that in the
    weights is the dual solution.

    Raises ``ImportError`` where POT is not installed and ``ValueError`` for ``p < 1``.
    """

    root: bool = False

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        try:
            import ot
        except ImportError as error:
            raise ImportError(f"{self.name}: exact transport is POT's; install it with: pip install pot") from error
        cost = self.costs(x, y)
        a, b = (weights.detach().double().cpu() for weights in (p, q))
        finite = cost.detach().nan_to_num().double().cpu()
        plan, log = ot.emd((a / a.sum()).numpy(), (b / b.sum()).numpy(), finite.numpy(), numItermax=10**7, log=True)
        f, g = (torch.as_tensor(log[side]).to(x) for side in "uv")
        value = (torch.as_tensor(plan).to(x) * cost).sum() + (p - p.detach()) @ f + (q - q.detach()) @ g
        return _root(value, self.p) if self.root else value


def line_costs(u: Tensor, v: Tensor, p: Tensor, q: Tensor, exponent: float) -> Tensor:
    """``W_p^p`` on each line ``(lines,)`` of positions ``u`` ``(lines, n)`` and ``v`` ``(lines, m)``."""
    i, j, mass = line_plan(u, v, p, q)
    return (mass * distance_power((u.gather(1, i) - v.gather(1, j)).square(), exponent)).sum(1)


def _soft_min(eps: Tensor, cost: Tensor, log_weights: Tensor) -> Tensor:
    return -eps * (log_weights - cost / eps).logsumexp(1)


def _root(value: Tensor, p: float) -> Tensor:
    return distance_power(value.clamp(min=0), 2 / p)  # below zero it is by rounding alone
