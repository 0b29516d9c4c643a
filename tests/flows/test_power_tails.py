"""The tails of `PowerTails` are those that its powers say."""

import math

import pytest
import torch

from ppgen.flows.power_tails import PowerTails


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize(("power", "width"), [(2.0, 1.0), (2.0, 0.5), (1.0, 3.0)])
def test_a_power_of_two_makes_tails_exponential_and_of_one_gaussian(side, power, width):
    """-d log q / dx tends to the width, or is x: the density of x where z is standard normal."""
    layer = PowerTails(1)
    with torch.no_grad():
        layer.given.constants["log_power"].fill_(math.log(power))
        layer.given.constants["log_width"].fill_(math.log(width))
    x = torch.tensor([[side * 1e6]], requires_grad=True)
    z, log_det = layer.forward_and_log_det(x, None)
    log_q = -0.5 * z.square().sum(-1) + log_det
    (slope,) = torch.autograd.grad(log_q.sum(), x)
    expected = width if power == 2.0 else 1e6
    assert float(-side * slope) == pytest.approx(expected, rel=0.01)
