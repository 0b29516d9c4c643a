"""Leave-one-out and its PIT against conjugate models, with exact and with mildly wrong guides."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, N, untrained_fit
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

import ppgen
from ppgen.diagnostics import loo, loo_pit
from ppgen.utils import arviz_versions as versions

KINDS = ("exact", "wide", "moved")


@pytest.fixture(scope="module")
def idata():
    """At the posterior, and at guides that are mildly wrong."""
    torch.manual_seed(0)
    kinds = {"exact": {}, "wide": {"widen": 1.3}, "moved": {"shift": 0.5, "widen": 1.1}}
    return {name: Conjugate(**options).to_arviz() for name, options in kinds.items()}


def pointwise(found):
    return found.elpd_i if versions.IS_NEW else found.loo_i


def elpd(found):
    return float(pointwise(found).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_leave_one_out_is_that_of_the_conjugate_model(idata, kind):
    """Each datum within .05 nats: five standard errors or more of 4000 draws (a relative .5 / sqrt(4000) each)."""
    means, sds = Conjugate().left_out
    found = loo(idata[kind])
    expected = stats.norm(means, sds).logpdf(Conjugate().y)
    np.testing.assert_allclose(pointwise(found).values, expected, atol=0.05)
    assert not found.warning
    assert found.pareto_k.max() < 0.6
    assert elpd(found) == pytest.approx(expected.sum(), abs=0.2)


def test_without_the_guides_correction_leave_one_out_would_be_wrong(idata):
    """What ArviZ does to draws as though they were the posterior's is off by more than our error above."""
    means, sds = Conjugate().left_out
    expected = stats.norm(means, sds).logpdf(Conjugate().y).sum()
    assert abs(elpd(az.loo(idata["moved"], pointwise=True)) - expected) > 1
    theirs, ours = az.loo(idata["exact"], pointwise=True), loo(idata["exact"])
    assert elpd(theirs) == pytest.approx(elpd(ours), abs=1e-3)
    assert [theirs.n_samples, theirs.n_data_points, theirs.scale] == [ours.n_samples, ours.n_data_points, ours.scale]
    p, se = ("p", "se") if versions.IS_NEW else ("p_loo", "se")
    assert getattr(theirs, p) == pytest.approx(getattr(ours, p), abs=0.1)
    assert getattr(theirs, se) == pytest.approx(getattr(ours, se), abs=1e-3)
    assert str(theirs).splitlines()[1] in str(ours)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 under pandas 3.1
def test_compare_accepts_the_results(idata):
    table = az.compare({kind: loo(idata[kind]) for kind in KINDS})
    assert set(table.index) == set(KINDS)
    assert np.ptp(table["elpd" if versions.IS_NEW else "elpd_loo"]) < 0.3


def heavy(rng):
    return 2.0 * rng.standard_t(2.0, size=N)


def test_loo_pit_is_uniform_only_for_the_right_model():
    """Kolmogorov-Smirnov at level .01 over data of six seeds together: right, then errors of three times the scale."""
    torch.manual_seed(0)
    good = [loo_pit(Conjugate(seed=s, shift=0.3, widen=1.1).to_arviz(1000)).values for s in range(6)]
    wrong = [loo_pit(Conjugate(seed=s, widen=1.1, noise=heavy).to_arviz(1000)).values for s in range(6)]
    assert stats.kstest(np.concatenate(good), "uniform").pvalue > 0.01
    assert stats.kstest(np.concatenate(wrong), "uniform").pvalue < 1e-3


def test_loo_pit_is_exact_for_the_conjugate_model(idata):
    """Within .06, four standard errors of a share of 4000 draws."""
    means, sds = Conjugate().left_out
    found = loo_pit(idata["moved"])
    assert found.dims == ("data",)
    np.testing.assert_allclose(found.values, stats.norm(means, sds).cdf(Conjugate().y), atol=0.06)


