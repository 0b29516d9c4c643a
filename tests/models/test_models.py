"""Networks, heads and autoencoders: laws over every model, likelihood, covariance and network."""

import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.fx.experimental.proxy_tensor import make_fx

import ppgen.models
from ppgen import nets
from ppgen.metrics import EnergyDistance
from ppgen.models import ALI, VAE, Autoencoder, Generator, autoencoder, gan, generative, likelihood, mean

MODELS = [Autoencoder, VAE]
IMPLICIT = [Generator, ALI]
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "bernoulli": {"likelihood": "bernoulli"},
    "categorical": {"likelihood": "categorical", "levels": 3},
    "fixed": {"covariance": "fixed"},
    "scalar": {"covariance": "scalar"},
    "diagonal": {"covariance": "diagonal"},
    "low_rank": {"covariance": "low_rank", "rank": 2},
    "full": {"covariance": "full"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "dense": {"network": "dense", "event_shape": (6,), "hidden": (16,)},
    "convolutional": {"network": "convolutional", "event_shape": (2, 3, 5), "hidden": (8,)},
}  # those that grow have unused branches at their last scale: see test_growing
CASES = [
    pytest.param(cls, row, network, id=f"{cls.__name__}-{row}-{network}")
    for cls in MODELS
    for row in LIKELIHOODS
    for network in NETWORKS
]
every_case = pytest.mark.parametrize(("cls", "row", "network"), CASES)
every_network = pytest.mark.parametrize("network", [nets.Dense, nets.ConvEncoder, nets.ConvDecoder, nets.ConvMap])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """On tensors this small, threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def build(cls, row, network, **options):
    return cls(**{"latent_dim": 2, **NETWORKS[network], **LIKELIHOODS[row], **options})


def data(row, network, n=48):
    """Rows that one hidden factor explains, in the likelihood's support."""
    shape = NETWORKS[network]["event_shape"]
    factor = torch.randn(n, *[1] * len(shape))
    x = 2 * factor * torch.randn(shape) + 0.3 * torch.randn(n, *shape)
    if row == "bernoulli":
        return (x > 0).float()
    return torch.bucketize(x, torch.tensor([-0.5, 0.5])) if row == "categorical" else x


def log_joint(model, x, y=None):
    """log p(x, z) - log q(z | x) and every parameter's gradient."""
    guide_trace = poutine.trace(model.guide).get_trace(x, y)
    joint = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(x, y)
    value = joint.log_prob_sum() - guide_trace.log_prob_sum()
    return value, *torch.autograd.grad(value, list(model.parameters()))


# The registry


def test_the_registry_is_complete():
    exported = [getattr(ppgen.models, name) for name in ppgen.models.__all__]
    ours = {value for value in exported if getattr(value, "__module__", "") == autoencoder.__name__}
    assert ours == set(MODELS)
    assert {value for value in exported if getattr(value, "__module__", "") == gan.__name__} == set(IMPLICIT)
    kinds = {options.get("likelihood", "gaussian") for options in LIKELIHOODS.values()}
    covariances = {options["covariance"] for options in LIKELIHOODS.values() if "covariance" in options}
    assert kinds == set(ppgen.models.LIKELIHOODS)
    assert covariances == set(ppgen.models.COVARIANCES)
    assert set(NETWORKS) == set(autoencoder.NETWORKS) - set(generative.GROWING)


# Laws of every model


@every_case
def test_training_lowers_the_loss(cls, row, network):
    """Thirty steps of Adam lower the negative ELBO by half a nat a datum and move every parameter."""
    model, x = build(cls, row, network), data(row, network)
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
def test_config_and_state_rebuild_the_model(cls, row, network):
    model = build(cls, row, network, norm="batch", num_classes=2)
    x, y = data(row, network, 8), torch.arange(8) % 2
    model.model(x, y)  # moves the running averages of the decoder's normalization
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
def test_particles_are_a_loop(cls, row, network):
    """Model and guide under a plate of particles score each particle as a run of its own does."""
    model = build(cls, row, network, norm="layer", num_classes=2).double()
    x, y = data(row, network, 4), torch.tensor([0, 1, 1, 0])

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
def test_programs_and_methods_are_one_law(cls, row, network):
    model = build(cls, row, network, norm="batch", num_classes=2).eval()
    x, y = data(row, network, 4), torch.tensor([0, 1, 1, 0])
    guide_trace = poutine.trace(model.guide).get_trace(x, y)
    joint = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(x, y)
    z = guide_trace.nodes["z"]["value"]
    torch.testing.assert_close(guide_trace.nodes["z"]["fn"].log_prob(z), model.encode(x, y).log_prob(z))
    torch.testing.assert_close(joint.nodes["z"]["fn"].log_prob(z), model.prior(4).log_prob(z))
    log_prob = model.decode(z.detach(), y).log_prob(x)
    torch.testing.assert_close(joint.nodes["x"]["fn"].log_prob(x), log_prob)
    assert joint.nodes["x"]["is_observed"]


