"""Flows as prior and posterior of a VAE: the laws of every flow, and the programs that hold them."""

import functools
import math

import pyro
import pytest
import torch
from pyro import poutine

import ppgen
from ppgen.flows import FLOWS
from ppgen.models import VAE
from ppgen.models.latent_flow import GaussianFlow, make_flow
from ppgen.report import figures, report_of_run
from ppgen.runs.cli import main
from ppgen.runs.run import Run
from ppgen.tracing.particles import log_weights

OPTIONS = {"latent_dim": 2, "hidden": (8,), "flow_hidden": (8,)}
# flows that do not start at the identity, and which lose digits on the way back
ELSEWHERE = ("naf", "sum_of_squares", "bernstein")
LOSSY = dict.fromkeys((*ELSEWHERE, "continuous", "planar", "radial", "sylvester", "residual"), 0.001)


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


def moved(model: VAE) -> VAE:
    """Its flows no longer at their start."""
    with torch.no_grad():
        for flow in (model.latent_flow, getattr(model.encoder.head, "flow", None)):
            for parameter in [] if flow is None else flow.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", FLOWS)
def test_a_posterior_scores_its_draws_as_it_scores_any(name):
    model, x = moved(build(posterior=name)), torch.randn(5, 3)
    distribution = model.encode(x).expand((4, 5))
    with torch.no_grad():
        z = distribution.rsample()
        near = LOSSY.get(name, 1e-4)
        torch.testing.assert_close(distribution.log_prob(z), distribution.log_prob(z.clone()), atol=near, rtol=near)
        assert distribution.log_prob(z).shape == (4, 5)
        assert torch.equal(model.encode(x).center, model.encode(x).center)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_start_as_the_gaussians(name):
    torch.manual_seed(0)
    bent, x = build(posterior=name, prior=name), torch.randn(5, 3)
    distribution = bent.encode(x)
    gaussian = torch.distributions.Independent(torch.distributions.Normal(distribution.loc, distribution.scale), 1)
    z = torch.randn(5, 2)
    same = torch.allclose(
        distribution.log_prob(distribution.loc + distribution.scale * z),
        gaussian.log_prob(distribution.loc + distribution.scale * z),
        atol=1e-3,
    )
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert same == torch.allclose(bent.prior(5).log_prob(z), prior, atol=1e-3) == (name not in ELSEWHERE)


def test_a_density_is_remembered_for_its_own_draw_alone():
    model, x = moved(build(posterior="iaf")), torch.randn(5, 3)
    distribution = model._posterior(x, None)
    calls = []
    back = distribution.distribution.log_prob
    distribution.distribution.log_prob = lambda value: calls.append(value) or back(value)
    z = distribution.rsample()
    remembered = distribution.log_prob(z)
    assert not calls
    weights = list(model.encoder.parameters())
    ours = torch.autograd.grad(remembered.sum(), weights, retain_graph=True)
    theirs = torch.autograd.grad(distribution.log_prob(z.clone()).sum(), weights, retain_graph=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert len(calls) == 1
    with torch.no_grad():
        distribution.log_prob(z)  # drawn with gradients, scored without
    first = distribution.rsample()
    distribution.rsample()
    distribution.log_prob(first)  # not the last
    assert len(calls) == 3
    drawn = distribution.sample()
    assert distribution.log_prob(drawn).requires_grad  # the law's own parameters
    with torch.no_grad():
        quiet = distribution.sample()
        expected = distribution.log_prob(quiet).clone()
        torch.testing.assert_close(
            distribution.log_prob(quiet),
            back((quiet - distribution.loc) / distribution.scale) - distribution.scale.log().sum(-1),
        )
        quiet += 1.0  # in place: another value, the same tensor
        assert (distribution.log_prob(quiet) - expected).abs().min() > 1e-4


@pytest.mark.parametrize(("prior", "posterior"), [("maf", "iaf"), ("realnvp", "gaussian"), ("gaussian", "nsf")])
@pytest.mark.parametrize("classes", [None, 2])
def test_programs_with_flows_are_laws_that_train(prior, posterior, classes):
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
    for made in (model.sample(7, *(a[:7] for a in args[1:])), model.reconstruct(*(a[:7] for a in args))):
        assert made.shape == (7, 3)
        assert made.isfinite().all()
    tight = model.log_evidence(*args, particles=50).mean()
    assert tight > -fit.breakdown(*args)["Reconstruction"] - fit.breakdown(*args)["Rate"] - 0.3
    again = type(model)(**model.config)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


def test_the_rate_of_a_flow_is_that_of_its_draws():
    """At the start both laws are Gaussians, whose KL is known; the draws' mean lies within 5 standard errors."""
    model, x = build(prior="maf", posterior="iaf"), torch.randn(4, 3)
    distribution = model.encode(x)
    gaussian = torch.distributions.Independent(torch.distributions.Normal(distribution.loc, distribution.scale), 1)
    exact = torch.distributions.kl_divergence(gaussian, build().prior(4)).mean()
    pyro.set_rng_seed(0)
    values = torch.tensor([ppgen.Rate().loss(model.model, model.guide, x) for _ in range(100)])
    assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(100)
    assert values.std() > 0  # by draws, as there is no closed form


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
def test_bad_options_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_flow_is_made_of_the_layers_asked_for():
    two, four = (make_flow("maf", 2, option="prior", layers=n, hidden=(8,)) for n in (2, 4))
    assert 2 * len(list(two.parameters())) == len(list(four.parameters()))
    assert isinstance(build(posterior="maf").encode(torch.zeros(1, 3)), GaussianFlow)


def noting(seen, called, draw):
    def noted(*args, **options):
        seen[called] = args, options
        return draw(*args, **options)

    return noted


def test_the_report_shows_the_prior_that_there_is(monkeypatch):
    data = ppgen.data.load("moons", size=200)
    model = moved(VAE((2,), latent_dim=2, hidden=(8,), prior="realnvp"))
    fit = ppgen.fit(model.model, model.guide, (data.train.x,), loss=ppgen.recipes.vae(), steps=3, progress=False)
    seen = {}
    for name in ("latent_plane", "latent_walk"):
        monkeypatch.setattr(figures, name, noting(seen, name, getattr(figures, name)))
    report = report_of_run(fit, model, data, title="t")
    section = next(s for s in report.sections if s.title == "Latent codes")
    assert "N(0, I)" not in section.text
    assert seen["latent_plane"][1]["prior"].shape == (2000, 2)
    (decode,), options = seen["latent_walk"]
    assert options["name"] == "u"
    u = torch.tensor([[0.5, -1.0]])
    expected = ppgen.models.mean(model.decode(model.prior(1).transform(u)))
    torch.testing.assert_close(
        torch.as_tensor(decode(u.numpy())), torch.as_tensor(data.scaler.inverse(expected.numpy()))
    )


def test_the_command_line_takes_flows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.report.report_of_run", lambda *_, title, **__: ppgen.report.Report(title))
    quick = ["--fit.steps", "4", "--model.hidden", "[8]", "--draws", "0", "--particles", "4", "--data.size", "300"]
    flows = ["--model.prior", "realnvp", "--model.posterior", "iaf", "--model.flow_hidden", "[8]", "--out", "run"]
    assert main(["train", "vae", "digits", *quick, *flows]) == 0
    model = Run.load("run").model
    assert isinstance(model.encode(torch.zeros(2, 1, 8, 8)), GaussianFlow)
    assert main(["train", "vae", "digits", *quick, "--model.prior", "nope", "--out", "other"]) == 1
    assert "expected prior to be one of" in capsys.readouterr().err
