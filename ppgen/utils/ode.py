"""Solvers of dy/dt = f(t, y) from one time to another, for a state y of several tensors.

A fixed number of explicit Runge-Kutta steps is an ordinary function, which gradients pass through and which a compiled
step takes; solvers that choose their steps are torchdiffeq's.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["ADAPTIVE", "FIXED", "SOLVERS", "Motion", "State", "solve"]

State: TypeAlias = tuple[Tensor, ...]
Motion: TypeAlias = Callable[[Tensor, State], State]

# by name the nodes and weights of explicit Runge-Kutta steps: each stage's time and weights of the stages before it,
# then those of the whole step
FIXED: dict[str, tuple[Sequence[tuple[float, Sequence[float]]], Sequence[float]]] = {
    "euler": ([(0.0, [])], [1.0]),
    "midpoint": ([(0.0, []), (0.5, [0.5])], [0.0, 1.0]),
    "rk4": ([(0.0, []), (0.5, [0.5]), (0.5, [0.0, 0.5]), (1.0, [0.0, 0.0, 1.0])], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")
SOLVERS = (*FIXED, *ADAPTIVE)


def solve(
    motion: Motion,
    state: State,
    ends: tuple[float, float],
    *,
    solver: str,
    steps: int,
    tolerance: float,
    adjoint: Sequence[Tensor] | None = None,
) -> State:
    """The state at the second of two times, from that at the first.

    Args:
        motion: d state / dt, of t and the state.
        solver: one of `SOLVERS`.
        steps: of a solver of fixed steps.
        tolerance: absolute and relative, of a solver that chooses its steps.
        adjoint: of such a solver, what `motion` is made of, if gradients are to come from a second equation, solved
            backward (Chen et al. 2018, appendix B).
    """
    if solver in FIXED:
        return _steps(motion, state, *FIXED[solver], ends=ends, count=steps)
    from torchdiffeq import odeint, odeint_adjoint  # late: it takes SciPy along

    times = state[0].new_tensor(ends)
    options: dict[str, Any] = {"method": solver, "rtol": tolerance, "atol": tolerance}
    options["options"] = {"step_t": times[1:]}  # no step goes beyond the end, where f may have no value
    if adjoint is not None:
        path = odeint_adjoint(motion, state, times, **options, adjoint_params=tuple(adjoint))
    else:
        path = odeint(motion, state, times, **options)
    return tuple(values[-1] for values in path)


def _steps(
    motion: Motion,
    state: State,
    stages: Sequence[tuple[float, Sequence[float]]],
    weights: Sequence[float],
    *,
    ends: tuple[float, float],
    count: int,
) -> State:
    """Runge-Kutta steps of one size."""
    h = (ends[1] - ends[0]) / count
    for step in range(count):
        slopes: list[State] = []
        for node, parts in stages:
            time = state[0].new_full((), ends[0] + (step + node) * h)
            slopes.append(motion(time, _moved(state, h, parts, slopes)))
        state = _moved(state, h, weights, slopes)
    return state


def _moved(state: State, h: float, weights: Sequence[float], slopes: Sequence[State]) -> State:
    """The state, moved along each slope by h times its weight."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            state = tuple(value + h * weight * change for value, change in zip(state, slope, strict=True))
    return state
