"""Flows on an interval."""

import pytest
import torch
from flow_cases import perturb

from ppgen import flows
from ppgen.flows import bounded


def test_a_gaussian_behind_the_logit_is_the_logit_normal():
    flow = bounded(flows.lu_linear(1), 0.0, 1.0, alpha=0.0)
    x = torch.linspace(0.01, 0.99, 50)
    exact = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(0.0, 1.0), torch.distributions.SigmoidTransform()
    )
    torch.testing.assert_close(flow().log_prob(x[:, None]), exact.log_prob(x))
    assert flow().support.check(x[:, None]).all()
    assert not flow().support.check(-x[:, None]).any()


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.4])
def test_a_flow_on_an_interval_samples_inside_and_integrates_to_one(alpha):
    flow = bounded(perturb(flows.maf(1, layers=2, hidden=(8,))), -2.0, 3.0, alpha=alpha)
    low, high = float(flow.support.lower_bound), float(flow.support.upper_bound)
    assert (low == -2.0) == (alpha == 0.0)
    with torch.no_grad():
        x = flow().sample((1000,))
        assert ((x > low) & (x < high)).all()
        grid = torch.linspace(low, high, 20002)[1:-1]
        density = flow().log_prob(grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=2e-3)


def test_bad_bounds_raise():
    with pytest.raises(ValueError, match=r"low < high, got \(1, 1\)"):
        bounded(flows.maf(2), 1, 1)
    with pytest.raises(ValueError, match=r"alpha: expected a number from 0 to below 0\.5, such as 0\.05, got 0\.5"):
        bounded(flows.maf(2), 0, 1, alpha=0.5)
