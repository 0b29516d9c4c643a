"""The invariants of a normalizing flow."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ppgen.flows import Flow

__all__ = ["check_flow"]

ROWS = 5  # the number of test events
HALF_WIDTH, POINTS = 12.0, 241  # the grid of the integral: from -HALF_WIDTH to HALF_WIDTH, POINTS per dimension


def check_flow(flow: Flow, *, tolerance: float = 1e-6, integrate: bool = True, seed: int = 0) -> None:
    """Checks a flow x = T(z) with support R^d, in float64, at its present parameters. The flow itself is not changed.

    * T^-1(T(z)) = z and T(T^-1(x)) = x.
    * log |det dT^-1 / dx| agrees with the Jacobian from automatic differentiation.
    * log p(x) = log p_base(T^-1(x)) + log |det dT^-1 / dx|.
    * For d <= 2 the density integrates to one (within 0.01) on a grid over [-12, 12]^d, which must contain nearly all
      of the mass.
    * Draws have the expected shape, and `rsample_and_log_prob` agrees with `log_prob`.
    * log p has a finite gradient with respect to every trainable parameter.

    Args:
        flow: a flow, with a context or without. Most mistakes are invisible while T is the identity, so perturb the
            parameters of an untrained flow first.
        tolerance: the absolute and relative tolerance of the inverses; increase it for bisection or an adaptive solver.
            Derivatives and the densities of draws have 100 times this tolerance.
        integrate: whether to integrate the density, which evaluates it at 241^d points.
        seed: the seed of the events and contexts.

    Raises:
        AssertionError: if an invariant does not hold; the message names it.

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
            torch.testing.assert_close(back, z, **near, msg=lambda text: f"T^-1(T(z)) differs from z: {text}")
            round_trip = q.transform(q.inverse(x + 0.5))
            torch.testing.assert_close(
                round_trip, x + 0.5, **near, msg=lambda text: f"T(T^-1(x)) differs from x: {text}"
            )
            density = q.log_prob(x)
            expected = flow.base.log_prob(back) + log_det
            torch.testing.assert_close(
                density, expected, **near, msg=lambda text: f"log p differs from log p_base + log |det|: {text}"
            )
        exact = torch.stack([_log_det(flow, None if contexts is None else contexts[i], x[i], dim) for i in range(ROWS)])
        loose: Any = {"rtol": 100 * tolerance, "atol": 100 * tolerance}
        torch.testing.assert_close(
            log_det,
            exact,
            **loose,
            msg=lambda text: f"the log determinant differs from that of automatic differentiation: {text}",
        )
        drawn, log_prob = q.rsample_and_log_prob((3,))
        assert drawn.shape == (3, ROWS, *flow.event_shape), (
            f"expected draws of shape {(3, ROWS, *flow.event_shape)}, got {tuple(drawn.shape)}"
        )
        torch.testing.assert_close(
            log_prob, q.log_prob(drawn), **loose, msg=lambda text: f"rsample_and_log_prob differs from log_prob: {text}"
        )
        parameters = {name: p for name, p in flow.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(q.log_prob(x).sum(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None, f"log p does not depend on the parameter {name}"
            assert gradient.isfinite().all(), f"the gradient of log p with respect to {name} is not finite"
        if integrate and dim <= 2:
            _check_integral(flow, contexts, dim)


def _log_det(flow: Flow, context: Tensor | None, x: Tensor, dim: int) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(flow(context).inverse, x)
    return torch.linalg.slogdet(jacobian.reshape(dim, dim)).logabsdet


def _check_integral(flow: Flow, contexts: Tensor | None, dim: int) -> None:
    side = torch.linspace(-HALF_WIDTH, HALF_WIDTH, POINTS, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
    with torch.no_grad():
        density = flow(None if contexts is None else contexts[0]).log_prob(grid.reshape(-1, *flow.event_shape)).exp()
    total = float(density.sum()) * (2 * HALF_WIDTH / (POINTS - 1)) ** dim
    assert abs(total - 1) < 0.01, f"the density integrates to {total:.4f}, not to one"
