"""Leave-one-out, its PIT, evidence and resampling against conjugate models, with exact and with mildly wrong guides."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, N, P, as_fit
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

import ppgen
from ppgen.diagnostics import evidence, importance_summary, khat_threshold, loo, loo_pit, resample, rhat
from ppgen.posterior.importance import moment_shifts, smooth
from ppgen.tracing.particles import log_weights
from ppgen.utils import arviz_versions as versions


@pytest.fixture(scope="module")
def idata():
    """At the posterior, and at guides that are mildly wrong."""
    torch.manual_seed(0)
    kinds = {"exact": {}, "wide": {"widen": 1.3}, "moved": {"shift": 0.5, "widen": 1.1}}
    return {name: Conjugate(**options).to_arviz() for name, options in kinds.items()}


KINDS = ("exact", "wide", "moved")


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
def test_results_go_into_compare(idata):
    table = az.compare({kind: loo(idata[kind]) for kind in KINDS})
    assert set(table.index) == set(KINDS)
    assert np.ptp(table["elpd" if versions.IS_NEW else "elpd_loo"]) < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_within_its_interval(idata, kind):
    """By four standard errors, level 6e-5, and no wider than is of use."""
    found = evidence(idata[kind].sample_stats.log_weight.values[0])
    exact = Conjugate().evidence
    assert abs(found.log_marginal - exact) <= 4 * found.error + 1e-9
    assert found.error < 0.05
    assert found.low <= found.log_marginal <= found.high
    assert idata[kind].vi_stats.log_marginal.item() == pytest.approx(found.log_marginal)


def test_the_interval_covers_at_its_level():
    """Of 400 samples of 200 weights, 95 % intervals hold the truth in 93 to 97 %, two standard errors either side."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(400, 200))
    log_w = stats.norm(0, 1).logpdf(1.3 * normal) - stats.norm(0, 1.3).logpdf(1.3 * normal)
    found = [evidence(w) for w in log_w]
    assert 0.92 < np.mean([e.low <= 0 <= e.high for e in found]) < 0.98
    wide = evidence(log_w[0], level=0.99)
    assert wide.low < found[0].low < found[0].high < wide.high


def test_evidence_of_data_is_the_sum_of_theirs():
    rng = np.random.default_rng(0)
    log_w = 0.1 * rng.normal(size=(100, 4))
    found = evidence(log_w)
    parts = [evidence(log_w[:, i]) for i in range(4)]
    assert found.log_marginal == pytest.approx(sum(p.log_marginal for p in parts))
    assert found.error == pytest.approx(math.sqrt(sum(p.error**2 for p in parts)))
    assert found.pareto_k == max(p.pareto_k for p in parts)


@pytest.mark.parametrize("resampled", ["with", "without"])
def test_resampling_repairs_a_mildly_wrong_guide(resampled):
    """Draws before are half a deviation off and those after within .1 (4000) or .25 (400): four standard errors."""
    torch.manual_seed(0)
    pair = Conjugate(shift=0.5, widen=1.1)
    idata = pair.to_arviz(resampled=resampled, predictive=False)
    sds = np.sqrt(np.diag(pair.covariance))
    plain, mended = (idata[g].b.values.reshape(-1, P) for g in ("posterior", "posterior_resampled"))
    assert len(mended) == {"with": 4000, "without": 400}[resampled]
    assert np.abs((plain.mean(0) - pair.mean) / sds).max() > 0.45
    assert np.abs((mended.mean(0) - pair.mean) / sds).max() < {"with": 0.1, "without": 0.25}[resampled]
    assert np.abs(np.log(mended.std(0) / sds)).max() < {"with": 0.1, "without": 0.2}[resampled]
    assert len(np.unique(mended, axis=0)) == len(mended) or resampled == "with"
    assert set(map(tuple, mended)) <= set(map(tuple, plain))


def test_draws_are_not_resampled_where_khat_forbids():
    """A guide a quarter as wide as the posterior has weights of infinite variance."""
    torch.manual_seed(0)
    narrow, good = Conjugate(widen=0.25), Conjugate(widen=1.2)
    idata = narrow.to_arviz(draws=400, predictive=False)
    assert not hasattr(idata, "posterior_resampled")
    assert "k-hat is above 0.62" in idata.posterior.attrs["resampled"]
    assert idata.vi_stats.pareto_k.item() > khat_threshold(400)
    assert "resampled" not in good.to_arviz(draws=400, predictive=False).posterior.attrs


def test_smoothed_weights_are_normalized(idata):
    smoothed = idata["wide"].sample_stats.log_weight_smoothed.values[0]
    assert np.exp(smoothed).sum() == pytest.approx(1)
    raw = idata["wide"].sample_stats.log_weight.values[0]
    assert np.corrcoef(np.exp(smoothed), np.exp(raw - raw.max()))[0, 1] > 0.99


def heavy(rng):
    return 2.0 * rng.standard_t(2.0, size=N)


def test_leave_one_out_pit_is_uniform_where_the_model_is_right_and_not_where_it_is_wrong():
    """Kolmogorov-Smirnov at level .01 over data of six seeds together: right, then errors of three times the scale."""
    torch.manual_seed(0)
    good = [loo_pit(Conjugate(seed=s, shift=0.3, widen=1.1).to_arviz(1000)).values for s in range(6)]
    wrong = [loo_pit(Conjugate(seed=s, widen=1.1, noise=heavy).to_arviz(1000)).values for s in range(6)]
    assert stats.kstest(np.concatenate(good), "uniform").pvalue > 0.01
    assert stats.kstest(np.concatenate(wrong), "uniform").pvalue < 1e-3


