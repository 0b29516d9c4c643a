"""Diffusion: laws over every schedule, prediction and weighting; the chain's evidence and its estimate by one step."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppgen
from ppgen.diffusion import (
    PREDICTION_TYPES,
    SCHEDULES,
    TIMES,
    Denoiser,
    LearnedSchedule,
    NoiseLevel,
    Schedule,
    bridge,
    make_schedule,
)
from ppgen.losses.diffusion_elbo import WEIGHTINGS
from ppgen.models import Diffusion
from ppgen.models.diffusion import VARIANCES
from ppgen.tracing.sites import sample_sites
from ppgen.tracing.traces import Traces

NAMES = [*SCHEDULES, "learned"]
FINITE = [name for name in NAMES if name != "straight"]
T = torch.linspace(0, 1, 101, dtype=torch.float64)


class Zero(nn.Module):
    """A network that says nothing: under predicts="edm" the posterior mean of data N(0, d^2 I)."""

    def __init__(self, shape=()):
        super().__init__()
        self.shape = shape
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, z, context):
        return torch.zeros_like(z) + self.none


def schedule(name):
    return make_schedule(name).double().requires_grad_(False)


# schedules


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_monotone_and_end_where_they_say(name):
    made = schedule(name)
    level = made(T)
    assert (level.log_snr.diff() < 0).all()
    assert (level.noise.diff() > 0).all()
    assert (level.signal.diff() <= 1e-12).all()
    ratio = level.noise / level.signal
    assert ratio[0] == pytest.approx(made.sigma_min, rel=1e-6)
    assert ratio[-1] == pytest.approx(made.sigma_max, rel=1e-6)
    inner = slice(0, -1 if math.isinf(made.sigma_max) else None)
    torch.testing.assert_close(2 * (level.signal / level.noise).log()[inner], level.log_snr[inner])


@pytest.mark.parametrize("name", NAMES)
def test_options_move_the_ends(name):
    made = make_schedule(name, sigma_min=0.02, sigma_max=None if name == "straight" else 30.0).double()
    level = made.requires_grad_(False)(T)
    assert level.noise[0] / level.signal[0] == pytest.approx(0.02, rel=1e-6)
    if name != "straight":
        assert level.noise[-1] / level.signal[-1] == pytest.approx(30.0, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_those_of_the_log_ratio(name):
    made, t, h = schedule(name), T[5:95], 1e-6
    difference = (made(t + h).log_snr - made(t - h).log_snr) / (2 * h)
    torch.testing.assert_close(made.log_snr_derivative(t).detach(), difference, rtol=1e-5, atol=1e-5)


def test_some_paths_keep_the_variance_and_some_the_signal():
    for name in ("linear", "cosine", "learned"):
        level = schedule(name)(T)
        torch.testing.assert_close(level.signal**2 + level.noise**2, torch.ones_like(T))
    for name in ("exponential", "karras"):
        assert (schedule(name)(T).signal == 1).all()
    level = schedule("straight")(T)
    torch.testing.assert_close(level.signal + level.noise, torch.ones_like(T))


def test_linear_is_the_schedule_of_ho_et_al():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    signal = (1 - beta).cumprod(0).sqrt()
    made = schedule("linear")
    # on its thousand steps, from s = 0.01 on: their product and our integral differ by a part in a hundred at most
    torch.testing.assert_close(
        made(torch.linspace(0, 1, 1000, dtype=torch.float64)).signal, signal, rtol=0.02, atol=2e-3
    )


def test_a_learned_schedule_moves():
    made = LearnedSchedule()
    before = made(T.float()).log_snr
    before.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_bridge_leads_from_one_marginal_to_the_other(name):
    made = schedule(name)
    for r, t in ((0.0, 1.0), (0.2, 0.3), (0.0, 0.5), (0.9, 1.0)):
        early, late = made(torch.tensor(r).double()), made(torch.tensor(t).double())
        from_z, from_x, scale = bridge(early, late)
        torch.testing.assert_close(from_z * late.signal + from_x, early.signal)
        torch.testing.assert_close((from_z * late.noise).square() + scale**2, early.noise.square())


def test_a_bridge_has_the_variance_of_ho_et_al():
    made = schedule("linear")
    early, late = made(torch.tensor(0.4).double()), made(torch.tensor(0.41).double())
    beta = 1 - (late.signal / early.signal) ** 2
    tilde = early.noise**2 / late.noise**2 * beta
    torch.testing.assert_close(bridge(early, late).scale, tilde.sqrt())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Schedule("quadratic"), "expected schedule to be one of"),
        (lambda: Schedule("cosine", sigma_min=2.0, sigma_max=1.0), "expected 0 < sigma_min < sigma_max"),
        (lambda: Schedule("straight", sigma_max=5.0), "ends in pure noise"),
        (
            lambda: Diffusion((2,), schedule="exponential", options={"sigma_max": 2.0}),
            "the schedule does not end in noise",
        ),
        (lambda: Diffusion((2,), schedule="straight", prediction_type="noise"), "divides by the signal"),
        (lambda: Diffusion((2,), prediction_type="nothing"), "expected prediction_type to be one of"),
        (lambda: Diffusion((2,), variance="huge"), "expected variance to be one of"),
        (lambda: Diffusion((2,), steps=0), "expected steps of at least 1"),
        (lambda: Diffusion((2,), levels=1), "expected levels of at least 2"),
        (lambda: Diffusion((2,), num_classes=3, context_dim=2), "got both"),
        (lambda: Diffusion((2,), label_dropout=1.0), "expected label_dropout"),
        (lambda: Diffusion((2,), network="unet"), "expected an image's event shape"),
        (lambda: Diffusion((2,), options={"attention": True}), "no such option"),
        (lambda: Diffusion((2,), network=nn.Linear(2, 2), hidden=(3,)), "those of a network by name"),
        (lambda: Diffusion((2,), hidden=(3, 4)), "all the same"),
        (lambda: Diffusion((2,), sigma_data=0.0), "expected sigma_data > 0"),
        (lambda: ppgen.DiffusionELBO("best"), "weighting must be one of"),
        (lambda: ppgen.DiffusionELBO(times="now"), "times must be one of"),
    ],
)
def test_bad_options_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# denoisers


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", FINITE)
def test_whatever_a_network_predicts_the_posterior_mean_is_the_same(prediction_type, name):
    torch.manual_seed(0)
    level, d = schedule(name)(torch.rand(50).double()), 0.7
    x, e = d * torch.randn(50, 3).double(), torch.randn(50, 3).double()
    a, s, _ = level.unsqueeze_like(x)
    p, q = PREDICTION_TYPES[prediction_type](a, s, d)

    class Oracle(nn.Module):
        def forward(self, z, context):
            return p * x + q * e

    denoiser = Denoiser(Oracle(), (3,), prediction_type=prediction_type, sigma_data=d)
    torch.testing.assert_close(denoiser(a * x + s * e, level), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_denoiser_minds_the_noise_level_alone_and_not_the_scale_of_the_path(prediction_type):
    torch.manual_seed(0)
    model = Diffusion((3,), prediction_type=prediction_type, hidden=(16,)).double()
    level = schedule("cosine")(torch.rand(20).double())
    z, c = torch.randn(20, 3).double(), 1 / (level.signal + level.noise)
    scaled = NoiseLevel(level.signal * c, level.noise * c, level.log_snr)
    torch.testing.assert_close(model.denoiser(z, level), model.denoiser(z * c[:, None], scaled))


def test_a_denoiser_of_another_shape_says_so():
    class Wrong(nn.Module):
        def forward(self, z, context):
            return z[..., :1]

    denoiser = Denoiser(Wrong(), (3,))
    with pytest.raises(ValueError, match=r"expected the network to return \(5, 3\) .* got \(5, 1\)"):
        denoiser(torch.zeros(5, 3), schedule("cosine")(torch.rand(5)))


def test_rates_of_one_time_serve_all_rows_and_leading_dimensions():
    torch.manual_seed(0)
    model = Diffusion((3,), hidden=(16,))
    one, z = make_schedule("cosine")(torch.tensor(0.3)), torch.randn(4, 5, 3)
    many = NoiseLevel(*(rate.expand(4, 5) for rate in one))
    torch.testing.assert_close(model.denoiser(z, one), model.denoiser(z, many))


# the chain


def exact(x):
    return torch.distributions.Normal(0, 1).log_prob(x).sum(-1)


@pytest.mark.parametrize("name", NAMES)
def test_of_gaussian_data_the_evidence_of_the_exact_denoiser_is_the_density(name):
    torch.manual_seed(0)
    model = Diffusion((2,), network=Zero(), schedule=name, steps=3).double()
    x = torch.randn(20_000, 2).double()
    with torch.no_grad():
        bound = -(model.ends(x) + model.rate(TIMES["stratified"](torch.zeros(len(x)).double()), x))
    gap = bound - torch.distributions.Normal(0, 1).log_prob(x).sum(-1)
    # within four standard errors (a level of 1e-4), and the noise that the last step leaves, which the evidence has
    assert abs(gap.mean()) < 4 * gap.std() / len(x) ** 0.5 + 2 * model.schedule.sigma_min
    assert gap.std() / len(x) ** 0.5 < 0.15


@pytest.mark.parametrize("name", NAMES)
def test_in_continuous_time_the_rate_is_that_in_closed_form(name):
    torch.manual_seed(0)
    model = Diffusion((1,), network=Zero(), schedule=name, steps=None).double()
    x = torch.randn(20_000, 1).double()
    for u in (0.1, 0.5, 0.9):
        time = torch.full((len(x),), u).double()
        rate, snr = model.rate(time, x).detach(), model.schedule(time).log_snr[0].detach().exp()
        expected = (
            -0.5 * model.schedule.log_snr_derivative(time)[0].detach() * snr / (1 + snr)
        )  # as E|x - E[x | z]|^2 = 1 / (1 + SNR)
        # twenty-one such, each within five standard errors
        assert float(rate.mean()) == pytest.approx(float(expected), abs=5 * float(rate.std()) / len(x) ** 0.5)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("levels", [None, 5])
def test_one_step_estimates_the_evidence_of_the_chain_term_by_term(variance, levels):
    torch.manual_seed(0)
    steps, n = 8, 4000
    options = {"schedule": "cosine", "hidden": (16,), "options": {"sigma_min": 0.2, "sigma_max": 20.0}}
    model = Diffusion((2,), steps=steps, variance=variance, levels=levels, **options).eval()
    x = torch.randn(1, 2).expand(n, 2) if levels is None else torch.tensor([[1, 3]]).expand(n, 2)
    with torch.no_grad():
        draws = Traces(model.model, model.guide, (x,))
        model_trace, guide_trace = draws.with_log_probs
        whole = {name: -site["log_prob"] for name, site in sample_sites(model_trace).items()}
        for name, site in sample_sites(guide_trace).items():
            whole[name] = whole[name] + site["log_prob"]
        single = {"ends": (whole["x"] + whole[f"z_{steps}"], model.ends(x))}
        for i in range(1, steps + 1):
            u = torch.full((n,), (i - 0.5) / steps)
            single[f"z_{i - 1}"] = whole[f"z_{i - 1}"], model.rate(u, x) / steps
    for name, (a, b) in single.items():  # nine terms, each within 4.5 standard errors: a level of 1e-4
        error = ((a.var() + b.var()) / n).sqrt()
        assert abs(a.mean() - b.mean()) < 4.5 * error + 1e-5, name


def test_the_stepwise_objective_has_the_mean_of_the_evidence():
    torch.manual_seed(0)
    model = Diffusion((2,), steps=8, hidden=(16,), options={"sigma_min": 0.2, "sigma_max": 20.0}).eval()
    x = torch.randn(2000, 2)
    one = torch.tensor([ppgen.DiffusionELBO().loss(model.model, model.guide, x) for _ in range(20)])
    whole = torch.tensor([ppgen.ELBO().loss(model.model, model.guide, x) for _ in range(5)])
    stock = Trace_ELBO().loss(model.model, model.guide, x) / len(x)
    error = float((one.var() / 20 + whole.var() / 5).sqrt())
    assert float(one.mean()) == pytest.approx(float(whole.mean()), abs=5 * error)
    assert stock == pytest.approx(float(whole.mean()), abs=6 * float(whole.std()))


@pytest.mark.parametrize("times", TIMES)
def test_times_are_uniform(times):
    torch.manual_seed(0)
    u = TIMES[times](torch.zeros(20_001))
    assert ((u >= 0) & (u <= 1)).all()
    # twenty equal parts, each share within five deviations of independent draws
    assert (torch.histc(u, 20, 0, 1) / len(u) - 0.05).abs().max() < 5 * (0.05 * 0.95 / len(u)) ** 0.5


def test_stratified_times_make_the_estimate_less_noisy():
    torch.manual_seed(0)
    model = Diffusion((2,), network=Zero(), steps=None)
    x = torch.randn(64, 2)
    spread = {}
    for times in ("independent", "stratified"):
        loss = ppgen.DiffusionELBO(times=times)
        spread[times] = torch.tensor([loss.loss(model.model, model.guide, x) for _ in range(300)]).std()
    assert spread["stratified"] < spread["independent"]


@pytest.mark.parametrize("name", FINITE)
def test_weights_are_of_the_errors_that_they_name(name):
    torch.manual_seed(0)
    level = schedule(name)(torch.rand(30).double())
    x, e = torch.randn(30, 3).double(), torch.randn(30, 3).double()
    a, s, _ = level.unsqueeze_like(x)
    z, guess = a * x + s * e, x + 0.1 * torch.randn(30, 3).double()
    noise = (z - a * guess) / s
    error = (x - guess).square().sum(-1)
    named = {
        "simple": (e - noise).square().sum(-1),
        "min_snr": ((e - noise).square().sum(-1) * (5 / level.log_snr.exp()).clamp(max=1)),
        "velocity": ((e - x) - (noise - guess)).square().sum(-1),
        "edm": error * ((s / a).square() + 1)[:, 0] / (s / a).square()[:, 0],
    }
    assert set(named) == set(WEIGHTINGS)
    for weighting, expected in named.items():
        torch.testing.assert_close(WEIGHTINGS[weighting].weight(level.log_snr, 1.0) * error, expected)


def test_stepwise_evidence_asks_for_a_chain():
    model = ppgen.models.VAE((2,))
    with pytest.raises(TypeError, match="is to be a chain's"):
        ppgen.DiffusionELBO().loss(model.model, model.guide, torch.zeros(3, 2))


def test_names_say_what_is_no_evidence():
    assert str(ppgen.DiffusionELBO()) == "DiffusionELBO"
    assert str(2 * ppgen.DiffusionELBO("simple")) == "2 * StepwiseError(simple)"
    assert ppgen.DiffusionELBO().is_negative_elbo
    assert not ppgen.DiffusionELBO("edm").is_negative_elbo


@pytest.mark.parametrize("given", [{"num_classes": 3}, {"context_dim": 2}])
def test_labels_and_contexts_reach_the_network_and_are_dropped_in_training_alone(given):
    torch.manual_seed(0)
    model = Diffusion((2,), hidden=(8,), label_dropout=0.5, **given)
    nn.init.normal_(model.denoiser.network.blocks[0].modulate.weight)
    nn.init.normal_(model.denoiser.network.blocks[0].layers[-1].weight)
    y = torch.zeros(400).long() if "num_classes" in given else torch.ones(400, 2)
    context = model._context(y)
    assert (model.eval()._drop_context(context) == context).all()
    share = (model.train()._drop_context(context) == 0).all(-1).float().mean()
    assert share == pytest.approx(0.5, abs=5 * 0.5 / 20)  # five deviations
    model.check(torch.randn(400, 2), y)
    z, level = torch.randn(1, 2), make_schedule("cosine")(torch.tensor(0.5))
    other = torch.eye(context.shape[-1])[1:2]
    assert not torch.allclose(model.denoiser(z, level, context[:1]), model.denoiser(z, level, other))
    with pytest.raises(ValueError, match="expected"):
        model.check(torch.randn(4, 2))


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="build the model with their levels"):
        Diffusion((2,)).check(torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="finite numbers"):
        Diffusion((2,)).check(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match=r"integers 0 \.\. 4"):
        Diffusion((2,), levels=5).check(torch.full((3, 2), 7))


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"steps": None}, ppgen.DiffusionELBO),
        ({"steps": 20, "num_classes": 2, "schedule": "straight"}, partial(ppgen.DiffusionELBO, "edm")),
    ],
)
def test_compiled_steps_are_eager_ones(options, loss):
    x, y = torch.randn(64, 2), torch.arange(64) % 2
    rows = (x, y) if "num_classes" in options else (x,)
    losses = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        model = Diffusion((2,), hidden=(8,), **options)
        svi = ppgen.SVI(model.model, model.guide, partial(torch.optim.Adam, lr=1e-3), loss(), compile=compiled)
        losses.append([svi.step(*rows) for _ in range(12)])
        assert bool(svi.compiled_step.compiled_shapes) == compiled
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5)


def test_training_by_steps_raises_the_evidence_of_the_chain():
    pyro.set_rng_seed(0)
    x = torch.randn(256, 2) * torch.tensor([0.3, 1.0]) + torch.tensor([1.0, 0.0])
    model = Diffusion((2,), steps=10, variance="learned", hidden=(32,))
    before = ppgen.ELBO().loss(model.model, model.guide, x)
    ppgen.fit(
        *(model.model, model.guide, x),
        loss=ppgen.DiffusionELBO(),
        optim=partial(torch.optim.Adam, lr=5e-3),
        steps=150,
        progress=False,
        compile=False,
    )
    after = ppgen.ELBO().loss(model.eval().model, model.guide, x)
    assert after < before - 0.3
