"""Missing values in data: welcome where the program leaves them out, refused by name where it does not."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy import stats

import ppgen
from ppgen.training.missing import check_missing

X = torch.linspace(-1, 1, 12)
Y = (0.5 + X + torch.tensor([0.3, -0.7, 0.1, 0.9, -0.2, 0.4, -1.1, 0.6, -0.3, 0.2, -0.5, 0.8])).index_fill(
    0, torch.tensor([2, 7]), torch.nan
)
SEEN = ~Y.isnan()
NOISE = 0.7


def masked(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 12, subsample=x), poutine.mask(mask=~y.isnan()):
        pyro.sample("y", dist.Normal(b * x, NOISE), obs=y.nan_to_num())


def nan_masked(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 12, subsample=x):
        pyro.sample("y", dist.NanMaskedNormal(b * x, NOISE), obs=y)


def selected(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    x, y = x[~y.isnan()], y[~y.isnan()]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, NOISE), obs=y)


def exact() -> tuple[float, float, float]:
    """The evidence, and mean and standard deviation of b, of the rows that are not missing."""
    x, y = X[SEEN].double().numpy(), Y[SEEN].double().numpy()
    covariance = NOISE**2 * np.eye(len(x)) + np.outer(x, x)
    variance = 1 / (1 + x @ x / NOISE**2)
    return stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(y), variance * x @ y / NOISE**2, variance**0.5


@pytest.mark.parametrize("model", [masked, nan_masked, selected])
def test_a_posterior_from_data_with_missing_values(model):
    fit = ppgen.fit(model, "auto", (X, Y), progress=False)
    idata = fit.to_arviz(X, Y, draws=2000, chunk=2000)
    log_evidence, mean, sd = exact()
    assert idata.vi_stats.log_marginal.values == pytest.approx(log_evidence, abs=0.01)
    assert float(idata.posterior.b.mean()) == pytest.approx(mean, abs=0.03)  # 8000 draws: five standard errors
    assert float(idata.posterior.b.std()) == pytest.approx(sd, abs=0.03)
    assert ppgen.diagnostics.loo(idata).n_data_points == SEEN.sum()
    assert fit.diagnose(X, Y, idata=idata, starts=1).level == "good"


@pytest.mark.parametrize("model", [masked, nan_masked])
def test_a_guide_trained_on_batches_with_missing_values(model):
    """The validation set has some too. Close to the exact posterior after 200 steps."""
    fit = ppgen.fit(
        model,
        AutoNormal(model),
        (X, Y),
        validation=(X, Y),
        batch_size=6,
        steps=200,
        optim=lambda p: torch.optim.Adam(p, 0.05),
        progress=False,
        compile=False,
    )
    assert np.isfinite(fit.history["loss"]).all()
    idata = fit.to_arviz(X, Y, draws=1000, chunk=1000)
    log_evidence, mean, _ = exact()
    assert float(idata.posterior.b.mean()) == pytest.approx(mean, abs=0.15)
    assert idata.vi_stats.log_marginal.values == pytest.approx(log_evidence, abs=0.1)


def test_loss_of_the_observed_rows():
    """With b fixed at 1 the loss is minus the mean log density over all 12 rows."""
    fixed = poutine.condition(nan_masked, data={"b": torch.tensor(1.0)})
    loss = ppgen.Reconstruction().loss(fixed, lambda x, y: None, X, Y)
    log_p = stats.norm(X[SEEN], NOISE).logpdf(Y[SEEN]).sum() + stats.norm.logpdf(1.0)
    assert loss == pytest.approx(-log_p / 12, rel=1e-5)


def unmasked(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, NOISE), obs=y)


def unfilled(x, y):
    """It masks, but without a filler the gradient is NaN."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=~y.isnan()):
        pyro.sample("y", dist.Normal(b * x, NOISE), obs=y)


def unfilled_distribution(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, NOISE).mask(~y.isnan()).to_event(0), obs=y)


