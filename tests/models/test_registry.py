"""Properties of every model: one row of `MODELS` for each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppgen.models
from ppgen import recipes
from ppgen.data import FORMS, Schema
from ppgen.models import (
    ALI,
    DANN,
    VAE,
    Autoencoder,
    Diffusion,
    FlowMatching,
    FlowModel,
    Generator,
    MaskedTable,
    protocols,
)
from ppgen.testing import check_model

X, Y = torch.randn(12, 3), torch.arange(12) % 2
SCHEMA = Schema.from_dict({"columns": [{"name": name, "kind": "continuous"} for name in "abc"]}).with_marginals(
    X.numpy()
)


@dataclass
class Row:
    """A small model, data for it, the loss that it is trained under, and the protocols that it has."""

    make: Callable[..., nn.Module]
    loss: Callable[[], Any]
    capabilities: str
    data: tuple[Tensor, ...] = (X,)


SMALL = {"latent_dim": 2, "hidden": (8,)}
LATENT = "ChecksData Decodes ExpectsForm HasPrior Samples"
DENOISES = "ChecksData Denoises ExpectsForm HasLogProb Samples"
MODELS = {
    "ALI": Row(lambda: ALI((3,), **SMALL), lambda: recipes.ali(hidden=(8,)), f"{LATENT} Encodes Reconstructs"),
    "Autoencoder": Row(lambda: Autoencoder((3,), **SMALL), recipes.ae, f"{LATENT} Encodes Reconstructs"),
    "DANN": Row(
        lambda: DANN((3,), 2, **SMALL), lambda: recipes.dann(alpha=1.0), "ChecksData AdaptsDomains", (X, Y, Y.roll(3))
    ),
    "Diffusion": Row(
        lambda: Diffusion((3,), hidden=(8,), steps=5),
        recipes.vdm,
        f"{DENOISES} Conditions DiffusionChain HasBound HasDenoisingError",
    ),
    "FlowMatching": Row(lambda: FlowMatching((3,), hidden=(8,)), recipes.flow_matching, f"{DENOISES} HasDensityModel"),
    "FlowModel": Row(
        lambda: FlowModel((3,), hidden=(8,)),
        recipes.flow_kl,
        "ChecksData ExpectsForm HasLogProb InitializesFromData Samples TransportsToBase",
    ),
    "Generator": Row(lambda: Generator((3,), **SMALL), recipes.mmd_generator, LATENT),
    "MaskedTable": Row(
        lambda: MaskedTable(SCHEMA, hidden=(8,), components=2),
        ppgen.ELBO,
        "ChecksData HasDensityModel HasLogProb Samples",
        (X.double(),),
    ),
    "VAE": Row(lambda: VAE((3,), **SMALL), recipes.vae, f"{LATENT} Encodes HasLogEvidence Reconstructs"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def test_every_model_is_tested():
    public = {name: getattr(ppgen.models, name) for name in ppgen.models.__all__}
    assert {name for name, value in public.items() if isinstance(value, type) and issubclass(value, nn.Module)} == {
        *MODELS
    }


@every_model
def test_the_invariants_of_model_and_guide_hold(name):
    row = MODELS[name]
    check_model(row.make(), *row.data, loss=row.loss())


@every_model
def test_capabilities_are_those_of_class_and_instance(name):
    """`isinstance` and `issubclass` agree, so that a run can ask before it builds the model."""
    row, model = MODELS[name], MODELS[name].make()
    for protocol in protocols.__all__:
        expected = protocol in row.capabilities.split()
        assert isinstance(model, getattr(protocols, protocol)) == expected, protocol
        assert issubclass(type(model), getattr(protocols, protocol)) == expected, protocol


@every_model
def test_methods_keep_shapes_and_the_mode(name):
    """Methods for users keep the mode of every submodule and pass no gradients."""
    model, x = MODELS[name].make(), MODELS[name].data[0]
    next(model.children()).eval()
    modes = [part.training for part in model.modules()]
    with torch.no_grad():
        z = torch.randn(12, 2)
    shapes: dict[type, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
        protocols.Samples: (lambda: model.sample(12), (12, 3)),
        protocols.Reconstructs: (lambda: model.reconstruct(x), (12, 3)),
        protocols.Encodes: (lambda: model.encode(x).sample(), (12, 2)),
        protocols.Decodes: (lambda: model.decode(z).sample(), (12, 3)),
        protocols.HasPrior: (lambda: model.prior(12).sample(), (12, 2)),
        protocols.HasLogProb: (lambda: model.log_prob(x), (12,)),
        protocols.HasLogEvidence: (lambda: model.log_evidence(x, particles=2), (12,)),
        protocols.HasBound: (lambda: model.bound(x), (12,)),
        protocols.TransportsToBase: (lambda: model.pull_back(x)[0], (12, 3)),
        protocols.AdaptsDomains: (lambda: model.predict_proba(x), (12, 2)),
    }
    for protocol, (call, shape) in shapes.items():
        if isinstance(model, protocol):
            value = call()
            assert value.shape == shape, protocol.__name__
            assert value.isfinite().all(), protocol.__name__
            assert not value.requires_grad, protocol.__name__
    assert [part.training for part in model.modules()] == modes


@every_model
def test_forms_of_data_are_known(name):
    model = MODELS[name].make()
    if isinstance(model, protocols.ExpectsForm):
        assert model.data_form({}) in {*FORMS, "levels"}


@every_model
def test_the_config_rebuilds_the_model(name):
    model = MODELS[name].make()
    if hasattr(model, "config"):
        twin = type(model)(**json.loads(json.dumps(model.config)))
        assert twin.config == model.config
        twin.load_state_dict(model.state_dict())
