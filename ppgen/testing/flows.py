"""The invariants of a normalizing flow."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ppgen.flows import Flow

__all__ = ["check_flow"]

ROWS = 5  # events that the flow is tried on
REACH, SIDE = 12.0, 241  # the grid on which a density is integrated: from -REACH to REACH, SIDE points a dimension


def check_flow(flow: Flow, *, tolerance: float = 1e-6, integrate: bool = True, seed: int = 0) -> None:
    """Checks a flow x = T(z) on R^d, in float64, at the parameters that it has; a copy is used.

    * T^-1(T(z)) = z and T(T^-1(x)) = x.
    * log |det dT^-1 / dx| is that of autograd's Jacobian.
    * log p(x) = log p_base(T^-1(x)) + log |det dT^-1 / dx|.
    * For d <= 2 the density integrates to one on a grid (within .01), so the base has to lie well inside [-12, 12]^d.
    * Draws have the right shape, and their density by `rsample_and_log_prob` is that of `log_prob`.
    * log p passes a finite gradient to every parameter.

    Args:
        flow: a flow of vectors, with a context or without. Move its parameters away from a start at the identity
            first: there most mistakes are invisible.
        tolerance: absolute and relative, of inverses; for an inverse by bisection or an adaptive solver its own.
        integrate: whether the density is integrated, d + 1 evaluations of 241^d points.
        seed: seed of the events and contexts.

    Raises:
        AssertionError: naming the invariant that does not hold.

    Example:
        >>> import ppgen
        >>> ppgen.testing.check_flow(ppgen.flows.maf(1, hidden=(8,)))
    """
    flow = copy.deepcopy(flow).double()
    dim = math.prod(flow.event_shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        contexts = torch.randn(ROWS, flow.context_dim, dtype=torch.float64) if flow.context_dim else None
        z = torch.randn(ROWS, *flow.event_shape, dtype=torch.float64)
        q = flow().expand((ROWS,)) if contexts is None else flow(contexts)
        near: Any = {"rtol": tolerance, "atol": tolerance}
        with torch.no_grad():
            x = q.transform(z)
            back, log_det = q.inverse_and_log_det(x)
            torch.testing.assert_close(back, z, **near, msg=lambda text: f"T^-1(T(z)) is not z: {text}")
            around = q.transform(q.inverse(x + 0.5))
            torch.testing.assert_close(around, x + 0.5, **near, msg=lambda text: f"T(T^-1(x)) is not x: {text}")
            density = q.log_prob(x)
            expected = flow.base.log_prob(back) + log_det
            torch.testing.assert_close(density, expected, **near, msg=lambda text: f"log p is another: {text}")
        exact = torch.stack([_log_det(flow, None if contexts is None else contexts[i], x[i], dim) for i in range(ROWS)])
        torch.testing.assert_close(
            log_det, exact, rtol=100 * tolerance, atol=100 * tolerance, msg=lambda text: f"the log determinant: {text}"
        )
        drawn, log_prob = q.rsample_and_log_prob((3,))
        assert drawn.shape == (3, ROWS, *flow.event_shape), f"draws have the shape {tuple(drawn.shape)}"
        loose: Any = {"rtol": 100 * tolerance, "atol": 100 * tolerance}
        torch.testing.assert_close(
            log_prob, q.log_prob(drawn), **loose, msg=lambda text: f"the density of a draw is another: {text}"
        )
        parameters = dict(flow.named_parameters())
        slopes = torch.autograd.grad(q.log_prob(x).sum(), list(parameters.values()), allow_unused=True)
        for name, slope in zip(parameters, slopes, strict=True):
            assert slope is not None, f"log p passes no gradient to {name}"
            assert slope.isfinite().all(), f"the gradient of log p with respect to {name} is not finite"
        if integrate and dim <= 2:
            _integrates_to_one(flow, contexts, dim)


def _log_det(flow: Flow, context: Tensor | None, x: Tensor, dim: int) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(flow(context).inverse, x)
    return torch.linalg.slogdet(jacobian.reshape(dim, dim)).logabsdet


def _integrates_to_one(flow: Flow, contexts: Tensor | None, dim: int) -> None:
    side = torch.linspace(-REACH, REACH, SIDE, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
    with torch.no_grad():
        density = flow(None if contexts is None else contexts[0]).log_prob(grid.reshape(-1, *flow.event_shape)).exp()
    total = float(density.sum()) * (2 * REACH / (SIDE - 1)) ** dim
    assert abs(total - 1) < 0.01, f"the density integrates to {total:.4f}"
