"""Flow and FlowDistribution: contexts, bases, and a flow as a guide."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen import flows


def test_importing_the_flows_keeps_the_validation_of_distributions():
    assert flows.nsf is not None
    assert torch.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_a_guide_fits_a_gaussian_by_the_reverse_kl():
    """An affine flow and a correlated Gaussian: the ELBO converges to the log evidence, which is zero."""
    target = dist.MultivariateNormal(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.7], [0.7, 0.8]]))
    flow = flows.maf(2, layers=1, hidden=())

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow().expand((256,)).to_event(1))

    def model():
        pyro.sample("z", target.expand((256,)).to_event(1))

    svi = ppgen.SVI(model, guide, partial(torch.optim.Adam, lr=0.05), ppgen.ELBO(), compile=False)
    losses = [svi.step() / 256 for _ in range(200)]
    assert losses[0] > 0.1
    assert abs(np.mean(losses[-20:])) < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.maf(2, layers=0), "layers: expected at least 1, got 0"),
        (lambda: flows.maf(2, context_dim=2)(), r"context of width 2 \(0 for none\), got none"),
        (lambda: flows.maf(2)(torch.zeros(4, 3)), r"context of width 0 \(0 for none\), got one of shape \(4, 3\)"),
        (
            lambda: flows.maf(2, base=dist.Normal(torch.zeros(3), 1.0).to_event(1)),
            r"base of event shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_bad_options_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_a_continuous_time_flow_has_kinetic_energy():
    with pytest.raises(TypeError, match="only a continuous-time flow has paths"):
        flows.maf(2)().kinetic_energy(torch.zeros(5, 2))
