"""Layers of image flows, each by itself: both directions, log determinants, and the initialization of norms."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_cases import perturb

from ppgen.flows import Flow
from ppgen.flows.bijection import Composed
from ppgen.flows.image_layers import (
    ActNorm,
    Invertible1x1Conv,
    MaskedCoupling,
    Split,
    Squeezed,
    channel_mask,
    checkerboard_mask,
)
from ppgen.flows.interval import Logit
from ppgen.nets import ConvMap

ROWS = 3


def network(shape: tuple) -> ConvMap:
    return perturb(ConvMap(shape, 2 * shape[0], hidden=(5,)))


def channel_coupling(odd: bool) -> MaskedCoupling:
    return MaskedCoupling(channel_mask(4, odd=odd), network((4, 2, 3)))


LAYERS = {
    "norm": lambda: ActNorm(4),
    "1 x 1 convolution": lambda: Invertible1x1Conv(4),
    "checkerboard": lambda: MaskedCoupling(checkerboard_mask(2, 3, odd=False), network((4, 2, 3))),
    "odd checkerboard": lambda: MaskedCoupling(checkerboard_mask(2, 3, odd=True), network((4, 2, 3))),
    "channels": lambda: channel_coupling(odd=False),
    "squeezed": lambda: Squeezed(Invertible1x1Conv(16)),
    "split": lambda: Split(Invertible1x1Conv(3), 3),
    "composed": lambda: Composed(Invertible1x1Conv(4), ActNorm(4), channel_coupling(odd=True)),
    "logit": lambda: Logit(-3.0, 4.0, alpha=0.2, rank=3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_inverted_and_its_log_dets_are_those_of_the_jacobian(name):
    layer = perturb(LAYERS[name]())
    x = torch.rand(2, ROWS, 4, 2, 4 if name == "squeezed" else 3)  # two batch dimensions
    y, log_det = layer.forward_and_log_det(x, None)
    inverse, inverse_log_det = layer.inverse_and_log_det(y, None)
    torch.testing.assert_close(inverse, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    assert log_det.shape == (2, ROWS)
    size = x[0, 0].numel()
    for i in range(ROWS):
        matrix = torch.autograd.functional.jacobian(lambda v: layer.forward_and_log_det(v, None)[0], x[1, i])
        exact = torch.linalg.slogdet(matrix.reshape(size, size)).logabsdet
        torch.testing.assert_close(log_det[1, i], exact)
    transform = layer()
    torch.testing.assert_close(transform.inv(transform(x)), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), log_det)
    torch.testing.assert_close(transform.inv.call_and_ladj(y), (inverse, inverse_log_det))


def test_a_1x1_convolution_is_a_convolution_and_starts_as_a_rotation():
    layer, x = Invertible1x1Conv(5), torch.randn(2, 5, 3, 4)
    for trained in (False, True):
        if trained:
            perturb(layer)
        lower, upper = layer.triangles()
        matrix = layer.permutation @ lower @ upper
        y, log_det = layer.forward_and_log_det(x, None)
        torch.testing.assert_close(y, F.conv2d(x, matrix[..., None, None]))
        torch.testing.assert_close(log_det, 12 * torch.linalg.slogdet(matrix).logabsdet.expand(2))
        torch.testing.assert_close(log_det, 12 * upper.diagonal().abs().log().sum().expand(2))
        if not trained:
            torch.testing.assert_close(matrix @ matrix.mT, torch.eye(5))


def test_a_coupling_keeps_masked_values_and_bounds_the_scale():
    mask = checkerboard_mask(3, 3, odd=False)
    assert mask.tolist() == [[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]
    assert channel_mask(4, odd=True).flatten().tolist() == [0, 0, 1, 1]
    layer, x = MaskedCoupling(mask, perturb(network((1, 3, 3)), 10.0)), torch.randn(50, 1, 3, 3)
    with torch.no_grad():
        y, log_det = layer.forward_and_log_det(x, None)
    assert torch.equal(y * mask, x * mask)
    assert (log_det.abs() <= 4 * 2.0).all()
    assert float(log_det.abs().max()) > 4.0  # the bound is active


def test_a_norm_is_initialized_once_until_it_is_reset():
    norm, x = ActNorm(2), torch.stack([torch.full((9, 1, 1), 7.0), torch.randn(9, 1, 1)], 1)
    flow = Flow(norm, (2, 1, 1))
    flow.initialize(x)
    assert norm.mean[0] == 7.0
    assert norm.log_scale[0] == 0.0  # a constant channel keeps its scale
    state = copy.deepcopy(norm.state_dict())
    flow.initialize(x + 1)
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())
    norm.reset_parameters()
    assert not norm.initialized
    flow.initialize(x + 1)
    torch.testing.assert_close(norm.mean, state["mean"] + 1)