# Tracing is slow, and the classes share all but the encoder's head.
@pytest.mark.parametrize(
    ("cls", "row", "network"), [case for case in CASES if VAE in case.values or "diagonal" in case.values]
)
def test_programs_can_be_traced(cls, row, network):
    """make_fx traces both programs and their gradients into a graph that, on new data, equals Python."""
    model = build(cls, row, network, norm="batch", dropout=0.1, num_classes=2)
    first, second = data(row, network, 6), data(row, network, 6)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    with pyro.validation_enabled(False):
        graph = make_fx(lambda x, y: log_joint(model, x, y))(first, y)
        torch.manual_seed(1)
        traced = graph(second, 1 - y)
        torch.manual_seed(1)
        torch.testing.assert_close(traced, log_joint(model, second, 1 - y))


@every_case
def test_labels_condition_each_row(cls, row, network):
    model = build(cls, row, network, num_classes=3)
    x, z = data(row, network, 1).expand(3, *NETWORKS[network]["event_shape"]), torch.zeros(3, 2)
    for y in (torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0], dtype=torch.uint8)):
        for value in (mean(model.decode(z, y)), mean(model.encode(x, y))):
            torch.testing.assert_close(value[1], value[2])
            assert (value[0] - value[1]).abs().max() > 1e-3


# Implicit models


every_implicit = pytest.mark.parametrize(("cls", "network"), [(c, n) for c in IMPLICIT for n in NETWORKS])


def implicit(cls, network, **options):
    return cls(**{"latent_dim": 2, **NETWORKS[network], **options})


def run_of(program, *args):
    return poutine.trace(program).get_trace(*args).nodes


@every_implicit
def test_an_implicit_model_draws_what_it_decodes(cls, network):
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
def test_an_implicit_model_is_rebuilt_by_config_and_state(cls, network):
    model = implicit(cls, network, norm="layer", num_classes=2)
    x, y = data("diagonal", network, 8), torch.arange(8) % 2
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
def test_the_gradient_of_a_draw_reaches_every_weight(cls, network):
    """Under a plate of particles too."""
    model, x = implicit(cls, network, num_classes=3), data("diagonal", network, 6)
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def particles(program):
        with pyro.plate("particles", 4, dim=-2):
            return run_of(program, x, y)

    drawn, coded = particles(poutine.uncondition(model.model)), particles(model.guide)
    assert drawn["x"]["value"].shape == (4, 6, *model.event_shape)
    assert coded["z"]["value"].shape == (4, 6, 2)
    loss = drawn["x"]["value"].square().sum() + coded["z"]["value"].square().sum()
    weights = [*model.parameters()]
    assert all((slope != 0).any() for slope in torch.autograd.grad(loss, weights))


@every_implicit
def test_labels_are_a_site_of_an_implicit_model(cls, network):
    """One-hot, the same in every run; and each row is drawn for its own."""
    model, x = implicit(cls, network, num_classes=3), data("diagonal", network, 4)
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
def test_a_generators_guide_is_the_prior(network):
    model, x = implicit(Generator, network), data("diagonal", network, 4)
    torch.manual_seed(1)
    z = model.guide(x)
    torch.manual_seed(1)
    assert torch.equal(z, model.prior(4).sample())
    assert not hasattr(model, "encoder")


