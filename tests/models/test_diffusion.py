"""Diffusion: the evidence of the chain, its estimate by one step, labels, and errors."""

import math

import pytest
import torch
from torch import nn
from zero_network import ZeroNetwork

from ppgen.diffusion import SCHEDULES, TIMES, make_schedule
from ppgen.models import Diffusion
from ppgen.models.diffusion import VARIANCES
from ppgen.tracing.sites import sample_sites
from ppgen.tracing.traces import Traces

NAMES = [*SCHEDULES, "learned"]


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_denoiser_of_gaussian_data_makes_the_bound_tight(name):
    torch.manual_seed(0)
    model = Diffusion((2,), network=ZeroNetwork(), schedule=name, steps=3).double()
    x = torch.randn(20_000, 2).double()
    with torch.no_grad():
        bound = -(model.ends(x) + model.rate(TIMES["stratified"](torch.zeros(len(x)).double()), x))
    gap = bound - torch.distributions.Normal(0, 1).log_prob(x).sum(-1)
    # within four standard errors (level 1e-4), plus the noise of the last step, which is part of the bound
    assert abs(gap.mean()) < 4 * gap.std() / len(x) ** 0.5 + 2 * model.schedule.sigma_min
    assert gap.std() / len(x) ** 0.5 < 0.15


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_in_continuous_time_has_the_closed_form(name):
    torch.manual_seed(0)
    model = Diffusion((1,), network=ZeroNetwork(), schedule=name, steps=None).double()
    x = torch.randn(20_000, 1).double()
    for u in (0.1, 0.5, 0.9):
        time = torch.full((len(x),), u).double()
        rate, snr = model.rate(time, x).detach(), model.schedule(time).log_snr[0].detach().exp()
        expected = (
            -0.5 * model.schedule.log_snr_derivative(time)[0].detach() * snr / (1 + snr)
        )  # as E|x - E[x | z]|^2 = 1 / (1 + SNR)
        # twenty-one comparisons, each within five standard errors
        assert float(rate.mean()) == pytest.approx(float(expected), abs=5 * float(rate.std()) / len(x) ** 0.5)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("levels", [None, 5])
def test_single_steps_estimate_the_terms_of_the_chain(variance, levels):
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
    for name, (a, b) in single.items():  # nine terms, each within 4.5 standard errors (level 1e-4)
        error = ((a.var() + b.var()) / n).sqrt()
        assert abs(a.mean() - b.mean()) < 4.5 * error + 1e-5, name


@pytest.mark.parametrize("option", [{"num_classes": 3}, {"context_dim": 2}])
def test_labels_and_contexts_are_used_and_dropped_in_training_only(option):
    torch.manual_seed(0)
    model = Diffusion((2,), hidden=(8,), label_dropout=0.5, **option)
    nn.init.normal_(model.denoiser.network.blocks[0].modulate.weight)
    nn.init.normal_(model.denoiser.network.blocks[0].layers[-1].weight)
    y = torch.zeros(400).long() if "num_classes" in option else torch.ones(400, 2)
    context = model._context(y)
    assert (model.eval()._drop_context(context) == context).all()
    share = (model.train()._drop_context(context) == 0).all(-1).float().mean()
    assert share == pytest.approx(0.5, abs=5 * 0.5 / 20)  # five standard errors
    model.check(torch.randn(400, 2), y)
    z, level = torch.randn(1, 2), make_schedule("cosine")(torch.tensor(0.5))
    other = torch.eye(context.shape[-1])[1:2]
    assert not torch.allclose(model.denoiser(z, level, context[:1]), model.denoiser(z, level, other))
    with pytest.raises(ValueError, match="expected"):
        model.check(torch.randn(4, 2))


def test_bad_data_are_refused():
    with pytest.raises(ValueError, match="build the model with their levels"):
        Diffusion((2,)).check(torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="finite numbers"):
        Diffusion((2,)).check(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match=r"integers 0 \.\. 4"):
        Diffusion((2,), levels=5).check(torch.full((3, 2), 7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
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
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
