"""Implicit models: generators and adversarially learned inference."""

import json

import pyro
import pytest
import torch
import torch.nn.functional as F
from autoencoders import NETWORKS, make_data
from pyro import poutine

from ppgen.metrics import EnergyDistance
from ppgen.models import ALI, COVARIANCES, Generator, mean

IMPLICIT = [Generator, ALI]
every_implicit = pytest.mark.parametrize(("cls", "network"), [(c, n) for c in IMPLICIT for n in NETWORKS])


def implicit(cls, network, **options):
    return cls(**{"latent_dim": 2, **NETWORKS[network], **options})


def run_of(program, *args):
    return poutine.trace(program).get_trace(*args).nodes


@every_implicit
def test_draws_are_outputs_of_the_decoder(cls, network):
    model = implicit(cls, network, norm="batch", dropout=0.5)
    modes = [part.training for part in model.modules()]
    x = model.sample(7)
    model.check(x)
    assert x.shape == (7, *model.event_shape)
    assert not x.requires_grad
    torch.manual_seed(1)
    drawn = model.sample(7)
    torch.manual_seed(1)
    z = model.prior(7).sample()
    assert torch.equal(drawn, model.decode(z).sample())
    assert torch.equal(drawn, mean(model.decode(z)))
    torch.manual_seed(1)
    assert torch.equal(drawn, model.sample(7, mean=True))
    assert [part.training for part in model.modules()] == modes
    with torch.no_grad():
        model.eval()
        nodes = run_of(poutine.uncondition(model.model), x)
    assert torch.equal(nodes["x"]["value"], model.decode(nodes["z"]["value"]).sample())


@every_implicit
def test_config_and_state_dict_rebuild_the_model(cls, network):
    model = implicit(cls, network, norm="layer", num_classes=2)
    x, y = make_data("diagonal", network, 8), torch.arange(8) % 2
    twin = cls(**json.loads(json.dumps(model.config)))
    twin.load_state_dict(model.state_dict())
    assert twin.config == model.config
    z = torch.randn(8, 2)
    assert torch.equal(mean(model.decode(z, y)), mean(twin.decode(z, y)))
    for program in ("model", "guide"):
        draws = []
        for one in (model, twin):
            torch.manual_seed(2)
            draws.append(getattr(one, program)(x, y))
        assert torch.equal(*draws)


@every_implicit
def test_draws_pass_gradients_to_every_weight(cls, network):
    """Also in a plate of particles."""
    model, x = implicit(cls, network, num_classes=3), make_data("diagonal", network, 6)
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def particles(program):
        with pyro.plate("particles", 4, dim=-2):
            return run_of(program, x, y)

    drawn, coded = particles(poutine.uncondition(model.model)), particles(model.guide)
    assert drawn["x"]["value"].shape == (4, 6, *model.event_shape)
    assert coded["z"]["value"].shape == (4, 6, 2)
    loss = drawn["x"]["value"].square().sum() + coded["z"]["value"].square().sum()
    weights = [*model.parameters()]
    assert all((gradient != 0).any() for gradient in torch.autograd.grad(loss, weights))


@every_implicit
def test_labels_are_an_observed_site(cls, network):
    """One-hot and the same in every run; each row is generated from its own label."""
    model, x = implicit(cls, network, num_classes=3), make_data("diagonal", network, 4)
    y = torch.tensor([2, 0, 1, 1])
    expected = F.one_hot(y, 3).float()
    for program in (model.model, poutine.uncondition(model.model)):
        site = run_of(program, x, y)["y"]
        assert torch.equal(site["value"], expected)
        assert site["fn"].batch_shape == (4,)
    assert "y" not in run_of(implicit(cls, network).model, x)
    drawn = mean(model.decode(torch.zeros(4, 2), y))
    torch.testing.assert_close(drawn[2], drawn[3])
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="expected labels y"):
        model.model(x)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_guide_of_a_generator_is_the_prior(network):
    model, x = implicit(Generator, network), make_data("diagonal", network, 4)
    torch.manual_seed(1)
    z = model.guide(x)
    torch.manual_seed(1)
    assert torch.equal(z, model.prior(4).sample())
    assert not hasattr(model, "encoder")


@pytest.mark.parametrize("covariance", ["point", *COVARIANCES])
def test_encoder_covariances_of_ali(covariance):
    model, x = implicit(ALI, "dense", encoder_covariance=covariance, rank=1), make_data("diagonal", "dense", 5)
    posterior = model.encode(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((5,), (2,))
    assert torch.equal(posterior.sample(), posterior.sample()) == (covariance == "point")
    assert model.reconstruct(x).shape == x.shape
    torch.manual_seed(1)
    z = model.guide(x)
    torch.manual_seed(1)
    assert torch.equal(z, model.encode(x).sample())


BAD_OPTIONS = [
    ({"latent_dim": 0}, "latent_dim of at least 1, got 0"),
    ({"event_shape": ()}, "event_shape of at least one dimension"),
    (
        {"network": "recurrent"},
        "expected network to be one of 'dense', 'convolutional', 'growing', 'pyramid', got 'recurrent'",
    ),
    ({"network": "convolutional"}, r"event shape \(channels, height, width\), got \(6,\)"),
    ({"norm": "instance"}, "expected norm to be one of 'batch', 'domain', 'group', 'layer', 'pixel', got 'instance'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Generator(**{"event_shape": (6,), **options})


def test_a_bad_encoder_covariance_is_refused():
    with pytest.raises(ValueError, match=r"covariance to be one of .*'diagonal'.*got 'round'"):
        ALI((6,), encoder_covariance="round")


def test_a_generator_learns_by_a_metric_of_samples():
    """A hundred steps of Adam on the energy distance bring its draws from (0, 0) to data around (3, 3)."""
    model, x = Generator((2,), latent_dim=2, hidden=(16,)), torch.randn(200, 2) + 3
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    far = EnergyDistance()(x, model.sample(200))
    for _ in range(100):
        loss = EnergyDistance()(x, run_of(poutine.uncondition(model.model), x)["x"]["value"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert EnergyDistance()(x, model.sample(200)) < 0.1 * far