@pytest.mark.parametrize("covariance", ["point", *ppgen.models.COVARIANCES])
def test_every_encoder_of_adversarial_inference(covariance):
    model, x = implicit(ALI, "dense", encoder_covariance=covariance, rank=1), data("diagonal", "dense", 5)
    posterior = model.encode(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((5,), (2,))
    assert torch.equal(posterior.sample(), posterior.sample()) == (covariance == "point")
    assert model.reconstruct(x).shape == x.shape
    torch.manual_seed(1)
    z = model.guide(x)
    torch.manual_seed(1)
    assert torch.equal(z, model.encode(x).sample())


IMPLICIT_OPTIONS = [
    ({"latent_dim": 0}, "latent_dim of at least 1, got 0"),
    ({"event_shape": ()}, "event_shape of at least one dimension"),
    (
        {"network": "recurrent"},
        "expected network to be one of 'dense', 'convolutional', 'growing', 'pyramid', got 'recurrent'",
    ),
    ({"network": "convolutional"}, r"event shape \(channels, height, width\), got \(6,\)"),
    ({"norm": "instance"}, "expected norm to be one of 'batch', 'layer', 'pixel', got 'instance'"),
]


@pytest.mark.parametrize(("options", "message"), IMPLICIT_OPTIONS)
@pytest.mark.parametrize("cls", IMPLICIT)
def test_a_bad_option_of_an_implicit_model_says_so(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"event_shape": (6,), **options})


def test_a_bad_encoder_covariance_says_so():
    with pytest.raises(ValueError, match=r"covariance to be one of .*'diagonal'.*got 'round'"):
        ALI((6,), encoder_covariance="round")


def test_a_generator_learns_by_any_distance_of_samples():
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


# Encoders


@pytest.mark.parametrize("covariance", ppgen.models.COVARIANCES)
def test_every_encoder_covariance(covariance):
    model = build(VAE, "diagonal", "dense", encoder_covariance=covariance, rank=1)
    posterior = model.encode(data("diagonal", "dense"))
    assert posterior.event_shape == (2,)
    assert 0.3 < posterior.sample((200,)).std(0).mean() < 3  # about 1 before training
    _, *gradients = log_joint(model, data("diagonal", "dense"))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_an_autoencoder_has_one_code_a_datum():
    model, x = build(Autoencoder, "diagonal", "dense"), data("diagonal", "dense")
    assert torch.equal(model.encode(x).sample(), model.guide(x))
    assert torch.equal(model.encode(x).log_prob(model.guide(x)), torch.zeros(len(x)))


@pytest.mark.parametrize(("network", "kind"), [("dense", torch.nn.Linear), ("convolutional", torch.nn.Conv2d)])
def test_the_decoder_mirrors_the_encoder(network, kind):
    model = build(VAE, "scalar", network, hidden=(8, 4))
    there = [part.weight.shape[0] for part in model.encoder.modules() if isinstance(part, kind)]
    back = [part for part in model.decoder.modules() if hasattr(part, "weight")]
    assert there[:2] == [8, 4]
    assert [part.weight.shape[kind is torch.nn.Linear] for part in back][1:] == [4, 8]


def test_the_encoder_reads_levels_evenly_spaced():
    head = likelihood.Categorical((1,), levels=5)
    assert head.features(torch.arange(5), torch.float64).tolist() == [-1, -0.5, 0, 0.5, 1]


def test_data_of_another_dtype_are_read_in_the_models():
    model = build(VAE, "bernoulli", "dense")
    x = data("bernoulli", "dense")
    for dtype in (torch.float64, torch.int64, torch.bool):
        assert torch.equal(model.reconstruct(x.to(dtype)), model.reconstruct(x))
        assert Trace_ELBO().differentiable_loss(model.model, model.guide, x.to(dtype)).dtype == torch.float32


# The evidence


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


def test_evidence_of_a_linear_gaussian_model():
    """At the exact posterior every importance weight is the evidence, at any particles and chunk."""
    model, x, exact = linear_gaussian()
    for particles, chunk in ((1, None), (7, 3), (5, 64)):
        estimate = model.log_evidence(x, particles=particles, chunk=chunk)
        torch.testing.assert_close(estimate, exact)
        assert not estimate.requires_grad


