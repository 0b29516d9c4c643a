"""Optimal transport: the least cost of turning one distribution into the other.

With the cost ``|x - y|^p`` and a plan ``pi >= 0`` ``(n, m)`` that moves the weights ``p_i`` of ``x`` to the weights
``q_j`` of ``y`` (its row sums are ``p_i``, its column sums ``q_j``),

    W_p^p(P, Q) = min_pi sum_ij pi_ij |x_i - y_j|^p.

All metrics here return this power, in units of the data to the power ``p``. ``root=True``, an option of all but
:class:`Sinkhorn`, returns the root ``1/p``, which is a distance in the units of the data. If the value is zero, the
root has no gradient, and zero is used. All estimates are biased: they are positive for two finite samples of one
distribution.

Gradients hold the plan, the direction or the potentials fixed at the optimum, which is exact to first order by the
envelope theorem. Peyré and Cuturi 2019, "Computational Optimal Transport", https://arxiv.org/abs/1803.00567.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ppgen.metrics.checks import check_integer, check_positive
from ppgen.metrics.kernel import distance_power
from ppgen.metrics.metric import Metric, squared_distances
from ppgen.metrics.slices import centered, project, random_directions, transport_plan

__all__ = ["MaxSlicedWasserstein", "Sinkhorn", "SlicedWasserstein", "TransportMetric", "Wasserstein", "exact_plan"]


@dataclass(kw_only=True, eq=False, repr=False)
class TransportMetric(Metric):
    """The base class of transport metrics.

    Args:
        p: The exponent of the cost ``|x - y|^p``, at least 1.

    Raises:
        ValueError: If ``p < 1``.
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.p, int | float) and math.isfinite(self.p) and self.p >= 1):
            raise ValueError(f"p: expected a number of at least 1, got {self.p!r}")

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        """``|x_i - y_j|^p`` as ``(n, m)``.

        Args:
            x: Rows ``(n, d)``.
            y: Rows ``(m, d)``.
        """
        return distance_power(squared_distances(x, y), self.p)


