"""Solvers of dy/dt = f(t, y) from one time to another, where the state y is a tuple of tensors.

A solver with a fixed number of explicit Runge-Kutta steps is an ordinary differentiable function, which can be
compiled. Solvers with adaptive steps are those of torchdiffeq.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

__all__ = ["ADAPTIVE", "FIXED", "SOLVERS", "State", "VectorField", "solve"]

State: TypeAlias = tuple[Tensor, ...]
VectorField: TypeAlias = Callable[[Tensor, State], State]


class ButcherTableau(NamedTuple):
    """An explicit Runge-Kutta method.

        k_i = f(t + h c_i, y + h sum_{j < i} a_ij k_j),    y <- y + h sum_i b_i k_i

    Attributes:
        stages: (c_i, (a_i1, .., a_i,i-1)) of each stage.
        weights: the b_i.
    """

    stages: Sequence[tuple[float, Sequence[float]]]
    weights: Sequence[float]


FIXED = {
    "euler": ButcherTableau([(0.0, [])], [1.0]),
    "midpoint": ButcherTableau([(0.0, []), (0.5, [0.5])], [0.0, 1.0]),
    "rk4": ButcherTableau(
        [(0.0, []), (0.5, [0.5]), (0.5, [0.0, 0.5]), (1.0, [0.0, 0.0, 1.0])], [1 / 6, 1 / 3, 1 / 3, 1 / 6]
    ),
}
ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")
SOLVERS = (*FIXED, *ADAPTIVE)


def solve(
    vector_field: VectorField,
    state: State,
    ends: tuple[float, float],
    *,
    solver: str,
    steps: int,
    tolerance: float,
    adjoint: Sequence[Tensor] | None = None,
) -> State:
    """The state at the second of two times, given that at the first.

    Args:
        vector_field: dy/dt as a function of t and y.
        state: y at the first time.
        ends: the two times.
        solver: one of `SOLVERS`.
        steps: the number of steps of a fixed solver.
        tolerance: absolute and relative, of an adaptive solver.
        adjoint: the tensors on which `vector_field` depends. If given, gradients through an adaptive solver come from
            the adjoint equation, solved backward (Chen et al. 2018, appendix B, https://arxiv.org/abs/1806.07366).
    """
    if solver in FIXED:
        return _solve_fixed(vector_field, state, FIXED[solver], ends=ends, steps=steps)
    from torchdiffeq import odeint, odeint_adjoint  # late: it imports SciPy

    times = state[0].new_tensor(ends)
    options: dict[str, Any] = {"method": solver, "rtol": tolerance, "atol": tolerance}
    options["options"] = {"step_t": times[1:]}  # no step passes the end, where f may be undefined
    if adjoint is not None:
        path = odeint_adjoint(vector_field, state, times, **options, adjoint_params=tuple(adjoint))
    else:
        path = odeint(vector_field, state, times, **options)
    return tuple(values[-1] for values in path)


def _solve_fixed(
    vector_field: VectorField, state: State, tableau: ButcherTableau, *, ends: tuple[float, float], steps: int
) -> State:
    """Runge-Kutta steps of equal size."""
    h = (ends[1] - ends[0]) / steps
    for step in range(steps):
        derivatives: list[State] = []
        for node, coefficients in tableau.stages:
            time = state[0].new_full((), ends[0] + (step + node) * h)
            derivatives.append(vector_field(time, _advance(state, h, coefficients, derivatives)))
        state = _advance(state, h, tableau.weights, derivatives)
    return state


def _advance(state: State, h: float, weights: Sequence[float], derivatives: Sequence[State]) -> State:
    """The state y + h sum_i weights_i derivatives_i."""
    for weight, derivative in zip(weights, derivatives, strict=True):
        if weight:
            state = tuple(value + h * weight * change for value, change in zip(state, derivative, strict=True))
    return state
