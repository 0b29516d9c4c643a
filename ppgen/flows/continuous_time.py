"""Continuous-time flows: dx/dt = f(t, x), from data at t = 0 to the base at t = 1 (Chen et al. 2018).

    d log |det dx(t) / dx(0)| / dt = tr df/dx

is solved together with x (https://arxiv.org/abs/1806.07366). The trace is exact, or Hutchinson's estimate v' J v with
random signs v, sampled once per solution (Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367). Fixed-step
Runge-Kutta solvers can be compiled; adaptive solvers are those of torchdiffeq.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ppgen.flows.composition import Widths, zero_output
from ppgen.flows.flow import Base, Flow
from ppgen.flows.smooth_mlp import SmoothMLP
from ppgen.flows.zuko import lazy
from ppgen.nets import lookup
from ppgen.utils.ode import FIXED, SOLVERS, State, VectorField, solve

__all__ = ["ContinuousTime", "continuous"]


def continuous(
    dim: int,
    *,
    hidden: Widths = (64, 64),
    context_dim: int = 0,
    base: Base = None,
    solver: str = "rk4",
    steps: int = 10,
    tolerance: float = 1e-5,
    adjoint: bool = False,
    exact: bool = True,
) -> Flow:
    """Continuous normalizing flow: x is transported to z along dx/dt = f(t, x).

    From Chen et al. 2018 (https://arxiv.org/abs/1806.07366) and Grathwohl et al. 2019
    (https://arxiv.org/abs/1810.01367).

    Args:
        dim: The width of events.
        hidden: The hidden widths of f.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).
        solver: A fixed-step solver, "euler", "midpoint" or "rk4", which can be compiled; or an adaptive solver of
            torchdiffeq, "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun".
        steps: The number of steps of a fixed-step solver.
        tolerance: The absolute and relative tolerance of an adaptive solver.
        adjoint: Whether gradients are computed by the adjoint equation, in constant memory; for adaptive solvers only.
        exact: Whether the trace of df/dx is exact. Otherwise it is Hutchinson's estimate, which needs one direction
            instead of `dim` and makes the log density random.

    Raises:
        ValueError: If an option is unknown or out of range, or `adjoint` is set for a fixed-step solver.
    """
    lookup(dict.fromkeys(SOLVERS), solver, option="solver")
    if steps < 1 or tolerance <= 0:
        raise ValueError(f"expected steps of at least 1 and a tolerance above 0, got {steps} and {tolerance}")
    if adjoint and solver in FIXED:
        raise ValueError(
            f"adjoint: the fixed-step solver {solver!r} differentiates through its steps; use an adaptive solver such "
            "as 'dopri5'"
        )
    network = SmoothMLP(dim, hidden=hidden, extra=1 + context_dim)
    zero_output(network)
    maps = ContinuousTime(network, solver=solver, steps=steps, tolerance=tolerance, adjoint=adjoint, exact=exact)
    return Flow(maps, (dim,), context_dim=context_dim, base=base)


class ContinuousTime(lazy.LazyTransform):
    """The map from x(0) to x(1), given a context.

    Args:
        network: f, a function of x and of t and the context as further inputs.
        solver: One of `ppgen.utils.ode.SOLVERS`.
        steps: The number of steps of a fixed-step solver.
        tolerance: The absolute and relative tolerance of an adaptive solver.
        adjoint: Whether gradients are computed by the adjoint equation, in constant memory (Chen et al. 2018,
            appendix B); for adaptive solvers only.
        exact: Whether the trace is exact, with `dim` directions through f instead of one.
    """

    def __init__(
        self,
        network: SmoothMLP,
        *,
        solver: str = "rk4",
        steps: int = 10,
        tolerance: float = 1e-5,
        adjoint: bool = False,
        exact: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.exact = network, exact
        self.solver, self.steps, self.tolerance, self.adjoint = solver, steps, tolerance, adjoint

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform for a context c (*batch, context_dim), or None."""
        return _Solution(self, c)

    def solve(self, velocity: VectorField, state: State, *, reverse: bool, parameters: Sequence[Tensor]) -> State:
        """Solves from t = 0 to t = 1, or in reverse.

        Args:
            velocity: d state / dt as a function of t and the state.
            state: The initial state.
            reverse: Whether to solve from t = 1 to t = 0.
            parameters: The tensors on which the velocity depends, for the adjoint equation.
        """
        return solve(
            velocity,
            state,
            (1.0, 0.0) if reverse else (0.0, 1.0),
            solver=self.solver,
            steps=self.steps,
            tolerance=self.tolerance,
            adjoint=parameters if self.adjoint else None,
        )


class _Solution(Transform):
    """The transform from x(0) to x(1), or its inverse."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: ContinuousTime, context: Tensor | None, *, reverse: bool = False) -> None:
        super().__init__()
        self.flow, self.context, self.reverse = flow, context, reverse

    @property
    def inv(self) -> Transform:
        """The inverse, solved in reverse time."""
        return _Solution(self.flow, self.context, reverse=not self.reverse)

    def _call(self, x: Tensor) -> Tensor:
        return self._solve(self._velocity, (x,), self.reverse)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._solve(self._velocity, (y,), not self.reverse)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy / dx|, by a solution from x."""
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|, by one solution."""
        dim = x.shape[-1]
        if self.flow.exact:
            probes = torch.eye(dim, dtype=x.dtype, device=x.device).expand(*x.shape, dim)
        else:
            probes = torch.where(torch.rand_like(x) < 0.5, -1.0, 1.0).to(x.dtype).unsqueeze(-1)

        def velocity_and_trace(t: Tensor, state: State) -> State:
            velocity, products = self.flow.network(state[0], self._inputs(t), probes)
            return velocity, (products * probes).sum((-2, -1))

        y, ladj = self._solve(velocity_and_trace, (x, x.new_zeros(x.shape[:-1])), self.reverse)
        return y, ladj

    def kinetic_energy(self, x: Tensor) -> Tensor:
        """The integral of |f|^2 / dim along the path from x."""

        def velocity_and_energy(t: Tensor, state: State) -> State:
            (velocity,) = self._velocity(t, state)
            return velocity, velocity.square().mean(-1)

        return self._solve(velocity_and_energy, (x, x.new_zeros(x.shape[:-1])), self.reverse)[1].abs()

    def _solve(self, velocity: VectorField, state: State, reverse: bool) -> State:
        contexts = () if self.context is None else (self.context,)
        parameters = (*self.flow.network.parameters(), *contexts)
        return self.flow.solve(velocity, state, reverse=reverse, parameters=parameters)

    def _velocity(self, t: Tensor, state: State) -> State:
        return (self.flow.network(state[0], self._inputs(t))[0],)

    def _inputs(self, t: Tensor) -> Tensor:
        """The inputs of f besides x: the time and the context."""
        if self.context is None:
            return t.reshape(1)
        return torch.cat([t.expand(*self.context.shape[:-1], 1), self.context], -1)
