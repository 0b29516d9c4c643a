"""Continuous-time flows: solvers, the adjoint equation, Hutchinson's estimate, kinetic energy."""

import math

import pytest
import torch
from flow_cases import ROWS, make

from ppgen import flows
from ppgen.flows import Flow


def with_options(flow: Flow, **options) -> Flow:
    """A continuous flow with the same weights and other options."""
    other = flows.continuous(flow.event_shape[0], hidden=(8, 8), context_dim=flow.context_dim, **options)
    other.load_state_dict(flow.state_dict())
    return other


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_a_fixed_step_solver_has_its_order(solver, order):
    flow = make("continuous", 2, solver=solver)
    x = torch.randn(50, 2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2.0)
        exact = with_options(flow, solver="dopri5", tolerance=1e-10)().log_prob(x)
        errors = []
        for steps in (4, 8):
            flow.maps.steps = steps
            errors.append(float((flow().log_prob(x) - exact).abs().mean()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_gradients_by_the_adjoint_equation_agree_with_backpropagation():
    flow = make("continuous", 2, context_dim=2)
    x, gradients = torch.randn(ROWS, 2), []
    for options in (
        {},
        {"solver": "dopri5", "tolerance": 1e-9},
        {"solver": "dopri5", "tolerance": 1e-9, "adjoint": True},
    ):
        other = with_options(flow, **options)
        torch.manual_seed(3)
        context = torch.randn(ROWS, 2, requires_grad=True)
        loss = other(context).log_prob(x).sum() + other(context).transform(x).sum()
        gradients.append(torch.autograd.grad(loss, [*other.parameters(), context]))
    for fixed, adaptive, adjoint in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, adaptive, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(fixed, adaptive, atol=1e-4, rtol=1e-3)


def test_hutchinsons_estimate_is_unbiased():
    """To four standard errors (p-value 6e-5)."""
    flow = make("continuous", 4)
    x = torch.randn(1, 4)
    with torch.no_grad():
        exact = float(flow().log_prob(x))
        values = with_options(flow, exact=False)().log_prob(x.expand(4000, 4))
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(len(values))
    assert float(values.std()) > 0


def test_the_kinetic_energy_of_a_constant_velocity():
    flow = make("continuous", 2)
    last = flow.maps.network.layers[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
        last.bias.copy_(torch.tensor([3.0, 4.0]))  # dx/dt = (3, 4)
        torch.testing.assert_close(flow().kinetic_energy(torch.zeros(5, 2)), torch.full((5,), 12.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjoint": True}, "adjoint: the fixed-step solver 'rk4' differentiates through its steps"),
        ({"solver": "rk5"}, "solver to be one of"),
        ({"steps": 0}, "steps of at least 1"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        flows.continuous(2, **options)
