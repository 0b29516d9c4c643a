"""Invariants of every flow of vectors, in float64, with and without a context."""

import copy
import math
import pkgutil
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from flow_cases import CASES, ROWS, distribution, jacobian, make

import ppgen
from ppgen import flows
from ppgen.flows import FLOWS, IMAGE_FLOWS, TORUS_FLOWS
from ppgen.flows.coupling import nsf

every_flow = pytest.mark.parametrize("name", FLOWS)
with_context = pytest.mark.parametrize("context_dim", [0, 2])


def names(condition) -> list[str]:
    return [name for name, case in CASES.items() if condition(case)]


def test_every_flow_has_a_case():
    assert set(CASES) == set(FLOWS)


# The registry


def test_constructors_are_attributes_of_the_package():
    for table in (FLOWS, IMAGE_FLOWS, TORUS_FLOWS):
        for name in table:
            assert getattr(flows, name) is table[name]
            assert table[name].__name__ == name
            assert name in dir(flows)
    assert flows.nsf is nsf
    assert isinstance(flows.nsf(2), flows.Flow)
    with pytest.raises(AttributeError, match="no attribute 'glov'"):
        _ = flows.glov


def test_no_module_of_the_package_hides_a_constructor():
    """Importing a submodule sets an attribute of the package."""
    modules = {module.name for module in pkgutil.iter_modules(flows.__path__)}
    assert not modules & {*FLOWS, *IMAGE_FLOWS, *TORUS_FLOWS, *flows.__all__}


def test_users_add_flows(monkeypatch):
    monkeypatch.setitem(FLOWS, "mine", flows.nice)
    assert "mine" in FLOWS
    assert flows.mine(2).event_shape == (2,)


def test_the_registry_does_not_import_torch():
    code = "import sys, ppgen.flows.registry; list(ppgen.flows.FLOWS), dir(ppgen.flows); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# Both directions and their Jacobians


@every_flow
@with_context
def test_the_inverse_undoes_the_map_and_the_log_det_is_that_of_the_jacobian(name, context_dim):
    tolerance = CASES[name].tolerance
    for dim in CASES[name].dims:
        if dim < CASES[name].min_dim:
            continue
        flow = make(name, dim, context_dim)
        q = distribution(flow)
        with torch.no_grad():
            z = torch.randn(ROWS, dim)
            x = q.transform(z)
            inverse, log_det = q.inverse_and_log_det(x)
            torch.testing.assert_close(inverse, z, atol=tolerance, rtol=tolerance)
            moved = q.transform(q.inverse(x + 1.0))
            torch.testing.assert_close(moved, x + 1.0, atol=10 * tolerance, rtol=tolerance)
        exact = torch.linalg.slogdet(jacobian(flow, q, x)).logabsdet
        torch.testing.assert_close(log_det, exact, atol=max(tolerance, 1e-8), rtol=tolerance)
        log_prob = flow.base.log_prob(inverse) + log_det
        torch.testing.assert_close(q.log_prob(x), log_prob, atol=tolerance, rtol=tolerance)


@every_flow
@with_context
def test_a_sample_comes_with_its_log_density(name, context_dim):
    q = distribution(make(name, 2, context_dim))
    with torch.no_grad():
        x, log_prob = q.rsample_and_log_prob((3,))
        assert x.shape == (3, ROWS, 2)
        tolerance = 10 * CASES[name].tolerance if CASES[name].tolerance > 1e-9 else 1e-9
        torch.testing.assert_close(log_prob, q.log_prob(x), atol=tolerance, rtol=tolerance)
        assert q.log_prob(x).shape == (3, ROWS)
        assert torch.equal(q.log_prob(x), q.log_prob(x))  # nothing is cached between calls


@pytest.mark.parametrize("name", names(lambda case: case.triangular))
@with_context
def test_an_autoregressive_layer_has_a_triangular_jacobian(name, context_dim):
    flow = make(name, 4, context_dim, layers=1)
    q = distribution(flow)
    x = torch.randn(ROWS, 4)
    matrix = jacobian(flow, q, x)
    assert not matrix.triu(1).any()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    assert (diagonal > 0).all()
    torch.testing.assert_close(diagonal.log().sum(-1), q.inverse_and_log_det(x)[1], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["realnvp", "nsf", "maf", "nsf_autoregressive"])
def test_the_log_det_of_a_composition_is_the_sum_over_its_maps(name):
    flow = make(name, 3)
    x = torch.randn(ROWS, 3)
    z, log_det = flow().inverse_and_log_det(x)
    total = torch.zeros(ROWS)
    for part in flow.maps.transforms:
        transform = part(None)
        y = transform(x)
        total, x = total + transform.log_abs_det_jacobian(x, y), y
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(total, log_det)


# Densities


