"""Autoencoders: their programs and methods with every likelihood and network, the log evidence, and errors."""

import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from autoencoders import LIKELIHOODS, NETWORKS, build, log_joint, make_data
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.models import COVARIANCES, VAE, Autoencoder, autoencoder, latent_variable, mean

# The classes share all but the head of the encoder.
CASES = [
    *(pytest.param(VAE, row, network, id=f"VAE-{row}-{network}") for row in LIKELIHOODS for network in NETWORKS),
    *(pytest.param(Autoencoder, "diagonal", network, id=f"Autoencoder-diagonal-{network}") for network in NETWORKS),
]
every_case = pytest.mark.parametrize(("cls", "row", "network"), CASES)


def test_every_network_is_tested():
    assert set(NETWORKS) == set(latent_variable.NETWORKS) - set(latent_variable.GROWING)


@every_case
def test_training_lowers_the_loss(cls, row, network):
    """Thirty steps of Adam lower the negative ELBO by half a nat per row and change every parameter."""
    model, x = build(cls, row, network), make_data(row, network)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    losses = []
    for _ in range(30):
        loss = Trace_ELBO().differentiable_loss(model.model, model.guide, x) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5
    assert all((old != new).any() for old, new in zip(before, model.parameters(), strict=True))


@every_case
def test_samples_have_the_shape_and_the_support_of_data(cls, row, network):
    model = build(cls, row, network, norm="batch", dropout=0.5)
    model.encoder.eval()
    modes = [part.training for part in model.modules()]
    x = model.sample(7)
    model.check(x)
    for draw in (x, model.sample(7, mean=True), model.reconstruct(x), model.reconstruct(x, mean=False)):
        assert draw.shape == (7, *model.event_shape)
        assert draw.isfinite().all()
        assert not draw.requires_grad
    assert model.sample(7).dtype == (torch.int64 if row == "categorical" else torch.float32)
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))  # dropout is off
    assert not torch.equal(model.reconstruct(x, mean=False), model.reconstruct(x, mean=False))
    torch.manual_seed(1)
    means = model.sample(7, mean=True)
    torch.manual_seed(1)
    assert torch.equal(means, mean(model.decode(model.prior(7).sample())))
    assert model.encode(x).batch_shape == (7,)
    assert model.encode(x).event_shape == (2,)
    assert model.decode(torch.randn(3, 7, 2)).batch_shape == (3, 7)
    assert model.decode(torch.randn(3, 7, 2)).event_shape == model.event_shape
    assert [part.training for part in model.modules()] == modes


@every_case
def test_config_and_state_dict_rebuild_the_model(cls, row, network):
    model = build(cls, row, network, norm="batch", num_classes=2)
    x, y = make_data(row, network, 8), torch.arange(8) % 2
    model.model(x, y)  # updates the running averages of the decoder's normalization
    config = json.loads(json.dumps(model.config))
    torch.manual_seed(1)
    twin = cls(**config)
    twin.load_state_dict(model.state_dict())
    assert twin.config == model.config
    z = torch.randn(8, 2)
    assert torch.equal(mean(model.decode(z, y)), mean(twin.decode(z, y)))
    draws = []
    for one in (model, twin):
        torch.manual_seed(2)
        draws.append(one.sample(8, y))
    assert torch.equal(*draws)


@every_case
def test_particles_are_scored_as_separate_runs(cls, row, network):
    """Model and guide in a plate of particles score each particle as a run without the plate does."""
    model = build(cls, row, network, norm="layer", num_classes=2).double()
    x, y = make_data(row, network, 4), torch.tensor([0, 1, 1, 0])

    def vectorized(program):
        def run(*args):
            with pyro.plate("particles", 3, dim=-2):
                return program(*args)

        return run

    guide_trace = poutine.trace(vectorized(model.guide)).get_trace(x, y)
    joint = poutine.trace(poutine.replay(vectorized(model.model), guide_trace)).get_trace(x, y)
    guide_trace.compute_log_prob()
    joint.compute_log_prob()
    assert guide_trace.nodes["z"]["value"].shape == (3, 4, 2)
    for k, z in enumerate(guide_trace.nodes["z"]["value"]):
        alone = poutine.trace(poutine.condition(model.model, {"z": z})).get_trace(x, y)
        alone.compute_log_prob()
        for site in ("z", "x"):
            torch.testing.assert_close(joint.nodes[site]["log_prob"][k], alone.nodes[site]["log_prob"])
        alone = poutine.trace(poutine.condition(model.guide, {"z": z})).get_trace(x, y)
        alone.compute_log_prob()
        torch.testing.assert_close(guide_trace.nodes["z"]["log_prob"].expand(3, 4)[k], alone.nodes["z"]["log_prob"])