@pytest.mark.parametrize(("particles", "chunk"), [(7, 30), (7, 7), (10, 10**6), (1, 1)])
def test_evidence_is_accumulated_over_bounded_chunks(monkeypatch, particles, chunk):
    model, x, y = (
        build(VAE, "diagonal", "dense", num_classes=2),
        data("diagonal", "dense", 10),
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


# Heads


def make_head(row):
    options = {"likelihood": "gaussian", "scale": 0.8, "floor": 0.05, "levels": None, **LIKELIHOODS[row]}
    return likelihood.make_likelihood((2, 3), **options).double()


every_likelihood = pytest.mark.parametrize("row", LIKELIHOODS)


@every_likelihood
def test_gradients_of_the_likelihood(row):
    head = make_head(row)
    raw = torch.randn(2, head.size, 2, 3, dtype=torch.float64, requires_grad=True)
    x = head(raw).sample()
    parameters = list(head.parameters())
    assert len(parameters) == (row == "scalar")
    assert torch.autograd.gradcheck(lambda raw, *_: head(raw).log_prob(x), (raw, *parameters))


@pytest.mark.parametrize("network", NETWORKS)
@every_likelihood
def test_gradients_by_the_code(row, network):
    model = build(VAE, row, network, hidden=(4,)).double()
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    x = model.sample(2)
    assert torch.autograd.gradcheck(lambda z: model.decoder(z).log_prob(x), (z,))


def dense_covariance(head, raw):
    """A Gaussian head's covariance of the flattened event, from the formulas of its docstring."""
    if head.covariance == "fixed":
        return 0.8**2 * torch.eye(6, dtype=raw.dtype).expand(len(raw), 6, 6)
    shift = math.log(math.expm1(0.8 - 0.05))
    rows = raw.flatten(2)
    if head.covariance == "scalar":
        rows = head.raw_scale.detach().expand(len(raw), 2, 6)
    if head.covariance == "full":
        square = rows[:, 1:].transpose(1, 2)
        tril = torch.zeros_like(square)
        for i in range(6):
            tril[:, i, :i] = square[:, i, :i] / math.sqrt(6)
            tril[:, i, i] = 0.05 + F.softplus(square[:, i, i] + shift)
        return tril @ tril.transpose(1, 2)
    covariance = torch.diag_embed((0.05 + F.softplus(rows[:, 1] + shift)) ** 2)
    if head.covariance == "low_rank":
        covariance = covariance + torch.einsum("nri,nrj->nij", rows[:, 2:], rows[:, 2:]) / 2
    return covariance


@every_likelihood
def test_a_head_is_its_closed_form(row):
    head = make_head(row)
    for parameter in head.parameters():
        parameter.data.fill_(0.3)
    raw = torch.randn(5, head.size, 2, 3, dtype=torch.float64)
    distribution = head(raw)
    x = distribution.sample()
    assert distribution.batch_shape == (5,)
    assert distribution.event_shape == x.shape[1:] == (2, 3)
    if row == "bernoulli":
        probs = raw[:, 0].sigmoid()
        expected, log_prob = probs, torch.where(x == 1, probs, 1 - probs).log()
    elif row == "categorical":
        probs = raw.softmax(1)
        expected = probs[:, 1] + 2 * probs[:, 2]
        log_prob = probs.gather(1, x[:, None])[:, 0].log()
    else:
        expected = raw[:, 0]
        closed = torch.distributions.MultivariateNormal(expected.flatten(1), dense_covariance(head, raw))
        log_prob = closed.log_prob(x.flatten(1)).reshape(5, 1, 1)
    torch.testing.assert_close(mean(distribution), expected)
    torch.testing.assert_close(distribution.log_prob(x), log_prob.sum((1, 2)))


@pytest.mark.parametrize("covariance", ppgen.models.COVARIANCES)
def test_scales_start_where_told_and_keep_their_floor(covariance):
    """At the mean the density is (2 pi)^(-D/2) s^(-D), with s = scale at h = 0 and s = floor at h = -inf."""
    head = make_head(covariance)
    raw, at_mean = torch.zeros(1, head.size, 2, 3).double(), torch.zeros(1, 2, 3).double()

    def scale():
        return math.exp(-head(raw).log_prob(at_mean).item() / 6) / math.sqrt(2 * math.pi)

    assert scale() == pytest.approx(0.8)
    for parameter in head.parameters():
        parameter.data.fill_(-1e4)
    if covariance == "full":  # only the diagonal of L
        raw[:, 1:] = -1e4 * torch.eye(6).reshape(1, 6, 2, 3)
    elif covariance != "fixed":
        raw[:, 1:2] = -1e4
    assert scale() == pytest.approx(0.8 if covariance == "fixed" else 0.05)


def test_the_mean_of_a_transformed_distribution_is_refused():
    skewed = pyro.distributions.TransformedDistribution(
        pyro.distributions.Normal(0.0, 1.0), torch.distributions.ExpTransform()
    )
    with pytest.raises(ValueError, match="only reshapes its base, got ExpTransform"):
        mean(skewed)


# Networks


def small(network, **options):
    image = (2, 5, 4)
    shapes = {
        nets.Dense: (5, (2, 3)),
        nets.ConvEncoder: (image, 3),
        nets.ConvDecoder: (3, image),
        nets.ConvMap: (image, 3),
    }
    net = network(*shapes[network], hidden=(4, 6), **options)
    if network is nets.ConvMap:
        assert not net.layers[-1].weight.any()
        torch.nn.init.normal_(net.layers[-1].weight)  # away from zero, where it starts
    return net


@every_network
@pytest.mark.parametrize("norm", [None, *nets.NORMS])
def test_leading_dimensions(network, norm):
    net = small(network, norm=norm, context_dim=2)
    flat, context = torch.randn(6, *net.in_shape), torch.randn(6, 2)
    net(flat, context)  # in training mode: moves the running averages
    net.eval()
    out = net(flat, context)
    assert out.shape == (6, *net.out_shape)
    for batch in ((6,), (2, 3), (1, 3, 2)):
        reshaped = net(flat.reshape(*batch, *net.in_shape), context.reshape(*batch, 2))
        torch.testing.assert_close(reshaped, out.reshape(*batch, *net.out_shape))
    torch.testing.assert_close(net(flat[0], context[0]), out[0])
    assert net(flat[:0], context[:0]).shape == (0, *net.out_shape)
    torch.testing.assert_close(net(flat[0].expand(6, *net.in_shape), context), net(flat[0], context))
    assert not torch.allclose(net(flat, context + 1), out)


@every_network
@pytest.mark.parametrize("activation", nets.ACTIVATIONS)
def test_activations_and_dropout(network, activation):
    net = small(network, activation=activation, dropout=0.5)
    x = torch.randn(8, *net.in_shape)
    assert not torch.equal(net(x), net(x))
    with nets.evaluation(net):
        assert torch.equal(net(x), net(x))
    assert net.training
    # No activation is affine, so neither is the network.
    net.eval()
    assert not torch.allclose(net(x) + net(-x), 2 * net(torch.zeros_like(x)), atol=1e-4)


@pytest.mark.parametrize("side", [(1, 1), (2, 3), (8, 8), (13, 9), (28, 28), (32, 32)])
def test_images_of_any_side(side):
    """The decoder gives back the encoder's shape, and every pixel of both depends on the vector between."""
    shape = (2, *side)
    encode, decode = (
        nets.ConvEncoder(shape, 3, hidden=(4, 5, 6)),
        nets.ConvDecoder(3, shape, hidden=(6, 5, 4)),
    )
    x = torch.randn(1, *shape, requires_grad=True)
    code = encode(x)
    assert code.shape == (1, 3)
    (gradient,) = torch.autograd.grad(code.square().sum(), x)
    assert (gradient != 0).all()
    assert (decode(code) != decode(code + 1)).all()
    assert decode(code).shape == x.shape


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
    ({"norm": "group"}, r"norm to be one of 'batch', 'layer', 'pixel', got 'group'"),
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
@pytest.mark.parametrize("cls", MODELS)
def test_a_bad_option_says_so(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"event_shape": TABLE, **options})


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
@pytest.mark.parametrize("method", ["check", "encode", "reconstruct", "log_evidence"])
def test_bad_data_say_so(options, batch, message, method):
    model = VAE(**{"event_shape": TABLE, "hidden": (4,), **options})
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(*batch)


def test_labels_are_wanted_or_not_by_the_programs_too():
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


def test_other_errors():
    model = VAE(TABLE, hidden=(4,))
    with pytest.raises(TypeError, match="x to be a tensor, got ndarray"):
        model.encode(X.numpy())  # type: ignore[arg-type]
    for particles, chunk in ((0, None), (1, 0)):
        with pytest.raises(ValueError, match="particles and chunk of at least 1"):
            model.log_evidence(X, particles=particles, chunk=chunk)
    with pytest.raises(ValueError, match=r"input of shape \(\.\.\., 8\), got \(3, 6\)"):
        model.decode(X)
    with pytest.raises(ValueError, match=r"context of width 2 .*, got none"):
        nets.Dense(3, 2, context_dim=2)(torch.zeros(3))
    with pytest.raises(ValueError, match=r"context of width 0 .*, got one of shape \(4,\)"):
        nets.Dense(3, 2)(torch.zeros(3), torch.zeros(4))
