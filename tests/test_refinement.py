"""Refined fits: draws of a sampler that starts from the guide, exact posteriors, and the verdict."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy.stats import norm

import ppgen
from ppgen.diagnostics import bidirectional_ais, loo
from ppgen.diagnostics.checks.check import BAD, GOOD
from ppgen.diagnostics.verdict import Verdict
from ppgen.training.result import Chain
from ppgen.utils.arviz_versions import arviz, pointwise_loo

Y = torch.tensor([1.2, -0.4, 0.9, 2.0, 1.1], dtype=torch.float64)
QUICK = {"chains": 4, "draws": 250, "progress": False}
TRAINING = {"steps": 1, "compile": False, "progress": False}


def of_sum(y):
    """Two latents, of which data have the sum: conjugate. By `b.sum()` it does not broadcast."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    total = pyro.deterministic("total", b.sum())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def exact(y) -> tuple[float, float, float]:
    """Mean and standard deviation of the total, which is N(0, 2) before the data, and the log evidence."""
    precision = len(y) + 0.5
    evidence = -0.5 * len(y) * math.log(2 * math.pi) - 0.5 * math.log(2 * precision)
    evidence -= 0.5 * float(y.square().sum() - y.sum() ** 2 / precision)
    return float(y.sum()) / precision, precision**-0.5, evidence


def two_modes():
    """N(-6, 1) with a weight of .8, and N(6, 0.5^2)."""
    prior = dist.Normal(0.0, 10.0)
    u = pyro.sample("u", prior)
    parts = torch.stack([dist.Normal(-6.0, 1.0).log_prob(u), dist.Normal(6.0, 0.5).log_prob(u)], -1)
    pyro.factor("modes", (parts + torch.tensor([0.8, 0.2]).log()).logsumexp(-1) - prior.log_prob(u))


