"""Flows as prior and posterior of a VAE: every flow, the cached density, training, the report and the command line."""

import functools
import math

import pyro
import pytest
import torch
from pyro import poutine

import ppgen
from ppgen.flows import FLOWS
from ppgen.flows.build import build_flow
from ppgen.models import VAE
from ppgen.models.latent_flow import GaussianFlow
from ppgen.report import figures, report_of_run
from ppgen.runs.cli import main
from ppgen.runs.run import Run
from ppgen.tracing.particles import log_weights

OPTIONS = {"latent_dim": 2, "hidden": (8,), "flow_hidden": (8,)}
# flows that are not initialized at the identity, and flows whose inverse is less precise
NOT_IDENTITY = ("naf", "sum_of_squares", "bernstein")
TOLERANCES = dict.fromkeys((*NOT_IDENTITY, "continuous", "planar", "radial", "sylvester", "residual"), 0.001)


@pytest.fixture(autouse=True)
def _fresh():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def build(**options) -> VAE:
    return VAE((3,), **{**OPTIONS, **options})


def perturbed(model: VAE) -> VAE:
    """The model with flows away from their initial parameters."""
    with torch.no_grad():
        for flow in (model.latent_flow, getattr(model.encoder.head, "flow", None)):
            for parameter in [] if flow is None else flow.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", FLOWS)
def test_the_cached_density_of_a_draw_is_that_of_a_copy(name):
    model, x = perturbed(build(posterior=name)), torch.randn(5, 3)
    distribution = model.encode(x).expand((4, 5))
    with torch.no_grad():
        z = distribution.rsample()
        tolerance = TOLERANCES.get(name, 1e-4)
        torch.testing.assert_close(
            distribution.log_prob(z), distribution.log_prob(z.clone()), atol=tolerance, rtol=tolerance
        )
        assert distribution.log_prob(z).shape == (4, 5)
        assert torch.equal(model.encode(x).center, model.encode(x).center)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_are_initialized_at_the_gaussians(name):
    torch.manual_seed(0)
    model, x = build(posterior=name, prior=name), torch.randn(5, 3)
    distribution = model.encode(x)
    gaussian = torch.distributions.Independent(torch.distributions.Normal(distribution.loc, distribution.scale), 1)
    z = torch.randn(5, 2)
    same = torch.allclose(
        distribution.log_prob(distribution.loc + distribution.scale * z),
        gaussian.log_prob(distribution.loc + distribution.scale * z),
        atol=1e-3,
    )
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert same == torch.allclose(model.prior(5).log_prob(z), prior, atol=1e-3) == (name not in NOT_IDENTITY)


def test_the_density_is_cached_for_the_last_draw_only():
    model, x = perturbed(build(posterior="iaf")), torch.randn(5, 3)
    distribution = model._posterior(x, None)
    calls = []
    log_prob = distribution.distribution.log_prob
    distribution.distribution.log_prob = lambda value: calls.append(value) or log_prob(value)
    z = distribution.rsample()
    cached = distribution.log_prob(z)
    assert not calls
    weights = list(model.encoder.parameters())
    ours = torch.autograd.grad(cached.sum(), weights, retain_graph=True)
    theirs = torch.autograd.grad(distribution.log_prob(z.clone()).sum(), weights, retain_graph=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert len(calls) == 1
    with torch.no_grad():
        distribution.log_prob(z)  # drawn with gradients, scored without
    first = distribution.rsample()
    distribution.rsample()
    distribution.log_prob(first)  # not the last draw
    assert len(calls) == 3
    drawn = distribution.sample()
    assert distribution.log_prob(drawn).requires_grad  # the parameters of the distribution
    with torch.no_grad():
        detached = distribution.sample()
        expected = distribution.log_prob(detached).clone()
        torch.testing.assert_close(
            distribution.log_prob(detached),
            log_prob((detached - distribution.loc) / distribution.scale) - distribution.scale.log().sum(-1),
        )
        detached += 1.0  # in place: another value, the same tensor
        assert (distribution.log_prob(detached) - expected).abs().min() > 1e-4


@pytest.mark.parametrize(("prior", "posterior"), [("maf", "iaf"), ("realnvp", "gaussian"), ("gaussian", "nsf")])
@pytest.mark.parametrize("classes", [None, 2])
def test_programs_with_flows_are_consistent_and_train(prior, posterior, classes):
    model = build(prior=prior, posterior=posterior, num_classes=classes)
    x = torch.randn(32, 1) * torch.tensor([1.0, -1.0, 2.0]) + 0.3 * torch.randn(32, 3)
    args = (x,) if classes is None else (x, torch.arange(32) % 2)
    guide_trace = poutine.trace(model.guide).get_trace(*args)
    joint = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(*args)
    z = guide_trace.nodes["z"]["value"].detach()
    torch.testing.assert_close(joint.nodes["z"]["fn"].log_prob(z), model.prior(32).log_prob(z))
    assert log_weights(model.model, model.guide, args, particles=3).shape == (3, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"steps": 40, "optim": functools.partial(torch.optim.Adam, lr=1e-2), "progress": False}
    fit = ppgen.fit(model.model, model.guide, args, loss=ppgen.recipes.vae(), compile=False, **options)
    loss = fit.history["loss"]
    assert loss[-10:].mean() < loss[:10].mean() - 0.5
    assert all((before[name] != value).any() for name, value in model.named_parameters())
    for output in (model.sample(7, *(a[:7] for a in args[1:])), model.reconstruct(*(a[:7] for a in args))):
        assert output.shape == (7, 3)
        assert output.isfinite().all()
    evidence = model.log_evidence(*args, particles=50).mean()
    assert evidence > -fit.breakdown(*args)["Reconstruction"] - fit.breakdown(*args)["Rate"] - 0.3
    twin = type(model)(**model.config)
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]


