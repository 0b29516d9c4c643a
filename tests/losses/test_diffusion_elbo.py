"""`DiffusionELBO`: its mean, its weights, and training by it."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from zero_network import ZeroNetwork

import ppgen
from ppgen.diffusion import SCHEDULES, make_schedule
from ppgen.losses.diffusion_elbo import WEIGHTINGS
from ppgen.models import Diffusion

FINITE = [name for name in (*SCHEDULES, "learned") if name != "straight"]


def schedule(name):
    return make_schedule(name).double().requires_grad_(False)


def test_it_has_the_same_mean_as_the_elbo_of_the_chain():
    torch.manual_seed(0)
    model = Diffusion((2,), steps=8, hidden=(16,), options={"sigma_min": 0.2, "sigma_max": 20.0}).eval()
    x = torch.randn(2000, 2)
    one = torch.tensor([ppgen.DiffusionELBO().loss(model.model, model.guide, x) for _ in range(20)])
    whole = torch.tensor([ppgen.ELBO().loss(model.model, model.guide, x) for _ in range(5)])
    stock = Trace_ELBO().loss(model.model, model.guide, x) / len(x)
    error = float((one.var() / 20 + whole.var() / 5).sqrt())
    assert float(one.mean()) == pytest.approx(float(whole.mean()), abs=5 * error)
    assert stock == pytest.approx(float(whole.mean()), abs=6 * float(whole.std()))


def test_stratified_times_reduce_the_variance():
    torch.manual_seed(0)
    model = Diffusion((2,), network=ZeroNetwork(), steps=None)
    x = torch.randn(64, 2)
    spread = {}
    for times in ("independent", "stratified"):
        loss = ppgen.DiffusionELBO(times=times)
        spread[times] = torch.tensor([loss.loss(model.model, model.guide, x) for _ in range(300)]).std()
    assert spread["stratified"] < spread["independent"]


@pytest.mark.parametrize("name", FINITE)
def test_weightings_are_those_of_the_errors_they_are_named_after(name):
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


def test_it_needs_the_model_of_a_diffusion():
    model = ppgen.models.VAE((2,))
    with pytest.raises(TypeError, match="must be that of a diffusion"):
        ppgen.DiffusionELBO().loss(model.model, model.guide, torch.zeros(3, 2))


def test_only_the_unweighted_loss_is_a_negative_elbo():
    assert str(ppgen.DiffusionELBO()) == "DiffusionELBO"
    assert str(2 * ppgen.DiffusionELBO("simple")) == "2 * DiffusionLoss(simple)"
    assert ppgen.DiffusionELBO().is_negative_elbo
    assert not ppgen.DiffusionELBO("edm").is_negative_elbo


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"steps": None}, ppgen.DiffusionELBO),
        ({"steps": 20, "num_classes": 2, "schedule": "straight"}, partial(ppgen.DiffusionELBO, "edm")),
    ],
)
def test_compiled_steps_equal_eager_steps(options, loss):
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


def test_training_increases_the_elbo_of_the_chain():
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


@pytest.mark.parametrize(("option", "value"), [("weighting", "best"), ("times", "now")])
def test_bad_options_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} must be one of"):
        ppgen.DiffusionELBO(**{option: value})
