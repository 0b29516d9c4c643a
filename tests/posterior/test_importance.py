"""Importance weights: evidence, smoothing, resampling, against what is known exactly."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate
from scipy import stats

from ppgen.diagnostics import (
    evidence,
    importance_summary,
    khat_threshold,
    resample,
)
from ppgen.posterior.importance import moment_shifts, smooth
from ppgen.tracing.particles import log_weights

N = 12


def exact_pair():
    """z ~ N(0, 1), x | z ~ N(z, 1), so z | x ~ N(x / 2, 1 / sqrt 2) and x ~ N(0, sqrt 2)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, widen=1.0):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, widen * 0.5**0.5))

    return model, guide


def test_an_exact_guide_has_equal_weights_and_no_tail():
    model, guide = exact_pair()
    x = torch.randn(N, dtype=torch.float64)
    summary = importance_summary(log_weights(model, guide, (x,), particles=50).numpy())
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
    np.testing.assert_allclose(summary.log_marginal, exact, atol=1e-12)
    np.testing.assert_allclose(summary.elbo, exact, atol=1e-12)
    np.testing.assert_allclose(summary.ess, 50)
    assert np.all(np.isneginf(summary.pareto_k))


def test_khat_distinguishes_narrow_and_wide_guides():
    model, guide = exact_pair()
    x = torch.randn(20, dtype=torch.float64)
    torch.manual_seed(0)
    khat = {}
    for widen in (0.4, 1.5):
        narrow = lambda x, widen=widen: guide(x, widen)  # noqa: E731
        khat[widen] = importance_summary(log_weights(model, narrow, (x,), particles=2000).numpy()).pareto_k
    # the weights' tail shape is 1 - widen^2 in the limit: .84, and below zero
    assert np.median(khat[0.4]) > 0.7
    assert np.median(khat[1.5]) < 0.3


KINDS = ("exact", "wide", "moved")


@pytest.fixture(scope="module")
def idata():
    """At the posterior, and at guides that are mildly wrong."""
    torch.manual_seed(0)
    kinds = {"exact": {}, "wide": {"widen": 1.3}, "moved": {"shift": 0.5, "widen": 1.1}}
    return {name: Conjugate(**options).to_arviz() for name, options in kinds.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_within_its_interval(idata, kind):
    """By four standard errors, level 6e-5, and no wider than is of use."""
    found = evidence(idata[kind].sample_stats.log_weight.values[0])
    exact = Conjugate().evidence
    assert abs(found.log_marginal - exact) <= 4 * found.error + 1e-9
    assert found.error < 0.05
    assert found.low <= found.log_marginal <= found.high
    assert idata[kind].vi_stats.log_marginal.item() == pytest.approx(found.log_marginal)


def test_evidence_intervals_have_their_coverage():
    """Of 400 samples of 200 weights, 95 % intervals contain the truth in 92 to 98 %: three standard errors."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(400, 200))
    log_w = stats.norm(0, 1).logpdf(1.3 * normal) - stats.norm(0, 1.3).logpdf(1.3 * normal)
    found = [evidence(w) for w in log_w]
    assert 0.92 < np.mean([e.low <= 0 <= e.high for e in found]) < 0.98
    wide = evidence(log_w[0], level=0.99)
    assert wide.low < found[0].low < found[0].high < wide.high


def test_log_evidences_of_data_are_added():
    rng = np.random.default_rng(0)
    log_w = 0.1 * rng.normal(size=(100, 4))
    found = evidence(log_w)
    parts = [evidence(log_w[:, i]) for i in range(4)]
    assert found.log_marginal == pytest.approx(sum(p.log_marginal for p in parts))
    assert found.error == pytest.approx(math.sqrt(sum(p.error**2 for p in parts)))
    assert found.pareto_k == max(p.pareto_k for p in parts)


def test_smoothed_weights_are_normalized(idata):
    smoothed = idata["wide"].sample_stats.log_weight_smoothed.values[0]
    assert np.exp(smoothed).sum() == pytest.approx(1)
    raw = idata["wide"].sample_stats.log_weight.values[0]
    assert np.corrcoef(np.exp(smoothed), np.exp(raw - raw.max()))[0, 1] > 0.99


def test_the_khat_threshold_depends_on_the_number_of_draws():
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
def test_weights_that_are_not_finite_are_unreliable(bad):
    log_w = np.random.default_rng(0).normal(size=(40, 3))
    log_w[3, 1] = bad
    log_w[:, 2] = -np.inf
    found = importance_summary(log_w)
    assert np.isfinite(found.pareto_k[0])
    assert np.all(found.pareto_k[1:] == np.inf)
    smoothed, _ = smooth(log_w)
    assert np.isnan(smoothed[:, 1:]).all()


def test_tied_weights_have_no_tail_shape():
    found = importance_summary(np.arange(600.0)[:, None] % 3)
    assert found.pareto_k == np.inf
    np.testing.assert_allclose(np.exp(found.log_smoothed).sum(0), 1.0)


def test_moment_shifts_are_those_of_the_weighted_draws():
    """Weights that carry N(0, 2^2) to N(1, 1), within 4 standard errors; equal ones move nothing, nor do constants."""
    z = np.stack([np.random.default_rng(0).normal(scale=2.0, size=40_000), np.full(40_000, 3.0)], 1)
    log_w = stats.norm.logpdf(z[:, 0], 1.0, 1.0) - stats.norm.logpdf(z[:, 0], 0.0, 2.0)
    shift, log_ratio = moment_shifts(z, log_w - np.logaddexp.reduce(log_w))
    error = 4 / math.sqrt(importance_summary(log_w[:, None]).ess[0])
    np.testing.assert_allclose(shift, [1.0, 0.0], atol=error)
    np.testing.assert_allclose(log_ratio, [-math.log(2), 0.0], atol=error)
    for none in moment_shifts(z, np.full(len(z), -math.log(len(z)))):
        np.testing.assert_allclose(none, 0.0, atol=1e-12)


def test_an_exact_guide_has_the_evidence_as_weights():
    pair = Conjugate()
    torch.manual_seed(0)
    weights = log_weights(pair.model, pair.guide, pair.data, particles=30)
    np.testing.assert_allclose(weights.numpy(), pair.evidence, rtol=1e-9)  # of an exact posterior, each and every one


def test_a_number_that_is_constant_up_to_rounding_is_not_shifted():
    """The diagonal of a correlation matrix."""
    rng = np.random.default_rng(0)
    weights = np.log(rng.dirichlet(np.ones(200)))
    for dtype, eps in ((np.float64, 1e-16), (np.float32, 1e-7)):
        z = np.stack([rng.standard_normal(200), 1 + eps * rng.integers(-2, 3, 200)], -1).astype(dtype)
        shift, log_ratio = moment_shifts(z, weights)
        assert shift[0] != 0
        assert (shift[1], log_ratio[1]) == (0, 0)
