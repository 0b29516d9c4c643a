"""Couplings of noise with data: which row z_i of the base is paired with which row x_j of the data in a mini-batch.

For n rows of each, a coupling is a joint distribution pi_ij >= 0 whose row and column sums are all 1 / n:

    "independent"  pairs the rows in the order in which they come
    "exact"        minimizes sum_ij pi_ij c_ij over permutations: mini-batch optimal transport,
                   Pooladian et al. 2023 (https://arxiv.org/abs/2304.14772)
    "sinkhorn"     minimizes sum_ij pi_ij c_ij + eps KL(pi, 1 / n^2), then samples i given j from pi,
                   Tong et al. 2024 (https://arxiv.org/abs/2302.00482)

The cost is c_ij = |z_i - x_j|^2. If the data have conditions y_j, transport that ignores them would assign each y its
own part of the base: p(z | y) would differ from the base, from which sampling starts. Therefore z also gets conditions,
the same ones in a random order, and pairs with different conditions cost more (Cheng & Schwing 2025, C2OT,
https://arxiv.org/abs/2503.10636):

    c_ij = |z_i - x_j|^2 + w mean(|z - x|^2) d(y_i, y_j),

where d(y_i, y_j) is [y_i != y_j] for labels and |y_i - y_j|^2 / 2 for contexts. For large w only rows with the same
label are paired, and p(z | y) is the base, since y_i is independent of z_i.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.metrics.metric import squared_distances
from ppgen.nets import lookup

__all__ = ["COUPLINGS", "check_coupling", "couple"]

# epsilon-scaling: the number of reductions of epsilon, of iterations after each, and of iterations at the final epsilon
REDUCTIONS, ITERATIONS, FINAL_ITERATIONS = 12, 5, 50


def _exact(cost: Tensor, epsilon: float | None, uniform: Tensor) -> Tensor:
    import ot  # late, because it imports SciPy

    weights = torch.full((len(cost),), 1 / len(cost), dtype=torch.float64).numpy()
    plan = ot.emd(weights, weights, cost.nan_to_num().double().cpu().numpy(), numItermax=10**7)
    return torch.as_tensor(plan.argmax(0), device=cost.device)


def _sinkhorn(cost: Tensor, epsilon: float | None, uniform: Tensor) -> Tensor:
    plan = entropic_plan(cost, cost.mean() / 20 if epsilon is None else cost.new_full((), epsilon))
    cdf = (plan / plan.sum(0)).cumsum(0)  # P(index <= i | j)
    return (cdf < uniform).sum(0).clamp(max=len(cost) - 1)


def entropic_plan(cost: Tensor, epsilon: Tensor) -> Tensor:
    """The entropic plan n pi (n, n), whose row and column sums are one, by Sinkhorn iterations.

    Column sums are exact. Row sums have a mean error of 0.1 % if epsilon is above 1 / 100 of the mean cost, and of a
    few percent at 1 / 1000. Scalings are absorbed into the potentials while epsilon decreases, which avoids overflow
    and underflow (Schmitzer 2019, https://arxiv.org/abs/1610.06519).

    Args:
        cost: c (n, n).
        epsilon: The regularization, a scalar in units of the cost.
    """
    cost, last = cost.double(), epsilon.double()
    first = torch.maximum(cost.max(), last)
    f, g = torch.zeros_like(cost[0]), torch.zeros_like(cost[0])
    for k in range(REDUCTIONS + 1):
        eps = first * (last / first) ** (k / REDUCTIONS)
        kernel = ((f[:, None] + g - cost) / eps).exp()
        v = torch.ones_like(g)
        for _ in range(ITERATIONS if k < REDUCTIONS else FINAL_ITERATIONS):
            u = 1 / (kernel @ v)
            v = 1 / (u @ kernel)
        f, g = f + eps * u.log(), g + eps * v.log()
    return u[:, None] * kernel * v


# each maps the cost (n, n), epsilon, and uniform random numbers (n,) to the row i for each j; None stands for i = j
COUPLINGS: dict[str, Callable[[Tensor, float | None, Tensor], Tensor] | None] = {
    "independent": None,
    "exact": _exact,
    "sinkhorn": _sinkhorn,
}


@torch.library.custom_op("ppgen::solve_coupling", mutates_args=())
def _solve(cost: Tensor, uniform: Tensor, coupling: str, epsilon: float | None) -> Tensor:
    """The coupling as one opaque operator, so that a training step around it can be compiled."""
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
    """Returns the index i (n,) of the row of z that is paired with each row of x: the pairs are ``z[i]`` and ``x``.

    Args:
        z: Rows of the base (n, *event).
        x: Rows of the data, of the same shape.
        coupling: A key of `COUPLINGS`.
        epsilon: The regularization of "sinkhorn", in squared units of the data; None for 1 / 20 of the mean cost.
        labels_z: Conditions of the rows of z: labels (n,) or contexts (n, k); None if there are none.
        labels_x: Conditions of the rows of x; given if and only if `labels_z` is.
        label_weight: w, the cost of a different label in units of the mean squared distance.

    Raises:
        ValueError: If the coupling is unknown, shapes differ, only one of the labels is given, epsilon is not positive
            or given for another coupling, or `label_weight` is negative.
    """
    check_coupling(coupling, epsilon, label_weight)
    if z.shape != x.shape or z.dim() < 2:
        raise ValueError(f"expected z and x of one shape (n, *event), got {tuple(z.shape)} and {tuple(x.shape)}")
    if COUPLINGS[coupling] is None:
        return torch.arange(len(x), device=x.device)
    cost = squared_distances(z.flatten(1), x.flatten(1))
    if labels_z is not None or labels_x is not None:
        cost = cost + label_weight * cost.mean() * _label_distances(labels_z, labels_x, len(x)).to(cost.dtype)
    return _solve(cost, torch.rand_like(cost[0]), coupling, epsilon)


def check_coupling(coupling: str, epsilon: float | None, label_weight: float) -> None:
    """Checks the options of `couple`.

    Args:
        coupling: A key of `COUPLINGS`.
        epsilon: The regularization of "sinkhorn", otherwise None.
        label_weight: The cost of a different label.

    Raises:
        ValueError: If the coupling is unknown, epsilon is not positive or given for a coupling other than "sinkhorn",
            or `label_weight` is negative.
    """
    lookup(COUPLINGS, coupling, option="coupling")
    if epsilon is not None and not (epsilon > 0 and coupling == "sinkhorn"):
        raise ValueError(
            f"expected epsilon > 0 for coupling='sinkhorn' and None for any other, got {epsilon} for {coupling!r}"
        )
    if not label_weight >= 0:
        raise ValueError(f"expected label_weight of at least 0, got {label_weight}")


def _label_distances(labels_z: Tensor | None, labels_x: Tensor | None, n: int) -> Tensor:
    """d(y_i, y_j): (n, n)."""
    if labels_z is None or labels_x is None or labels_z.shape != labels_x.shape or len(labels_x) != n:
        got = [None if labels is None else tuple(labels.shape) for labels in (labels_z, labels_x)]
        raise ValueError(f"expected labels of z and of x, both ({n},) or ({n}, k), got {got[0]} and {got[1]}")
    if labels_x.dim() == 1:
        return labels_z[:, None] != labels_x
    return squared_distances(labels_z, labels_x) / 2