def grouped(y):
    """A discrete latent of each datum, which is summed out."""
    center = pyro.sample("center", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        part = pyro.sample("part", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("y", dist.Normal(center + 4.0 * part, 1.0), obs=y)


@pytest.fixture(scope="module")
def refined() -> ppgen.Fit:
    """Of a guide that is not trained, in single precision."""
    fit = ppgen.fit(of_sum, AutoNormal(of_sum, init_scale=0.1), Y.float(), **TRAINING)
    return fit.refine(Y.float(), **QUICK)


def test_draws_and_evidence_are_those_of_a_conjugate_posterior(refined):
    """Within 4.5 standard errors (level 3e-5) of 400 independent draws, the least that are called good."""
    mean, sd, evidence = exact(Y.float().double())
    total = refined.to_arviz(Y.float(), predictive=False).posterior["total"].values
    assert total.shape == (4, 250)
    assert abs(total.mean() - mean) < 4.5 * sd / 400**0.5
    assert abs(total.std() / sd - 1) < 4.5 / 800**0.5
    found = refined.metadata["refined"]
    assert found["beta"] == 1.0
    assert 0 < found["error"] < 0.3
    assert abs(found["log_marginal"] - evidence) < 4.5 * found["error"]
    verdict = refined.diagnose(Y.float())
    assert verdict.level == GOOD
    assert verdict.statistics["r_hat"] < 1.01
    assert verdict.statistics["ess_bulk"] > 400
    assert verdict.statistics["ess_tail"] > 400
    assert "pareto_k" not in verdict.statistics


def test_arviz_has_the_draws_in_order_with_their_likelihood_and_evidence(refined):
    idata = refined.to_arviz(Y.float(), predictive=True, chunk=100)
    for chain in range(4):
        with refined.eval_mode(chain):
            assert np.array_equal(idata.posterior["b"].values[chain], refined.guide.draws.numpy())
    np.testing.assert_allclose(idata.posterior["total"].values, idata.posterior["b"].values.sum(-1))
    assert set(idata.sample_stats.data_vars) == {"lp"}
    assert idata.log_likelihood["y"].shape == idata.posterior_predictive["y"].shape == (4, 250, 5)
    vi = idata.vi_stats
    assert vi["log_marginal_of_chain"].shape == (4,)
    together = np.log(np.exp(vi["log_marginal_of_chain"].values - vi["log_marginal"].values).mean())
    assert together == pytest.approx(0.0, abs=1e-6)
    assert not hasattr(idata, "posterior_resampled")
    first = refined.to_arviz(Y.float(), draws=30, predictive=False).posterior["b"].values
    assert np.array_equal(first, idata.posterior["b"].values[:, :30])
    with pytest.raises(ValueError, match="made 250 draws in each chain, got draws=251"):
        refined.to_arviz(Y.float(), draws=251)


@pytest.mark.slow
def test_what_reads_weights_works_without_them(refined, tmp_path):
    """Leave-one-out is that of ArviZ but for the length of the tail; a report and bounds of the evidence."""
    idata = refined.to_arviz(Y.float())
    found, expected = loo(idata), arviz().loo(idata, var_name="y", pointwise=True)
    np.testing.assert_allclose(pointwise_loo(found)[0], pointwise_loo(expected)[0], rtol=2e-3)
    page = refined.report(tmp_path / "page.html", Y.float()).read_text()
    assert "Do the chains agree?" in page
    assert "log evidence, by the sampler" in page
    bounds = bidirectional_ais(refined, Y.float())
    log_marginal = refined.metadata["refined"]["log_marginal"]
    assert bounds.lower - 5 * bounds.lower_error < log_marginal < bounds.upper + 5 * bounds.upper_error


def test_draws_are_saved_and_loaded_and_follow_from_the_seed(refined, tmp_path):
    refined.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", of_sum, "auto")
    assert loaded.metadata == refined.metadata
    again = ppgen.fit(of_sum, AutoNormal(of_sum, init_scale=0.1), Y.float(), **TRAINING).refine(Y.float(), **QUICK)
    for fit in (loaded, again):
        for found, expected in zip(fit.chains, refined.chains, strict=True):
            (name,) = (name for name in expected.weights if name.endswith("draws"))
            assert torch.equal(found.weights[name], expected.weights[name])


def test_predictions_average_over_the_draws(refined):
    mean, sd, _ = exact(Y)
    found = refined.predict(torch.zeros(3), draws=250, seed=1)["y"].values
    assert found.std() == pytest.approx((1 + sd**2) ** 0.5, abs=0.25)
    assert found.mean() == pytest.approx(mean, abs=0.3)


def test_the_verdict_refuses_draws_that_have_not_mixed(refined):
    """Chains at different places; draws that repeat; a sampler that did not arrive."""

    def judged(change, **metadata) -> Verdict:
        chains = []
        for number, chain in enumerate(refined.chains):
            weights = {k: change(v, number) if k.endswith("draws") else v for k, v in chain.weights.items()}
            chains.append(Chain(**vars(chain) | {"weights": weights}))
        about = refined.metadata | {"refined": refined.metadata["refined"] | metadata}
        fit = ppgen.Fit(**vars(refined) | {"chains": chains, "metadata": about})
        return fit.diagnose(Y.float(), starts=0)

    apart = judged(lambda u, chain: u + 0.5 * chain)
    assert apart.level == BAD
    assert "have not come to one distribution" in apart.reasons["r_hat"]
    repeated = judged(lambda u, chain: u[:10].repeat_interleave(25, 0))
    assert repeated.level == BAD
    assert "ess_bulk" in repeated.reasons
    assert any("fit.refine" in text for text in repeated.advice)
    assert list(judged(lambda u, chain: u, beta=0.9).reasons) == ["beta"]


def test_two_far_modes_come_with_their_masses():
    """A guide at one of them misses the other, which a search finds; within 4.5 standard errors (level 3e-5)."""
    fit = ppgen.fit(two_modes, AutoNormal(two_modes, init_loc_fn=lambda site: torch.tensor(-6.0)), None, **TRAINING)
    refined = fit.refine(**QUICK)
    u = refined.to_arviz(predictive=False).posterior["u"].values
    assert abs((u < 0).mean() - 0.8) < 4.5 * 0.4 / 400**0.5
    assert abs(u[u < 0].mean() + 6) < 4.5 / 300**0.5
    assert abs(u[u > 0].mean() - 6) < 4.5 * 0.5 / 80**0.5
    assert abs(refined.metadata["refined"]["log_marginal"]) < 4.5 * refined.metadata["refined"]["error"]
    assert refined.diagnose().level == GOOD


def test_discrete_latents_are_summed_out_and_drawn_after():
    y = torch.tensor([0.1, -0.3, 4.2, 3.9, 0.4], dtype=torch.float64)
    refined = ppgen.fit(grouped, "auto", y, progress=False).refine(y, **QUICK)
    posterior = refined.to_arviz(y).posterior
    assert posterior["part"].values.mean((0, 1)) == pytest.approx([0.0, 0.0, 1.0, 1.0, 0.0], abs=0.1)
    mean = float((y - torch.tensor([0.0, 0.0, 4.0, 4.0, 0.0])).sum()) / (5 + 1 / 9)
    assert float(posterior["center"].mean()) == pytest.approx(mean, abs=0.2)


def test_only_a_fit_that_is_refused_is_sampled():
    good = ppgen.fit(of_sum, "auto", Y, otherwise="sample", progress=False)
    assert good.stored_draws == 0

    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([3]).to_event(1))

    sampled = ppgen.fit(funnel, AutoNormal(funnel), None, **TRAINING).refine(budget=0.0, **QUICK)
    assert "the budget of 0 s was over" in sampled.chains[0].stop_reason
    assert "beta" in sampled.diagnose(starts=0).reasons


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chains": 1}, "at least 2 chains and 800 draws in all, of which 400 .* got 1 chains of 1000"),
        ({"draws": 199}, "at least 2 chains and 800 draws in all, of which 400 .* got 4 chains of 199"),
    ],
)
def test_numbers_of_draws_that_cannot_be_judged_are_refused(refined, options, match):
    with pytest.raises(ValueError, match=match):
        refined.refine(Y, **options)


