"""Flows of angles."""

import math

import pytest
import torch
from flow_cases import ROWS, distribution, jacobian, perturb

from ppgen import flows


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_a_flow_of_angles(dim, context_dim):
    flow = flows.circular(dim, layers=3, hidden=(8, 8), context_dim=context_dim)
    x = math.pi * (2 * torch.rand(ROWS, dim) - 1)
    with torch.no_grad():  # an untrained flow is uniform
        torch.testing.assert_close(distribution(flow).log_prob(x), torch.full((ROWS,), -dim * math.log(2 * math.pi)))
    perturb(flow, 0.3)
    q = distribution(flow)
    with torch.no_grad():
        z, log_det = q.inverse_and_log_det(x)
        assert (z.abs() <= math.pi).all()
        torch.testing.assert_close(q.transform(z), x, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(q.log_prob(x), log_det - dim * math.log(2 * math.pi))
        torch.testing.assert_close(q.log_prob(x + 2 * math.pi), q.log_prob(x))
        # the density is continuous across -pi = pi, in every angle
        ends = x.clone()
        for i in range(dim):
            ends[:, i] = -math.pi + 1e-9
            left = q.log_prob(ends)
            ends[:, i] = math.pi - 1e-9
            torch.testing.assert_close(q.log_prob(ends), left, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian(flow, q, x)).logabsdet, log_det, atol=1e-9, rtol=1e-9)
    assert q.support.check(q.sample((100,))).all()
    if dim == 1:
        circle = torch.linspace(-math.pi, math.pi, 4001)[:-1, None, None].expand(-1, ROWS, 1)
        integral = q.log_prob(circle).exp().mean(0) * 2 * math.pi
        torch.testing.assert_close(integral, torch.ones(ROWS), atol=1e-4, rtol=0)