@every_case
def test_programs_and_methods_have_the_same_densities(cls, row, network):
    model = build(cls, row, network, norm="batch", num_classes=2).eval()
    x, y = make_data(row, network, 4), torch.tensor([0, 1, 1, 0])
    guide_trace = poutine.trace(model.guide).get_trace(x, y)
    joint = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(x, y)
    z = guide_trace.nodes["z"]["value"]
    torch.testing.assert_close(guide_trace.nodes["z"]["fn"].log_prob(z), model.encode(x, y).log_prob(z))
    torch.testing.assert_close(joint.nodes["z"]["fn"].log_prob(z), model.prior(4).log_prob(z))
    log_prob = model.decode(z.detach(), y).log_prob(x)
    torch.testing.assert_close(joint.nodes["x"]["fn"].log_prob(x), log_prob)
    assert joint.nodes["x"]["is_observed"]


@every_case
def test_programs_can_be_traced(cls, row, network):
    """make_fx traces both programs and their gradients into a graph that gives the same results on new data."""
    model = build(cls, row, network, norm="batch", dropout=0.1, num_classes=2)
    first, second = make_data(row, network, 6), make_data(row, network, 6)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    with pyro.validation_enabled(False):
        graph = make_fx(lambda x, y: log_joint(model, x, y))(first, y)
        torch.manual_seed(1)
        traced = graph(second, 1 - y)
        torch.manual_seed(1)
        torch.testing.assert_close(traced, log_joint(model, second, 1 - y))


@every_case
def test_each_row_is_conditioned_on_its_label(cls, row, network):
    model = build(cls, row, network, num_classes=3)
    x, z = make_data(row, network, 1).expand(3, *NETWORKS[network]["event_shape"]), torch.zeros(3, 2)
    for y in (torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0], dtype=torch.uint8)):
        for value in (mean(model.decode(z, y)), mean(model.encode(x, y))):
            torch.testing.assert_close(value[1], value[2])
            assert (value[0] - value[1]).abs().max() > 1e-3


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_encoder_covariances_have_unit_scale_and_gradients(covariance):
    model = build(VAE, "diagonal", "dense", encoder_covariance=covariance, rank=1)
    posterior = model.encode(make_data("diagonal", "dense"))
    assert posterior.event_shape == (2,)
    assert 0.3 < posterior.sample((200,)).std(0).mean() < 3  # about 1 before training
    _, *gradients = log_joint(model, make_data("diagonal", "dense"))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_code_of_an_autoencoder_is_deterministic():
    model, x = build(Autoencoder, "diagonal", "dense"), make_data("diagonal", "dense")
    assert torch.equal(model.encode(x).sample(), model.guide(x))
    assert torch.equal(model.encode(x).log_prob(model.guide(x)), torch.zeros(len(x)))


@pytest.mark.parametrize(("network", "kind"), [("dense", torch.nn.Linear), ("convolutional", torch.nn.Conv2d)])
def test_the_decoder_mirrors_the_encoder(network, kind):
    model = build(VAE, "scalar", network, hidden=(8, 4), norm=None)
    there = [part.weight.shape[0] for part in model.encoder.modules() if isinstance(part, kind)]
    back = [part for part in model.decoder.modules() if hasattr(part, "weight")]
    assert there[:2] == [8, 4]
    assert [part.weight.shape[kind is torch.nn.Linear] for part in back][1:] == [4, 8]


def test_data_are_converted_to_the_dtype_of_the_model():
    model = build(VAE, "bernoulli", "dense")
    x = make_data("bernoulli", "dense")
    for dtype in (torch.float64, torch.int64, torch.bool):
        assert torch.equal(model.reconstruct(x.to(dtype)), model.reconstruct(x))
        assert Trace_ELBO().differentiable_loss(model.model, model.guide, x.to(dtype)).dtype == torch.float32