def test_the_rate_of_a_flow_is_estimated_from_draws():
    """At initialization both are Gaussians, whose KL is known; the mean of the draws is within 5 standard errors."""
    model, x = build(prior="maf", posterior="iaf"), torch.randn(4, 3)
    distribution = model.encode(x)
    gaussian = torch.distributions.Independent(torch.distributions.Normal(distribution.loc, distribution.scale), 1)
    exact = torch.distributions.kl_divergence(gaussian, build().prior(4)).mean()
    pyro.set_rng_seed(0)
    values = torch.tensor([ppgen.Rate().loss(model.model, model.guide, x) for _ in range(100)])
    assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(100)
    assert values.std() > 0  # from draws, because there is no closed form


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "nope"}, "expected prior to be one of"),
        ({"posterior": "nope"}, "expected posterior to be one of"),
        ({"posterior": "iaf", "encoder_covariance": "full"}, "leave encoder_covariance at 'diagonal', got 'full'"),
        ({"prior": "realnvp", "latent_dim": 1}, "two parts, which needs a width of at least 2"),
        ({"prior": "lu_linear", "flow_layers": 3}, "prior='lu_linear' has no such option"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_flow_has_the_given_number_of_layers():
    two, four = (build_flow("maf", 2, option="prior", layers=n, hidden=(8,)) for n in (2, 4))
    assert 2 * len(list(two.parameters())) == len(list(four.parameters()))
    assert isinstance(build(posterior="maf").encode(torch.zeros(1, 3)), GaussianFlow)


def recording(calls, name, function):
    def recorded(*args, **options):
        calls[name] = args, options
        return function(*args, **options)

    return recorded


def test_the_report_shows_the_flow_prior(monkeypatch):
    data = ppgen.data.load("moons", size=200)
    model = perturbed(VAE((2,), latent_dim=2, hidden=(8,), prior="realnvp"))
    fit = ppgen.fit(model.model, model.guide, (data.train.x,), loss=ppgen.recipes.vae(), steps=3, progress=False)
    calls = {}
    for name in ("latent_plane", "latent_walk"):
        monkeypatch.setattr(figures, name, recording(calls, name, getattr(figures, name)))
    report = report_of_run(fit, model, data, title="t")
    section = next(s for s in report.sections if s.title == "Latent codes")
    assert "N(0, I)" not in section.text
    assert calls["latent_plane"][1]["prior"].shape == (2000, 2)
    (decode,), options = calls["latent_walk"]
    assert options["name"] == "u"
    u = torch.tensor([[0.5, -1.0]])
    expected = ppgen.models.mean(model.decode(model.prior(1).transform(u)))
    torch.testing.assert_close(
        torch.as_tensor(decode(u.numpy())), torch.as_tensor(data.scaler.inverse(expected.numpy()))
    )


def test_the_command_line_has_the_options_of_flows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.report.report_of_run", lambda *_, title, **__: ppgen.report.Report(title))
    quick = ["--fit.steps", "4", "--model.hidden", "[8]", "--draws", "0", "--particles", "4", "--data.size", "300"]
    flows = ["--model.prior", "realnvp", "--model.posterior", "iaf", "--model.flow_hidden", "[8]", "--out", "run"]
    assert main(["train", "vae", "digits", *quick, *flows]) == 0
    model = Run.load("run").model
    assert isinstance(model.encode(torch.zeros(2, 1, 8, 8)), GaussianFlow)
    assert main(["train", "vae", "digits", *quick, "--model.prior", "nope", "--out", "other"]) == 2
    assert "expected prior to be one of" in capsys.readouterr().err