def test_pit_is_that_of_the_exact_law_without_the_datum(idata):
    """Within .06, four standard errors of a share of 4000 draws."""
    means, sds = Conjugate().left_out
    found = loo_pit(idata["moved"])
    assert found.dims == ("data",)
    np.testing.assert_allclose(found.values, stats.norm(means, sds).cdf(Conjugate().y), atol=0.06)


def test_restarts_are_pooled_and_named():
    torch.manual_seed(0)
    pair = Conjugate(widen=1.2)
    idata = as_fit(pair.model, pair.guide, *pair.data, chains=2).to_arviz(*pair.data, draws=200)
    assert loo(idata).n_samples == 400
    assert loo(idata, chain=1).n_samples == 200
    with pytest.raises(ValueError, match=r"chain: expected one of \[0, 1\], got 2"):
        loo(idata, chain=2)
    with pytest.raises(ValueError, match="log_likelihood has no variable 'z'; there are 'y'"):
        loo(idata, var_name="z")


def test_latents_of_rows_are_refused_unless_integrated():
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
    fit = as_fit(model, guide, y)
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


def test_nothing_is_left_out_of_a_program_whose_latents_are_all_of_rows():
    def model(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    y = torch.randn(8)
    idata = as_fit(model, lambda y: None, y).to_arviz(y, draws=30)
    with pytest.raises(ValueError, match="needs latents that all rows share"):
        loo(idata)


def test_rhat_of_restarts():
    """Draws of one law have R-hat near one; of laws two deviations apart, far from it; of one restart, none."""

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.zeros(3)
    torch.manual_seed(0)
    fit = ppgen.fit(model, guide, y, steps=1, restarts=2, progress=False)
    for apart, check in ((0.0, lambda r: r < 1.02), (2.0, lambda r: r > 1.3)):
        for number, chain in enumerate(fit.chains):
            for weight in chain.weights.values():
                weight.fill_(apart * number)
        found = rhat(fit.to_arviz(y, draws=500, predictive=False))
        assert check(found.mu.item())
        assert found.attrs["rhat"] == "across 2 restarts"
    alone = rhat(ppgen.fit(model, guide, y, steps=1, progress=False).to_arviz(y, draws=30))
    assert np.isnan(alone.mu.item())
    assert alone.attrs["rhat"].startswith("undefined")


# weights themselves


def test_threshold_by_the_number_of_draws():
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(2200) == khat_threshold(10**6) == 0.7
    with pytest.raises(ValueError, match="at least 2 draws, got 1"):
        khat_threshold(1)


def test_systematic_resampling_takes_each_draw_in_proportion():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(50))
    counts = np.bincount(resample(np.log(weights), size=1000, seed=1), minlength=50)
    assert counts.sum() == 1000
    assert np.all(np.abs(counts - 1000 * weights) < 1)


def test_resampling_without_replacement_is_by_weight():
    """Over 2000 repetitions; the first taken is draw i with probability w_i, within 4 standard errors."""
    weights = np.array([0.5, 0.3, 0.2, 0.0])
    with np.errstate(divide="ignore"):
        log_w = np.log(weights)
    first = [resample(log_w, size=1, replace=False, seed=s)[0] for s in range(2000)]
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 2000, weights, atol=4 * 0.5 / 2000**0.5)
    assert sorted(resample(log_w, size=3, replace=False)) == [0, 1, 2]
    with pytest.raises(ValueError, match="at most 3 draws without replacement"):
        resample(log_w, size=4, replace=False)
    with pytest.raises(ValueError, match="one of them finite"):
        resample(np.full(4, -np.inf))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_never_trusted(bad):
    log_w = np.random.default_rng(0).normal(size=(40, 3))
    log_w[3, 1] = bad
    log_w[:, 2] = -np.inf
    found = importance_summary(log_w)
    assert np.isfinite(found.pareto_k[0])
    assert np.all(found.pareto_k[1:] == np.inf)
    smoothed, _ = smooth(log_w)
    assert np.isnan(smoothed[:, 1:]).all()


def test_a_tail_of_ties_has_no_shape():
    found = importance_summary(np.arange(600.0)[:, None] % 3)
    assert found.pareto_k == np.inf
    np.testing.assert_allclose(np.exp(found.log_smoothed).sum(0), 1.0)


def test_moved_draws_have_the_moments_of_their_weights():
    """Weights that carry N(0, 2^2) to N(1, 1), within 4 standard errors; equal ones move nothing, nor do constants."""
    z = np.stack([np.random.default_rng(0).normal(scale=2.0, size=40_000), np.full(40_000, 3.0)], 1)
    log_w = stats.norm.logpdf(z[:, 0], 1.0, 1.0) - stats.norm.logpdf(z[:, 0], 0.0, 2.0)
    shift, log_ratio = moment_shifts(z, log_w - np.logaddexp.reduce(log_w))
    error = 4 / math.sqrt(importance_summary(log_w[:, None]).ess[0])
    np.testing.assert_allclose(shift, [1.0, 0.0], atol=error)
    np.testing.assert_allclose(log_ratio, [-math.log(2), 0.0], atol=error)
    for none in moment_shifts(z, np.full(len(z), -math.log(len(z)))):
        np.testing.assert_allclose(none, 0.0, atol=1e-12)


def test_weights_agree_with_those_of_draws():
    pair = Conjugate()
    torch.manual_seed(0)
    weights = log_weights(pair.model, pair.guide, pair.data, particles=30)
    np.testing.assert_allclose(weights.numpy(), pair.evidence, rtol=1e-9)  # of an exact posterior, each and every one
