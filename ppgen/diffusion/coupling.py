"""Couplings: which row z_i of a base goes with which row x_j of data, in a batch of n rows of each.

A coupling is a joint law of rows with both marginals kept, pi_ij >= 0 with all row and column sums 1 / n:

    coupling       pi
    "independent"  each with any: rows as they come
    "exact"        least sum_ij pi_ij c_ij, a permutation     mini-batch optimal transport, Pooladian et al. 2023
    "sinkhorn"     least sum_ij pi_ij c_ij + eps KL(pi, 1 / n^2), from which i is drawn given j    Tong et al. 2024

with the cost c_ij = |z_i - x_j|^2. Under a condition y_j of the data, transport that does not see it would give each y
a part of the base for itself: p(z | y) would not be the base, from which draws start. So z gets the conditions too, in
a random order, and what differs costs (Cheng & Schwing 2025, C2OT):

    c_ij = |z_i - x_j|^2 + w mean(|z - x|^2) d(y_i, y_j),    d of labels [y_i != y_j], of contexts |y_i - y_j|^2 / 2

so that at a large w rows go with rows of their own label alone, and p(z | y) is the base, since y_i tells nothing of
z_i.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.metrics.metric import squared_distances
from ppgen.nets import lookup

__all__ = ["COUPLINGS", "check_coupling", "couple"]

FALL, STEPS, LAST = 12, 5, 50  # how often epsilon falls to the one asked for, iterations on the way and at its end


def _exact(cost: Tensor, epsilon: float | None, uniform: Tensor) -> Tensor:
    import ot  # late: it takes SciPy along

    weights = torch.full((len(cost),), 1 / len(cost), dtype=torch.float64).numpy()
    plan = ot.emd(weights, weights, cost.nan_to_num().double().cpu().numpy(), numItermax=10**7)
    return torch.as_tensor(plan.argmax(0), device=cost.device)


def _sinkhorn(cost: Tensor, epsilon: float | None, uniform: Tensor) -> Tensor:
    plan = entropic_plan(cost, cost.mean() / 20 if epsilon is None else cost.new_full((), epsilon))
    below = (plan / plan.sum(0)).cumsum(0)  # p(i or less | j)
    return (below < uniform).sum(0).clamp(max=len(cost) - 1)


def entropic_plan(cost: Tensor, epsilon: Tensor) -> Tensor:
    """The plan (n, n) of "sinkhorn", with sums of one in place of 1 / n, by scaling of rows and columns.

    Sums of columns are exact, those of rows nearly so: to .1 % in the mean where epsilon is above a 100th of the mean
    cost, to a few % at a 1000th. The scaling goes into the exponents as epsilon falls, so that nothing becomes too
    large or small (Schmitzer 2019).
    """
    cost, last = cost.double(), epsilon.double()
    first = torch.maximum(cost.max(), last)
    f, g = torch.zeros_like(cost[0]), torch.zeros_like(cost[0])
    for k in range(FALL + 1):
        eps = first * (last / first) ** (k / FALL)
        kernel = ((f[:, None] + g - cost) / eps).exp()
        v = torch.ones_like(g)
        for _ in range(STEPS if k < FALL else LAST):
            u = 1 / (kernel @ v)
            v = 1 / (u @ kernel)
        f, g = f + eps * u.log(), g + eps * v.log()
    return u[:, None] * kernel * v


# cost (n, n), epsilon, uniform numbers (n,) to draw by -> the row i for each j; None where that is j
COUPLINGS: dict[str, Callable[[Tensor, float | None, Tensor], Tensor] | None] = {
    "independent": None,
    "exact": _exact,
    "sinkhorn": _sinkhorn,
}


@torch.library.custom_op("ppgen::solve_coupling", mutates_args=())
def _solve(cost: Tensor, uniform: Tensor, coupling: str, epsilon: float | None) -> Tensor:
    """One operation whatever goes on inside, so that a step around it can be compiled."""
    return COUPLINGS[coupling](cost, epsilon, uniform)  # type: ignore[misc]


@_solve.register_fake
def _(cost: Tensor, uniform: Tensor, coupling: str, epsilon: float | None) -> Tensor:
    return torch.empty_like(uniform, dtype=torch.long)


@torch.no_grad()
def couple(
    z: Tensor,
    x: Tensor,
    *,
    coupling: str = "exact",
    epsilon: float | None = None,
    labels_z: Tensor | None = None,
    labels_x: Tensor | None = None,
    label_weight: float = 1000.0,
) -> Tensor:
    """The row of z that goes with each row of x: i (n,), so that the pairs are z[i] and x.

    Args:
        z, x: (n, *event), both n rows of one shape.
        coupling: a row of `COUPLINGS`.
        epsilon: of "sinkhorn", in squared units of the data; None for a 20th of the mean cost.
        labels_z, labels_x: conditions of the rows, labels (n,) or contexts (n, k); none, or both.
        label_weight: w, what a wrong label costs, in mean squared distances.

    Raises:
        ValueError: there is no such coupling, shapes differ, one of the labels is missing, epsilon is not positive or
            not wanted, or label_weight is below zero.
    """
    check_coupling(coupling, epsilon, label_weight)
    if z.shape != x.shape or z.dim() < 2:
        raise ValueError(f"expected z and x of one shape (n, *event), got {tuple(z.shape)} and {tuple(x.shape)}")
    if COUPLINGS[coupling] is None:
        return torch.arange(len(x), device=x.device)
    cost = squared_distances(z.flatten(1), x.flatten(1))
    if labels_z is not None or labels_x is not None:
        cost = cost + label_weight * cost.mean() * _mismatch(labels_z, labels_x, len(x)).to(cost.dtype)
    return _solve(cost, torch.rand_like(cost[0]), coupling, epsilon)


def check_coupling(coupling: str, epsilon: float | None, label_weight: float) -> None:
    """Raises ValueError for options that `couple` refuses."""
    lookup(COUPLINGS, coupling, option="coupling")
    if epsilon is not None and not (epsilon > 0 and coupling == "sinkhorn"):
        raise ValueError(f"expected epsilon > 0 of 'sinkhorn', None of others, got {epsilon} of {coupling!r}")
    if not label_weight >= 0:
        raise ValueError(f"expected label_weight of at least 0, got {label_weight}")


def _mismatch(labels_z: Tensor | None, labels_x: Tensor | None, n: int) -> Tensor:
    """d(y_i, y_j): (n, n)."""
    if labels_z is None or labels_x is None or labels_z.shape != labels_x.shape or len(labels_x) != n:
        got = [None if labels is None else tuple(labels.shape) for labels in (labels_z, labels_x)]
        raise ValueError(f"expected labels of z and of x, both ({n},) or ({n}, k), got {got[0]} and {got[1]}")
    if labels_x.dim() == 1:
        return labels_z[:, None] != labels_x
    return squared_distances(labels_z, labels_x) / 2
