"""Flows by name, in models and guides."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.flows import FLOWS, Flow
from ppgen.flows.build import build_flow
from ppgen.flows.composition import compose
from ppgen.flows.linear import Linear


def without_networks(dim: int, *, context_dim: int = 0) -> Flow:
    """A user's flow that has neither hidden widths nor layers."""
    return compose([Linear(dim, context_dim=context_dim)], dim, context_dim=context_dim, base=None)


@pytest.fixture
def own_flow():
    FLOWS["own"] = without_networks
    yield "own"
    del FLOWS["own"]


def latents():
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def test_a_flow_without_networks_serves_models_and_guides(own_flow):
    assert ppgen.models.FlowModel((2,), flow=own_flow).sample(3).shape == (3, 2)
    vae = ppgen.models.VAE((3,), latent_dim=2, prior=own_flow, posterior=own_flow)
    assert vae.sample(4).shape == (4, 3)
    guide = ppgen.AutoFlow(latents, flow=own_flow)
    assert guide()["z"].shape == (2,)


def test_options_take_precedence():
    flow = build_flow("maf", 2, hidden=(4,), layers=3, options={"layers": 1, "hidden": (5,)})
    assert len(flow.maps.transforms) == 1
    assert torch.Size([5, 2]) in {parameter.shape for parameter in flow.parameters()}


@pytest.mark.parametrize(
    ("flow", "options", "message"),
    [
        ("mfa", {}, "expected prior to be one of"),
        ("lu_linear", {"layers": 3}, "prior='lu_linear' has no such option: .*layers"),
        ("maf", {"shape": 2}, "prior='maf' has no such option: .*shape"),
    ],
)
def test_wrong_options_raise(flow, options, message):
    with pytest.raises(ValueError, match=message):
        build_flow(flow, 2, hidden=(4,), option="prior", options=options)
