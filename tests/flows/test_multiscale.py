"""Invariants of image flows, in float64, with and without a context."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from flow_cases import distribution, jacobian, perturb

import ppgen
from ppgen import flows
from ppgen.flows import IMAGE_FLOWS, Flow
from ppgen.flows.image_layers import ActNorm, MaskedCoupling, Split, Squeezed

ROWS = 3
SHAPES = [(1, 8, 8), (3, 4, 6), (1, 5, 7), (2, 1, 3), (1, 1, 1)]  # several scales, color, odd sides, a row, a pixel

every_flow = pytest.mark.parametrize("name", IMAGE_FLOWS)


def make(name: str, shape: tuple, context_dim: int = 0, **options) -> Flow:
    return perturb(IMAGE_FLOWS[name](shape, **{"layers": 2, "hidden": (6,), "context_dim": context_dim, **options}))


@every_flow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("context_dim", [0, 2])
def test_the_inverse_undoes_the_map_and_the_log_det_is_that_of_the_jacobian(name, shape, context_dim):
    flow = make(name, shape, context_dim)
    q = distribution(flow, ROWS)
    z = torch.randn(ROWS, *shape)
    x = q.transform(z)
    inverse, log_det = q.inverse_and_log_det(x)
    torch.testing.assert_close(inverse, z)
    torch.testing.assert_close(q.transform(q.inverse(x + 1)), x + 1)
    exact = torch.linalg.slogdet(jacobian(flow, q, x)).logabsdet
    torch.testing.assert_close(log_det, exact)
    torch.testing.assert_close(q.log_prob(x), flow.base.log_prob(inverse) + log_det)
    sample, log_prob = q.rsample_and_log_prob((2,))
    assert sample.shape == (2, ROWS, *shape)
    torch.testing.assert_close(log_prob, q.log_prob(sample))
    assert torch.equal(q.log_prob(x), q.log_prob(x))  # nothing is cached between calls


@every_flow
def test_a_context_reaches_every_scale(name):
    flow = make(name, (1, 4, 4), 2)
    x = torch.randn(1, 4, 4)
    one, other = flow(torch.zeros(2)).inverse(x), flow(torch.ones(2)).inverse(x)
    assert (one != other).all()


@every_flow
def test_samples_follow_the_density(name):
    """The mean of q / p over samples of p is one, to four standard errors (p-value 6e-5), q a Gaussian."""
    flow = make(name, (1, 4, 4))
    with torch.no_grad():
        x = flow().sample((4000,))
        narrow = dist.Normal(x.mean(0), 0.8 * x.std(0)).to_event(3)
        ratio = (narrow.log_prob(x) - flow().log_prob(x)).exp()
    error = float(ratio.std()) / math.sqrt(len(x))
    assert error < 0.1
    assert abs(float(ratio.mean()) - 1) < 4 * error


@every_flow
def test_gradients_reach_every_parameter(name):
    flow = make(name, (2, 4, 4), 2)
    q = distribution(flow, ROWS)
    for value in (q.log_prob(torch.randn(ROWS, 2, 4, 4)), q.rsample().square()):
        gradients = torch.autograd.grad(value.sum(), list(flow.parameters()), allow_unused=True)
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


@every_flow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_can_be_copied_saved_and_cast(name, dtype):
    flow, x = make(name, (1, 4, 4)).to(dtype), 3 + torch.randn(8, 1, 4, 4, dtype=dtype)
    flow.initialize(x)
    with torch.no_grad():
        log_prob = flow().log_prob(x)
        assert log_prob.dtype == flow().sample().dtype == dtype
        copied, other = copy.deepcopy(flow), make(name, (1, 4, 4)).to(dtype)
        other.load_state_dict(flow.state_dict())
        for same in (copied, other):
            same.initialize(x + 1)  # does nothing, since the norms are initialized
            assert torch.equal(same().log_prob(x), log_prob)


@every_flow
def test_a_flow_of_images_works_in_a_model_and_in_a_guide(name):
    flow = make(name, (1, 4, 4))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(3), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow())

    assert math.isfinite(ppgen.ELBO().loss(model, guide, torch.randn(6, 1, 4, 4)))


# Glow


@pytest.mark.parametrize(
    ("shape", "scales"), [((1, 8, 8), 3), ((1, 28, 28), 3), ((3, 64, 64), 4), ((1, 5, 8), 1), ((1, 6, 6), 2)]
)
def test_the_default_number_of_scales_is_what_the_sides_allow(shape, scales):
    flow = flows.glow(shape, layers=1, hidden=(2,))
    assert sum(isinstance(part, Squeezed) for part in flow.modules()) == scales - 1


@pytest.mark.parametrize(
    ("shape", "options", "coupled"),
    [
        ((1, 8, 8), {}, True),
        ((1, 16, 28), {}, False),
        ((1, 15, 28), {}, True),
        ((1, 28, 28), {"full_resolution": True}, True),
        ((1, 8, 8), {"full_resolution": False}, False),
        ((1, 28, 28), {"scales": 1}, True),
    ],
)
def test_large_images_have_no_couplings_at_full_resolution(shape, options, coupled):
    flow = flows.glow(shape, layers=1, hidden=(2,), **options)
    masks = [part.mask for part in flow.modules() if isinstance(part, MaskedCoupling)]
    assert any(mask.shape[0] == 1 for mask in masks) is coupled  # a checkerboard
    x = torch.randn(2, *shape)
    torch.testing.assert_close(flow().inverse(flow().transform(x)), x)


def test_the_channels_that_are_split_off_do_not_change_any_more():
    """The last scale transforms half of the numbers and keeps the others."""
    flow, x = make("glow", (1, 8, 8)), torch.randn(1, 8, 8)
    before = flow().inverse(x)
    (split,) = [part for part in flow.modules() if isinstance(part, Split)]
    perturb(split)
    changed = flow().inverse(x) != before
    assert int(changed.sum()) == 32
    two = flows.glow((1, 8, 8), layers=1, hidden=(2,), scales=2)
    assert not [part for part in two.modules() if isinstance(part, Split)]


def test_an_untrained_flow_rotates_events():
    """Lengths and volumes are preserved."""
    x = torch.randn(ROWS, 3, 4, 4)
    z, log_det = flows.glow((3, 4, 4))().inverse_and_log_det(x)
    torch.testing.assert_close(z.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    torch.testing.assert_close(log_det, torch.zeros(ROWS))
    assert not torch.allclose(z, x)


def test_initialized_norms_have_outputs_of_mean_zero_and_variance_one(monkeypatch):
    flow, x = flows.glow((2, 8, 8), layers=2, hidden=(4,)), 5 + 3 * torch.randn(40, 2, 8, 8) ** 2
    flow.initialize(x)
    outputs, forward = [], ActNorm.forward_and_log_det

    def recorded(norm, *args):
        y, log_det = forward(norm, *args)
        outputs.append(y)
        return y, log_det

    monkeypatch.setattr(ActNorm, "forward_and_log_det", recorded)
    z = flow().inverse(x)
    assert len(outputs) == 6
    for y in outputs:
        zeros = torch.zeros(y.shape[1])
        torch.testing.assert_close(y.mean((0, 2, 3)), zeros)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), zeros + 1)
    assert z.shape == x.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.glow((2,)), r"a flow of images \(channels, height, width\), got events of shape \(2,\)"),
        (lambda: flows.glow((1, 4, 4), layers=0), "layers: expected at least 1, got 0"),
        (lambda: flows.glow((1, 5, 8), scales=2), r"scales: expected 1 to 1 for images of 5 x 8 pixels, .* got 2"),
        (lambda: flows.glow((1, 5, 8), full_resolution=False), "full_resolution=False: there is no other scale than"),
    ],
)
def test_bad_options_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