def linear_gaussian(n=20):
    """The model p(x | z) = N(W z + b, s^2 I), its exact posterior as the guide, data and log p(x)."""
    noise = 0.7**2
    options: dict[str, Any] = {"covariance": "fixed", "scale": 0.7, "encoder_covariance": "full"}
    model = VAE((4,), latent_dim=2, hidden=(), **options).double()
    weight, bias = (parameter.data for parameter in model.decoder.parameters())
    covariance = torch.linalg.inv(torch.eye(2).double() + weight.T @ weight / noise)
    tril = torch.linalg.cholesky(covariance)
    gain = covariance @ weight.T / noise
    # The encoder's outputs are its mean, then the columns of L.
    head: Any = model.encoder.head
    rows, offset = (parameter.data for parameter in model.encoder.parameters())
    rows.zero_()[:2] = gain
    offset[:2] = -gain @ bias
    offset[[2, 5]] = torch.log(torch.expm1(tril.diagonal() - head.floor)) - head.shift
    offset[3] = tril[1, 0] * math.sqrt(2)
    exact = torch.distributions.MultivariateNormal(bias, weight @ weight.T + noise * torch.eye(4).double())
    x = exact.sample((n,))
    return model, x, exact.log_prob(x)


def test_the_log_evidence_of_a_linear_gaussian_model_is_exact():
    """With the exact posterior every importance weight equals the evidence, for any particles and chunk."""
    model, x, exact = linear_gaussian()
    for particles, chunk in ((1, None), (7, 3), (5, 64)):
        estimate = model.log_evidence(x, particles=particles, chunk=chunk)
        torch.testing.assert_close(estimate, exact)
        assert not estimate.requires_grad


@pytest.mark.parametrize(("particles", "chunk"), [(7, 30), (7, 7), (10, 10**6), (1, 1)])
def test_the_log_evidence_is_accumulated_over_bounded_chunks(monkeypatch, particles, chunk):
    model, x, y = (
        build(VAE, "diagonal", "dense", num_classes=2),
        make_data("diagonal", "dense", 10),
        torch.arange(10) % 2,
    )
    held: list[int] = []
    weights: list[list[float]] = [[] for _ in range(10)]

    def log_weights(program, guide, args, *, particles):
        held.append(particles * len(args[0]))
        assert not model.training
        drawn = 5 * torch.randn(particles, len(args[0]))
        for column, row in zip(drawn.T, args[0], strict=True):
            weights[int((x == row).all(-1).nonzero())] += column.tolist()
        return drawn

    monkeypatch.setattr(autoencoder, "log_weights", log_weights)
    estimate = model.log_evidence(x, y, particles=particles, chunk=chunk)
    assert max(held) <= chunk
    expected = torch.tensor(weights)
    assert expected.shape == (10, particles)
    torch.testing.assert_close(estimate, expected.exp().mean(1).log())


# Errors

TABLE, IMAGE = (6,), (1, 4, 4)
X = torch.zeros(3, 6)
BUILDS = [
    (
        {"likelihood": "poisson"},
        r"likelihood to be one of 'bernoulli', 'categorical', 'gaussian', got 'poisson'",
    ),
    ({"covariance": "dense"}, r"covariance to be one of 'fixed', .*'full', got 'dense'"),
    ({"network": "deep"}, r"network to be one of 'dense', 'convolutional', 'growing', 'pyramid', got 'deep'"),
    ({"norm": "groups"}, r"norm to be one of 'batch', 'domain', 'group', 'layer', 'pixel', got 'groups'"),
    ({"activation": "sin"}, r"activation to be one of .*'tanh', got 'sin'"),
    ({"dropout": 1.0}, r"dropout to be a probability in \[0, 1\), got 1.0"),
    ({"covariance": "low_rank", "rank": 7}, r"rank from 1 to the event's 6 elements, got 7"),
    ({"floor": 2.0}, r"scale > 2.0, the floor, got 1.0"),
    ({"floor": 0.0}, r"floor > 0, without which the likelihood has no bound, got 0.0"),
    ({"covariance": "fixed", "scale": 0.0}, r"scale > 0.0, the floor, got 0.0"),
    ({"likelihood": "categorical"}, r"levels, at least 2, for likelihood='categorical', got None"),
    ({"likelihood": "bernoulli", "levels": 2}, r"no levels for likelihood='bernoulli', got 2"),
    ({"network": "convolutional"}, r"event shape \(channels, height, width\), got \(6,\); .* dense network"),
    ({"network": "convolutional", "event_shape": IMAGE, "hidden": ()}, r"at least one hidden width"),
    ({"latent_dim": 0}, r"latent_dim of at least 1, got 0"),
    ({"num_classes": 0}, r"num_classes of at least 1, got 0"),
    ({"event_shape": (6, 0)}, r"event_shape\[1\] of at least 1, got 0"),
    ({"event_shape": ()}, r"event_shape of at least one dimension"),
]