def of_a_latent(x, y):
    scale = pyro.sample("scale", dist.HalfNormal(y.std()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.NanMaskedNormal(x, scale), obs=y)


def checks_itself(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x, 1.0, validate_args=True), obs=y)


REFUSED = {
    "not masked": (unmasked, (X, Y), r"data\[1\]: 2 of 12 values.*row 2.*no density at 'y'.*nan_to_num"),
    "not filled": (unfilled, (X, Y), r"data\[1\].*no density at 'y'"),
    "not filled in a distribution": (unfilled_distribution, (X, Y), r"data\[1\].*no density at 'y'"),
    "a covariate": (masked, (Y, X), r"data\[0\]: 2 of 12.*no density at 'y'"),
    "a prior": (of_a_latent, (X, Y), r"data\[1\].*no density at 'scale'"),
    "infinite too": (masked, (X, Y.index_fill(0, torch.tensor([3]), torch.inf)), "2 NaN, 1 infinite"),
}


@pytest.mark.parametrize("guide", ["auto", "given"])
@pytest.mark.parametrize(("model", "data", "message"), REFUSED.values(), ids=REFUSED)
def test_missing_values_that_the_program_does_not_leave_out_are_refused(guide, model, data, message):
    with pytest.raises(ValueError, match=message):
        ppgen.fit(model, "auto" if guide == "auto" else AutoNormal(model), data, progress=False)


def test_a_distribution_that_checks_its_values_is_refused_alike():
    with pytest.raises(ValueError, match="no density at 'y'"):
        ppgen.fit(checks_itself, lambda x, y: None, (X, Y), progress=False)


def test_the_columns_of_frames_and_the_data_of_a_fit_are_named():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    frame = pd.DataFrame({"age": [1.0, 2.0, 3.0], "weight": [1.0, np.nan, 2.0]}, dtype=np.float32)
    with pytest.raises(ValueError, match=r"column 'weight'.*no density at 'x'"):
        ppgen.fit(model, "auto", frame, progress=False)
    with pytest.raises(ValueError, match=r"validation: .*column 'weight'.*no density at 'x'"):
        ppgen.fit(model, AutoNormal(model), frame.fillna(0.0), validation=frame, progress=False)
    fit = ppgen.fit(model, AutoNormal(model), frame.fillna(0.0), steps=1, progress=False, compile=False)
    for use in (fit.to_arviz, fit.diagnose, fit.breakdown):
        with pytest.raises(ValueError, match=r"data: .*column 'weight'.*no density at 'x'"):
            use(frame)


def test_models_of_the_package_refuse_missing_values():
    vae = ppgen.models.VAE((2,), latent_dim=1, hidden=(4,))
    with pytest.raises(ValueError, match="1 NaN"):
        ppgen.fit(vae.model, vae.guide, torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), progress=False)


def test_the_check_leaves_no_trace():
    """Neither in the random state, nor in the parameter store, nor in batch norm's statistics."""
    norm = torch.nn.BatchNorm1d(1)

    def model(x, y):
        pyro.module("norm", norm)
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.NanMaskedNormal(shift + norm(x[:, None])[:, 0], 1.0), obs=y)

    before, state = norm.running_mean.clone(), torch.get_rng_state()
    check_missing(model, (X, Y), (X, Y))
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.training
    assert "shift" not in pyro.get_param_store()


def test_a_match_with_data_that_has_missing_rows():
    """Missing rows have the weight zero, and no value that could make the loss NaN."""

    def model(x):
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.NanMaskedNormal(shift, 1.0), obs=x)

    x = torch.where(torch.arange(40) % 4 == 0, torch.nan, 2.0 + 0.1 * torch.randn(40))
    fit = ppgen.fit(
        model,
        lambda x: None,
        x,
        loss=ppgen.match(ppgen.views.data("x"), ppgen.views.generated("x"), ppgen.metrics.MMD()),
        optim=lambda p: torch.optim.Adam(p, 0.1),
        steps=100,
        progress=False,
        compile=False,
    )
    assert np.isfinite(fit.history["loss"]).all()