def test_restarts_are_pooled_and_named():
    torch.manual_seed(0)
    pair = Conjugate(widen=1.2)
    idata = untrained_fit(pair.model, pair.guide, *pair.data, chains=2).to_arviz(*pair.data, draws=200)
    assert loo(idata).n_samples == 400
    assert loo(idata, chain=1).n_samples == 200
    with pytest.raises(ValueError, match=r"chain: expected one of \[0, 1\], got 2"):
        loo(idata, chain=2)
    with pytest.raises(ValueError, match="log_likelihood has no variable 'z'; there are 'y'"):
        loo(idata, var_name="z")


def test_latents_of_each_row_must_be_integrated_out():
    """y_i ~ N(w + z_i, 1), z_i ~ N(0, 1), so that y_i given w is N(w, sqrt 2)."""

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(w + z, 1.0), obs=y)

    def guide(y):
        n = len(y)
        precision = 1 + n / 2
        w = pyro.sample("w", dist.Normal(y.sum() / 2 / precision, 1.1 * precision**-0.5))
        with pyro.plate("data", n):
            pyro.sample("z", dist.Normal((y - w) / 2, 0.8))

    torch.manual_seed(0)
    y = 2**0.5 * torch.randn(12, dtype=torch.float64)
    fit = untrained_fit(model, guide, y)
    with pytest.raises(ValueError, match=r"each row has latents of its own.*integrate=100"):
        loo(fit.to_arviz(y, draws=100))
    idata = fit.to_arviz(y, draws=500, chunk=500, integrate=200, predictive=False)
    w = idata.posterior.w.values[..., None]
    exact = stats.norm(w, 2**0.5).logpdf(y.numpy())
    np.testing.assert_allclose(idata.log_likelihood.y.values, exact, atol=0.2)  # weights of relative sd about .5
    assert np.abs(idata.log_likelihood.y.values - exact).mean() < 0.03
    # the joint guide's weights have a spread of their own, of 12 latents, which leave-one-out now carries along
    assert np.isfinite(elpd(loo(idata)))
    full = AutoMultivariateNormal(model)
    joint = ppgen.fit(model, full, y.float(), steps=2, progress=False)
    with pytest.raises(ValueError, match="the guide's 'z' follows from latents outside of the plate 'data'"):
        joint.to_arviz(y.float(), draws=25, integrate=2)
    mean_field = ppgen.fit(model, AutoNormal(model), y.float(), steps=2, progress=False)
    assert "y" in mean_field.to_arviz(y.float(), draws=25, integrate=2).log_likelihood


def test_leave_one_out_needs_global_latents():
    def model(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    y = torch.randn(8)
    idata = untrained_fit(model, lambda y: None, y).to_arviz(y, draws=30)
    with pytest.raises(ValueError, match="needs latents that all rows share"):
        loo(idata)


def truncated(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.factor("above_zero", -torch.special.log_ndtr(mean))


def censored(y):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.factor("log_density", torch.where(y < 2, rate.log() - rate * y, -rate * y))


@pytest.mark.slow
def test_a_likelihood_that_a_factor_holds_is_named():
    y = torch.linspace(0.1, 2.0, 12)
    fit = ppgen.fit(truncated, AutoNormal(truncated), y, steps=2, compile=False, progress=False)
    idata = fit.to_arviz(y, draws=100)
    with pytest.warns(UserWarning, match=r"lacks the pyro\.factor 'above_zero'.*distribution whose log_prob"):
        ppgen.diagnostics.loo(idata)
    idata = ppgen.fit(censored, "auto", y, progress=False).to_arviz(y, draws=100)
    assert float(idata.posterior["rate"].mean()) == pytest.approx(12 / (1 + float(y.sum())), abs=0.1)  # Gamma(1+11, ..)
    with pytest.raises(ValueError, match=r"lacks the pyro\.factor 'log_density'"):
        ppgen.diagnostics.loo(idata)