@pytest.mark.parametrize(("options", "message"), BUILDS)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VAE(**{"event_shape": TABLE, **options})


CHECKS = [
    ({}, (torch.zeros(3, 5),), r"x of shape \(n, 6\), got \(3, 5\): reshape"),
    ({}, (torch.zeros(6),), r"x of shape \(n, 6\), got \(6,\)"),
    ({}, (torch.zeros(0, 6),), r"x of shape \(n, 6\), got \(0, 6\)"),
    ({"event_shape": IMAGE}, (torch.zeros(3, 16),), r"x of shape \(n, 1, 4, 4\), got \(3, 16\)"),
    ({}, (X.int(),), r"floating point data for likelihood='gaussian', got torch.int32.*form='continuous'"),
    ({}, (X.log(),), r"finite numbers; 18 of 18 are not"),
    (
        {"likelihood": "bernoulli"},
        (X + torch.tensor([0, 1, 0.25, 0, 2, 1]),),
        r"0 or 1, .*likelihood='bernoulli'; 6 of 18 are not \(min 0, max 2\): .*form='binary'",
    ),
    ({"likelihood": "bernoulli"}, (X * math.nan,), r"18 of 18 are not \(min nan"),
    ({"likelihood": "categorical", "levels": 3}, (X + 0.5,), r"integers 0 .. 2, .* 18 of 18 are not"),
    ({"likelihood": "categorical", "levels": 3}, (X.int() + 3,), r"\(min 3, max 3\): recode"),
    ({"likelihood": "categorical", "levels": 3}, (X.int() - 1,), r"\(min -1, max -1\)"),
    ({}, (X, torch.zeros(3).long()), r"no labels y: the model was built without num_classes"),
    ({"num_classes": 2}, (X,), r"expected labels y: the model was built with num_classes=2"),
    ({"num_classes": 2}, (X, torch.zeros(3)), r"integer labels y of shape \(3,\), got torch.float32 \(3,\)"),
    ({"num_classes": 2}, (X, torch.zeros(2).long()), r"labels y of shape \(3,\), got torch.int64 \(2,\)"),
    ({"num_classes": 2}, (X, torch.tensor([0, 2, 1])), r"y in 0 .. 1, .*; 1 of 3 are not \(min 0, max 2\)"),
    ({"num_classes": 2}, (X, torch.tensor([0, -1, 1])), r"1 of 3 are not \(min -1, max 1\)"),
]


@pytest.mark.parametrize(("options", "batch", "message"), CHECKS)
def test_bad_data_are_refused(options, batch, message):
    model = VAE(**{"event_shape": TABLE, "hidden": (4,), **options})
    with pytest.raises(ValueError, match=message):
        model.check(*batch)


@pytest.mark.parametrize("method", ["encode", "reconstruct", "log_evidence"])
def test_methods_check_their_data(method):
    with pytest.raises(ValueError, match=r"x of shape \(n, 6\), got \(3, 5\)"):
        getattr(VAE(TABLE, hidden=(4,)), method)(torch.zeros(3, 5))


def test_the_programs_check_whether_labels_are_expected():
    plain, conditional = VAE(TABLE, hidden=(4,)), VAE(TABLE, hidden=(4,), num_classes=2)
    programs: list[Callable] = [conditional.model, conditional.guide, lambda x: conditional.sample(3)]
    for program in (plain.model, plain.guide):
        with pytest.raises(ValueError, match="no labels"):
            program(X, torch.zeros(3).long())
    for program in programs:
        with pytest.raises(ValueError, match="expected labels"):
            program(X)
    with pytest.raises(ValueError, match=r"shape \(4,\), got torch.int64 \(3,\)"):
        conditional.sample(4, torch.zeros(3).long())


def test_other_bad_arguments_are_refused():
    model = VAE(TABLE, hidden=(4,))
    with pytest.raises(TypeError, match="x to be a tensor, got ndarray"):
        model.encode(X.numpy())  # type: ignore[arg-type]
    for particles, chunk in ((0, None), (1, 0)):
        with pytest.raises(ValueError, match="particles and chunk of at least 1"):
            model.log_evidence(X, particles=particles, chunk=chunk)
    with pytest.raises(ValueError, match=r"input of shape \(\.\.\., 8\), got \(3, 6\)"):
        model.decode(X)