@dataclass(kw_only=True, eq=False, repr=False)
class SlicedWasserstein(TransportMetric):
    """Sliced Wasserstein distance, ``SW_p^p = E_theta W_p^p(theta . X, theta . Y)`` over directions on the unit sphere.

    The directions are sampled again in each call, from torch's global generator. On a line the optimal plan keeps the
    order of the rows, and is found exactly for any numbers of rows and any weights in time
    ``projections (n + m) log(n + m)``. In one dimension no direction is sampled and the value is ``W_p^p`` itself. A
    shift by ``s`` has ``SW_2^2 = |s|^2 / d``. Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3. As a
    training loss the power is used without its root (https://arxiv.org/abs/1803.11188,
    https://arxiv.org/abs/1804.01947), hence ``root=False``.

    Args:
        projections: The number of directions.
        root: Whether to return the root ``1/p``.

    Raises:
        ValueError: If ``p < 1`` or ``projections < 1``.
    """

    title = "sliced Wasserstein-2²"

    projections: int = 100
    root: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("projections", self.projections)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The mean cost over the lines."""
        value = _line_costs(*project(x, y, self.projections), p, q, self.p).mean()
        return _root(value, self.p) if self.root else value


@dataclass(kw_only=True, eq=False, repr=False)
class MaxSlicedWasserstein(TransportMetric):
    """Max-sliced Wasserstein distance, ``max_theta W_p^p(theta . X, theta . Y)``.

    The search starts from random directions and repeats ``theta <- normalize(theta + g / |g|)``, where ``g`` is the
    gradient in ``theta``; the best direction of all iterations is used. The maximum is local, and therefore a lower
    bound. The search uses detached samples and costs as much as a :class:`SlicedWasserstein` of ``starts * steps``
    projections; in one dimension there is no search. A shift by ``s`` has ``max W_2^2 = |s|^2``. Deshpande et al. 2019,
    https://arxiv.org/abs/1904.05877.

    Args:
        starts: The number of random directions from which the search starts.
        steps: The number of iterations.
        root: Whether to return the root ``1/p``.

    Raises:
        ValueError: If ``p < 1``, ``starts < 1`` or ``steps < 1``.
    """

    starts: int = 8
    steps: int = 30
    root: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("starts", self.starts)
        check_integer("steps", self.steps)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The cost on the best line."""
        x, y = centered(x, y)
        theta = x.new_ones(1, 1) if x.shape[1] == 1 else self.best_direction(x, y, p, q)
        value = _line_costs(theta @ x.T, theta @ y.T, p, q, self.p).sum()
        return _root(value, self.p) if self.root else value

    @torch.no_grad()
    def best_direction(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The direction ``(1, d)`` with the largest distance of all iterations.

        Args:
            x: Rows ``(n, d)``.
            y: Rows ``(m, d)``.
            p: Weights of ``x``.
            q: Weights of ``y``.
        """
        theta = random_directions(x, self.starts)
        largest, best = x.new_full((self.starts,), -math.inf), theta
        for step in range(self.steps + 1):
            u, v = theta @ x.T, theta @ y.T
            i, j, mass = transport_plan(u, v, p, q)
            difference = u.gather(1, i) - v.gather(1, j)
            value = (mass * difference.abs() ** self.p).sum(1)
            best = torch.where((value > largest)[:, None], theta, best)
            largest = torch.maximum(value, largest)
            if step < self.steps:
                term = mass * difference.abs() ** (self.p - 1) * difference.sign()
                in_x = torch.zeros_like(u).scatter_add(1, i, term)
                in_y = torch.zeros_like(v).scatter_add(1, j, term)
                theta = F.normalize(theta + F.normalize(in_x @ x - in_y @ y, dim=1), dim=1)
        return best.index_select(0, largest.argmax(0, keepdim=True))


@dataclass(kw_only=True, eq=False, repr=False)
class Sinkhorn(TransportMetric):
    """Sinkhorn divergence, the debiased cost of entropy-regularized transport.

        S = OT(P, Q) - OT(P, P) / 2 - OT(Q, Q) / 2
        OT(P, Q) = min_pi sum_ij pi_ij |x_i - y_j|^p + eps KL(pi, p (x) q)

    ``S`` is zero for equal samples and not negative if ``p`` is 1 or 2. As ``eps`` goes to zero it converges to
    ``W_p^p``, and as ``eps`` grows, with ``p = 1``, to half the energy distance. Genevay et al. 2018
    (https://arxiv.org/abs/1706.00292); Feydy et al. 2019 (https://arxiv.org/abs/1810.08278).

    The iterations are in log space and update both potentials at once, averaged with their old values (Feydy et al.,
    section 3). Only the last step is kept for the gradient. Time and memory grow as ``n^2 + n m + m^2``.

    Args:
        epsilon: ``eps`` in multiples of ``unit``.
        unit: ``"mean"`` for the mean cost ``E|X - Y|^p`` of the two samples, through which no gradient passes, or a
            number in units of the data to the power ``p``. ``unit=1.0`` makes ``epsilon`` absolute.
        scaling: The iterations start from an ``eps`` as large as the bounding box of the samples. It decreases
            geometrically to the final value, in the number of steps at which ``scaling ** steps <= epsilon``.
        steps: The number of iterations at the final ``eps``, so the total number follows from the options. An
            ``epsilon`` of 0.01 or less needs many; with too few, the value and its gradient are wrong.
        debias: Whether to return ``S``; otherwise ``OT(P, Q)``.

    Raises:
        ValueError: If ``p < 1``, ``epsilon`` or ``unit`` is not positive, ``scaling`` is not between 0 and 1, or
            ``steps < 1``.

    Example:
        >>> import torch
        >>> from ppgen import metrics
        >>> x = torch.randn(50, 2)
        >>> shift = torch.tensor([3.0, 4.0])
        >>> round(float(metrics.Sinkhorn(p=2)(x, x + shift)))  # W_2^2 is 3^2 + 4^2
        25
    """

    title = "Sinkhorn"

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
            raise ValueError(f"scaling: expected a number between 0 and 1, both excluded, got {self.scaling}")
        check_integer("steps", self.steps)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """``S`` or ``OT(P, Q)`` from the dual potentials."""
        schedule = self.epsilon_schedule(x.detach(), y.detach(), p.detach(), q.detach())
        f, g = self.potentials(x, y, p, q, schedule)
        if self.debias:
            f, g = f - self.self_potential(x, p, schedule), g - self.self_potential(y, q, schedule)
        return p @ f + q @ g

    def epsilon_schedule(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> list[Tensor]:
        """The value of ``eps`` at each iteration.

        Args:
            x: Rows ``(n, d)``.
            y: Rows ``(m, d)``.
            p: Weights of ``x``.
            q: Weights of ``y``.
        """
        unit = p @ self.costs(x, y) @ q if isinstance(self.unit, str) else x.new_full((), self.unit)
        last = self.epsilon * torch.where(unit > 0, unit, 1.0)  # if all costs are zero, any value will do
        low, high = torch.cat((x, y)).aminmax(dim=0)
        first = torch.maximum((high - low).norm() ** self.p, last)
        decreasing = max(0, math.ceil(math.log(self.epsilon) / math.log(self.scaling)))
        return [first * (last / first) ** (k / decreasing) for k in range(decreasing)] + [last] * self.steps

    def potentials(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor, schedule: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The dual potentials ``f`` ``(n,)`` and ``g`` ``(m,)`` with ``OT(P, Q) = p . f + q . g``.

        The gradient treats the other side's rows and potential as constants. The gradient of ``p . f`` in ``x`` is then
        ``sum_j pi_ij grad |x_i - y_j|^p``, and likewise for ``g`` in ``y``; together they are the whole gradient.

        Args:
            x: Rows ``(n, d)``.
            y: Rows ``(m, d)``.
            p: Weights of ``x``.
            q: Weights of ``y``.
            schedule: The result of `epsilon_schedule`.
        """
        with torch.no_grad():
            cost, log_p, log_q = self.costs(x, y), p.log(), q.log()
            f, g = _soft_min(schedule[0], cost, log_q), _soft_min(schedule[0], cost.T, log_p)
            for eps in schedule:
                update = _soft_min(eps, cost, log_q + g / eps), _soft_min(eps, cost.T, log_p + f / eps)
                f, g = (f + update[0]) / 2, (g + update[1]) / 2
        x_costs, y_costs = self.costs(x, y.detach()), self.costs(y, x.detach())
        return _soft_min(eps, x_costs, log_q + g / eps), _soft_min(eps, y_costs, log_p + f / eps)

    def self_potential(self, x: Tensor, p: Tensor, schedule: list[Tensor]) -> Tensor:
        """``f`` of :meth:`potentials` for ``Q = P``, where ``g = f``, so that ``OT(P, P) / 2 = p . f``.

        Args:
            x: Rows ``(n, d)``.
            p: Weights of ``x``.
            schedule: The result of `epsilon_schedule`.
        """
        with torch.no_grad():
            cost, log_p = self.costs(x, x), p.log()
            f = _soft_min(schedule[0], cost, log_p)
            for eps in schedule:
                f = (f + _soft_min(eps, cost, log_p + f / eps)) / 2
        return _soft_min(eps, self.costs(x, x.detach()), log_p + f / eps)


@dataclass(kw_only=True, eq=False, repr=False)
class Wasserstein(TransportMetric):
    """The exact ``W_p^p`` between the two samples, by the network simplex of POT.

    It is for evaluation, and a slow loss: the plan is computed on the CPU, in time of about ``n^3``, is read back into
    Python, and cannot be part of a compiled step. The gradient in the rows holds the plan fixed; the gradient in the
    weights is the dual solution. Bonneel et al. 2011, https://doi.org/10.1145/2070781.2024192.

    Args:
        root: Whether to return the root ``1/p``.

    Raises:
        ImportError: On a call, if POT is not installed.
        ValueError: If ``p < 1``.
    """

    title = "Wasserstein-1, exact"

    root: bool = False

    @classmethod
    def for_summary(cls) -> Self:
        """``W_1``."""
        return cls(p=1)

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The cost of the optimal plan."""
        cost = self.costs(x, y)
        plan, f, g = exact_plan(cost, p, q, name=self.name)
        value = (plan * cost).sum() + (p - p.detach()) @ f + (q - q.detach()) @ g
        return _root(value, self.p) if self.root else value


def exact_plan(cost: Tensor, p: Tensor, q: Tensor, *, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The plan ``pi`` ``(n, m)`` of least cost and the dual solution ``f`` ``(n,)``, ``g`` ``(m,)``, without gradients.

    Args:
        cost: ``(n, m)``; what is not finite counts as zero or as the largest number.
        p: Weights ``(n,)`` with a positive sum; the plan's row sums are in their proportions, and add up to one.
        q: Weights ``(m,)`` of the columns.
        name: What needs the plan, for the error.

    Raises:
        ImportError: If POT is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError(f"{name}: exact transport needs POT; install it with: pip install pot") from error
    a, b = (weights.detach().double().cpu() for weights in (p, q))
    finite = cost.detach().nan_to_num().double().cpu()
    plan, log = ot.emd((a / a.sum()).numpy(), (b / b.sum()).numpy(), finite.numpy(), numItermax=10**7, log=True)
    return torch.as_tensor(plan).to(cost), torch.as_tensor(log["u"]).to(cost), torch.as_tensor(log["v"]).to(cost)


def _line_costs(u: Tensor, v: Tensor, p: Tensor, q: Tensor, exponent: float) -> Tensor:
    """``W_p^p`` on each line ``(lines,)`` from projections ``u`` ``(lines, n)`` and ``v`` ``(lines, m)``."""
    i, j, mass = transport_plan(u, v, p, q)
    return (mass * distance_power((u.gather(1, i) - v.gather(1, j)).square(), exponent)).sum(1)


def _soft_min(eps: Tensor, cost: Tensor, log_weights: Tensor) -> Tensor:
    return -eps * (log_weights - cost / eps).logsumexp(1)


def _root(value: Tensor, p: float) -> Tensor:
    return distance_power(value.clamp(min=0), 2 / p)  # a negative value is a rounding error
