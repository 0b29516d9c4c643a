"""ODE solvers: their order, tolerance and gradients, on an equation with a known solution."""

import math

import pytest
import torch

from ppgen.utils.ode import ADAPTIVE, FIXED, solve

ORDER = {"euler": 1, "midpoint": 2, "rk4": 4}
RATE = torch.tensor(0.7, dtype=torch.float64)


def error(solver: str, *, steps: int = 0, tolerance: float = 0.0, ends: tuple[float, float] = (0.0, 2.0)) -> float:
    """Of dy/dt = (rate + t) y, with solution y exp(rate t + t^2 / 2), for two tensors at once."""
    start = ends[0] * RATE + ends[0] ** 2 / 2
    state = (start.exp() * torch.ones(3, dtype=torch.float64), 2 * start.exp())
    options = {"solver": solver, "steps": steps, "tolerance": tolerance}
    end = solve(lambda t, y: tuple((RATE + t) * part for part in y), state, ends, **options)
    exact = (ends[1] * RATE + ends[1] ** 2 / 2).exp()
    assert end[0].shape == (3,)
    torch.testing.assert_close(end[1], 2 * end[0][0])
    return float((end[0] / exact - 1).abs().max())


@pytest.mark.parametrize("solver", FIXED)
def test_a_fixed_solver_has_its_order(solver):
    coarse, fine = error(solver, steps=20), error(solver, steps=40)
    assert math.log2(coarse / fine) == pytest.approx(ORDER[solver], abs=0.25)
    assert error(solver, steps=40, ends=(2.0, 0.0)) < 2 * error(solver, steps=20)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_an_adaptive_solver_is_accurate_in_both_directions(solver):
    assert error(solver, tolerance=1e-5) < 5e-3  # errors of a step add up, most of all those of fehlberg2
    assert error(solver, tolerance=1e-5, ends=(2.0, 0.0)) < 5e-3


@pytest.mark.parametrize(("solver", "adjoint"), [("rk4", False), ("dopri5", False), ("dopri5", True)])
def test_gradients_pass_through(solver, adjoint):
    """d/d rate exp(rate t) = t exp(rate t)."""
    rate = RATE.clone().requires_grad_()
    start = torch.ones((), dtype=torch.float64)
    options = {"steps": 50, "tolerance": 1e-9, "adjoint": [rate] if adjoint else None}
    (end,) = solve(lambda t, y: (rate * y[0],), (start,), (0.0, 2.0), solver=solver, **options)
    end.backward()
    assert float(rate.grad) == pytest.approx(2 * math.exp(1.4), rel=1e-6)
