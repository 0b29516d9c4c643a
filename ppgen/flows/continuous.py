"""Flows in continuous time: dx/dt = f(t, x), from data at t = 0 to the base at t = 1 (Chen et al. 2018).

    d log |det dx(t) / dx(0)| / dt = tr df/dx

solved together with x. The trace is exact, or Hutchinson's estimate v' J v with random signs v, one a solution
(Grathwohl et al. 2019). A fixed number of Runge-Kutta steps is an ordinary function, which a compiled step takes;
solvers that choose their steps are torchdiffeq's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ppgen.flows.smooth import Smooth
from ppgen.flows.zuko import lazy
from ppgen.utils.ode import Motion, State, solve

__all__ = ["Continuous"]


class Continuous(lazy.LazyTransform):
    """A context to the map from x(0) to x(1).

    Args:
        network: f, of x, and of t and the context as further inputs.
        solver: one of `ppgen.utils.ode.SOLVERS`.
        steps: of a solver of fixed steps.
        tolerance: absolute and relative, of a solver that chooses its steps.
        adjoint: whether gradients come from a second equation, solved backward, in memory that does not grow with the
            steps (Chen et al. 2018, appendix B); of a solver that chooses its steps.
        exact: whether the trace is exact, `dim` directions through f in place of one.
    """

    def __init__(
        self,
        network: Smooth,
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
        return _Solution(self, c)

    def solve(self, motion: Motion, state: State, *, back: bool, learned: Sequence[Tensor]) -> State:
        """The state at t = 1 from that at t = 0, or the other way.

        Args:
            motion: d state / dt, of t and the state.
            learned: what `motion` is made of, for the adjoint equation.
        """
        return solve(
            motion,
            state,
            (1.0, 0.0) if back else (0.0, 1.0),
            solver=self.solver,
            steps=self.steps,
            tolerance=self.tolerance,
            adjoint=learned if self.adjoint else None,
        )


class _Solution(Transform):
    """From x(0) to x(1), or back."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: Continuous, context: Tensor | None, *, back: bool = False) -> None:
        super().__init__()
        self.flow, self.context, self.back = flow, context, back

    @property
    def inv(self) -> Transform:
        return _Solution(self.flow, self.context, back=not self.back)

    def _call(self, x: Tensor) -> Tensor:
        return self._solve(self._velocity, (x,), self.back)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._solve(self._velocity, (y,), not self.back)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dim = x.shape[-1]
        if self.flow.exact:
            along = torch.eye(dim, dtype=x.dtype, device=x.device).expand(*x.shape, dim)
        else:
            along = torch.where(torch.rand_like(x) < 0.5, -1.0, 1.0).to(x.dtype).unsqueeze(-1)

        def motion(t: Tensor, state: State) -> State:
            velocity, moved = self.flow.network(state[0], self._extra(t), along)
            return velocity, (moved * along).sum((-2, -1))

        y, ladj = self._solve(motion, (x, x.new_zeros(x.shape[:-1])), self.back)
        return y, ladj

    def energy(self, x: Tensor) -> Tensor:
        """The integral of |f|^2 / dim along the path from x."""

        def motion(t: Tensor, state: State) -> State:
            (velocity,) = self._velocity(t, state)
            return velocity, velocity.square().mean(-1)

        return self._solve(motion, (x, x.new_zeros(x.shape[:-1])), self.back)[1].abs()

    def _solve(self, motion: Motion, state: State, back: bool) -> State:
        contexts = () if self.context is None else (self.context,)
        return self.flow.solve(motion, state, back=back, learned=(*self.flow.network.parameters(), *contexts))

    def _velocity(self, t: Tensor, state: State) -> State:
        return (self.flow.network(state[0], self._extra(t))[0],)

    def _extra(self, t: Tensor) -> Tensor:
        """What f has beside x: the time, and the context."""
        if self.context is None:
            return t.reshape(1)
        return torch.cat([t.expand(*self.context.shape[:-1], 1), self.context], -1)