@pytest.mark.parametrize("name", names(lambda case: case.min_dim == 1))
def test_a_density_on_the_line_integrates_to_one(name):
    """The grid is equally spaced in z, so that it is fine where the map is steep."""
    flow = make(name, 1)
    with torch.no_grad():
        grid = flow().transform(torch.linspace(-7, 7, 4001)[:, None])
        density = flow().log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.slow
@every_flow
def test_a_density_on_the_plane_integrates_to_one(name):
    steps = CASES[name].grid
    side = torch.linspace(-12, 12, steps + 1)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = make(name, 2, **CASES[name].one_layer)().log_prob(grid).exp()
    assert float(density.sum()) * (24 / steps) ** 2 == pytest.approx(1.0, abs=5e-3)


@every_flow
def test_samples_follow_the_density(name):
    """The mean of q / p over samples of p is one, to four standard errors (p-value 6e-5 per flow), q a Gaussian."""
    flow = make(name, 2)
    with torch.no_grad():
        x = flow().sample((4000,))
        narrow = dist.Normal(x.mean(0), 0.7 * x.std(0)).to_event(1)
        ratio = (narrow.log_prob(x) - flow().log_prob(x)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(x)) + 1e-9


@pytest.mark.parametrize("name", ["maf", "nsf", "lu_linear"])
def test_the_forward_kl_is_the_same_in_x_and_in_z(name):
    """KL(p, flow) in x is KL(p mapped by T^-1, base) in z. Here p is another flow, so both densities are known."""
    p, flow = make(name, 2), make("realnvp", 2)
    with torch.no_grad():
        x = p().sample((500,))
        in_x = p().log_prob(x) - flow().log_prob(x)
        z, log_det = flow().inverse_and_log_det(x)
        in_z = (p().log_prob(x) - log_det) - flow.base.log_prob(z)
    torch.testing.assert_close(in_x, in_z)
    assert float(in_x.mean()) > 0


@pytest.mark.parametrize("name", names(lambda case: case.starts_as_identity))
@with_context
def test_an_untrained_flow_is_the_identity(name, context_dim):
    for dim in range(CASES[name].min_dim, CASES[name].min_dim + 3):
        q = distribution(FLOWS[name](dim, context_dim=context_dim))
        x = torch.randn(ROWS, dim)
        with torch.no_grad():
            torch.testing.assert_close(q.log_prob(x), q.flow.base.log_prob(x))
            torch.testing.assert_close(q.transform(x), x)


# Gradients


@every_flow
def test_gradients_reach_the_parameters(name):
    flow = make(name, 2)
    gradients = torch.autograd.grad(flow().rsample((8,)).square().sum(), list(flow.parameters()), allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) >= len(gradients) // 2
    gradients = torch.autograd.grad(
        flow().log_prob(torch.randn(8, 2)).sum(), list(flow.parameters()), allow_unused=True
    )
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", names(lambda case: case.finite_difference is not None))
def test_the_gradient_of_a_direction_that_finds_roots_is_that_of_finite_differences(name):
    case = CASES[name]
    step, tolerance = case.finite_difference
    flow, point, weights = make(name, 3, layers=2), torch.randn(3), torch.randn(3)
    # monotone networks use the absolute values of their weights, at whose kinks finite differences are wrong
    parameters = [p for p in flow.parameters() if p.numel() > 1 and (case.starts_as_identity or p.dim() == 1)]
    directions = [torch.randn_like(p) for p in parameters]

    def value() -> torch.Tensor:
        return (flow().inverse(point) if case.roots_score_data else flow().transform(point)) @ weights

    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    derivative = sum(
        float((gradient * direction).sum())
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient is not None
    )
    ends = []
    with torch.no_grad():
        for sign in (1, -2):  # one step ahead, then one step behind the initial values
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(sign * step * direction)
            ends.append(float(value()))
    assert derivative == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=tolerance, abs=tolerance)


# As modules and in programs


@every_flow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_can_be_copied_saved_and_cast(name, dtype):
    flow = make(name, 2).to(dtype)
    x = torch.randn(ROWS, 2, dtype=dtype)
    with torch.no_grad():
        log_prob = flow().log_prob(x)
        assert log_prob.dtype == dtype
        assert flow().sample((2,)).dtype == dtype
        assert torch.equal(copy.deepcopy(flow)().log_prob(x), log_prob)
        other = make(name, 2).to(dtype)
        other.load_state_dict(flow.state_dict())
        assert torch.equal(other().log_prob(x), log_prob)


@every_flow
def test_a_flow_works_in_a_model_under_plates_and_in_a_guide(name):
    flow = make(name, 2)

    def model(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", flow())
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow())

    x = torch.randn(6, 2)
    with torch.no_grad():
        loss = ppgen.ELBO().loss(model, guide, x)
        trace = pyro.poutine.trace(model).get_trace(x)
        trace.compute_log_prob()
        assert trace.nodes["z"]["log_prob"].shape == (6,)
    assert math.isfinite(loss)