def test_what_cannot_be_refined_is_refused():
    point = ppgen.fit(of_sum, AutoDelta(of_sum), Y.float(), **TRAINING)
    with pytest.raises(ValueError, match="no density to sample from"):
        point.refine(Y.float())
    with pytest.raises(ValueError, match='otherwise is "sample" or None'):
        ppgen.fit(of_sum, "auto", Y, otherwise="nothing", progress=False)
    with pytest.raises(ValueError, match=r"call fit\(...\).refine"):
        ppgen.fit(of_sum, AutoNormal(of_sum), Y.float(), otherwise="sample", **TRAINING)


def horseshoe(x, y):
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([4]).to_event(1))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    beta = pyro.deterministic("beta", tau * local * z)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


@pytest.mark.slow
def test_a_horseshoe_has_the_moments_of_a_long_gibbs_run():
    """By 100,000 draws of `tests/benchmarks/posterior_gibbs.py`, whose errors are below .015 standard deviations.

    Means are within .25 of these, and their logarithms within .25: 5 standard errors of 400 draws (level 1e-5).
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4)).round(2)
    y = (x @ np.array([1.5, 0.0, 0.0, -0.4]) + rng.standard_normal(30)).round(2)
    refined = ppgen.fit(horseshoe, "auto", (x, y), progress=False).refine(x, y, draws=500, progress=False)
    verdict = refined.diagnose(x, y)
    assert verdict.level == GOOD
    assert verdict.statistics["r_hat"] < 1.01
    found = refined.to_arviz(x, y, predictive=False).posterior
    draws = [np.log(found["tau"].values), np.log(found["sigma"].values), *np.moveaxis(found["beta"].values, -1, 0)]
    means = [-1.0311, -0.0457, 1.6263, -0.0162, -0.0317, -0.0176]
    sds = [0.9738, 0.1352, 0.2002, 0.1308, 0.1319, 0.1244]
    for value, mean, sd in zip(draws, means, sds, strict=True):
        assert abs(value.mean() - mean) < 0.25 * sd
        assert abs(math.log(value.std() / sd)) < 0.25


@pytest.mark.slow
def test_curved_ridges_have_their_moments_and_evidence():
    """Three pairs a ~ N(1, 10), b ~ N(a^2, 0.1) as one factor: within .25 standard deviations (level 1e-5)."""

    def rosenbrock():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (6,)))
        a, b = x[..., ::2], x[..., 1::2]
        pyro.factor("f", -(100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(-1) / 20)

    refined = ppgen.fit(rosenbrock, "auto", None, progress=False).refine(draws=500, progress=False)
    assert refined.diagnose().level == GOOD
    x = refined.to_arviz(predictive=False).posterior["x"].values.reshape(-1, 6)
    a, b = x[:, ::2], x[:, 1::2]
    assert np.abs(a.mean(0) - 1).max() < 0.25 * 10**0.5
    assert np.abs(np.log(a.std(0) / 10**0.5)).max() < 0.25
    assert np.abs((b - a**2).std(0) / 0.1**0.5 - 1).max() < 0.25
    evidence, error = (refined.metadata["refined"][name] for name in ("log_marginal", "error"))
    assert abs(evidence - 3 * math.log(2 * math.pi)) < 5 * error


@pytest.mark.slow
def test_a_funnel_is_drawn_to_its_neck():
    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("xs", 4):
            pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    refined = ppgen.fit(funnel, "auto", None, progress=False).refine(draws=500, progress=False)
    assert refined.diagnose().level == GOOD
    v = refined.to_arviz(predictive=False).posterior["v"].values / 3
    assert abs(v.mean()) < 0.25
    assert abs(math.log(v.std())) < 0.2
    assert np.quantile(v, [0.02, 0.98]) == pytest.approx([-2.054, 2.054], abs=0.4)
    assert abs(refined.metadata["refined"]["log_marginal"]) < 5 * refined.metadata["refined"]["error"]


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("xs", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


@pytest.mark.slow
def test_a_funnel_is_as_wide_as_it_is_or_is_not_called_good():
    """From a narrow mean-field guide: the scale's 1000 draws have the quantiles of N(0, 3^2) within .6."""
    guide = AutoNormal(funnel, init_loc_fn=lambda site: torch.zeros(site["fn"].shape()), init_scale=0.7)
    refined = ppgen.fit(funnel, guide, None, **TRAINING).refine(**QUICK)
    v = refined.to_arviz(predictive=False).posterior["v"].values
    wrong = np.abs(np.quantile(v, [0.05, 0.95]) - 3 * norm.ppf([0.05, 0.95])).max() > 0.6
    assert not (wrong and refined.diagnose().level == GOOD)
    assert abs(v.std() - 3.0) < 0.4
    found = refined.metadata["refined"]
    assert abs(found["log_marginal"]) < max(4.5 * found["error"], 0.1)
