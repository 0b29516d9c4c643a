"""Residual flows."""

import pytest
import torch
from flow_cases import make

from ppgen import flows


def test_residual_maps_are_contractions_for_large_weights():
    flow = make("residual", 3, context_dim=2, lipschitz=0.9)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(50.0)
        context, x = torch.randn(1, 2), 3 * torch.randn(400, 3)
        for part in flow.maps.transforms:
            jacobian = part(context).call_and_jacobian(x)[1] - torch.eye(3)
            assert torch.linalg.matrix_norm(jacobian, 2).max() <= 0.9 + 1e-9
        q = flow(context.expand(400, 2))
        torch.testing.assert_close(q.inverse(q.transform(x)), x, atol=1e-6, rtol=1e-6)


def test_the_lipschitz_constant_is_below_one():
    with pytest.raises(ValueError, match="lipschitz: expected a number between 0 and 1"):
        flows.residual(2, lipschitz=1.0)
