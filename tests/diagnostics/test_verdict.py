"""`diagnose` recognizes failures that were built in, and good fits."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import (
    SCHOOLS,
    correlated,
    covariates,
    guide_of,
    heavy,
    regression,
    schools,
    trained_fit,
    two_modes,
    two_sides,
    untrained_fit,
)
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, init_to_value
from torch.distributions.transforms import CumulativeDistributionTransform

from ppgen.diagnostics import diagnose
from ppgen.diagnostics import verdict as verdict_module
from ppgen.diagnostics.verdict import BAD, GOOD, RICHER, UNKNOWN, WEIGHTED
from ppgen.fitting import Fit, fit


def failed_fit(name: str) -> tuple[Fit, tuple]:
    if name == "mean field of a correlated posterior":  # the optimum: its variances are the conditional ones
        return untrained_fit(correlated, guide_of("z", dist.Normal(torch.zeros(2), 0.3122).to_event(1))), ()
    if name == "one of two modes":
        return untrained_fit(two_modes, guide_of("x", dist.Normal(3.96, 0.5))), ()
    if name == "both modes, by different restarts":
        between = AutoDiagonalNormal(two_modes, init_loc_fn=init_to_value(values={"x": torch.zeros(())}))
        return trained_fit(two_modes, between, steps=400, restarts=4), ()
    if name == "light tails":
        return untrained_fit(heavy, guide_of("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))), ()
    if name == "centered eight schools":
        return trained_fit(schools, AutoDiagonalNormal(schools), SCHOOLS, steps=800), (SCHOOLS,)
    x, y = (part.float() for part in covariates())
    return trained_fit(regression, AutoMultivariateNormal(regression), x, y, steps=20), (x, y)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("mean field of a correlated posterior", "pareto_k"),
        ("centered eight schools", "pareto_k"),
        ("one of two modes", "missed_mode_mass"),
        ("both modes, by different restarts", "r_hat"),
        ("light tails", "pareto_k"),
        ("stopped too early", "pareto_k"),
    ],
)
def test_a_built_in_failure_is_recognized(name, figure):
    fit, data = failed_fit(name)
    verdict = fit.diagnose(*data)
    assert verdict.level == BAD, str(verdict)
    assert figure in verdict.reasons
    assert verdict.advice
    assert figure in str(verdict)
    assert BAD in str(verdict)


def test_a_missed_mode_is_reported_on_one_line():
    def model():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 2):
            x = pyro.sample("x", dist.Normal(0.0, 10.0))
            sides = torch.stack([dist.Normal(-4.0, 0.5).log_prob(x), dist.Normal(4.0, 0.5).log_prob(x)])
            pyro.factor("sides", sides.logsumexp(0))

    def guide():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 2):
            pyro.sample("x", dist.Normal(4.0, 0.5))

    verdict = untrained_fit(model, guide).diagnose()
    assert "x = [" in verdict.reasons["missed_mode_mass"]
    assert len(str(verdict).splitlines()) == 1 + len(verdict.statistics) + len(verdict.advice)


def test_a_missed_mode_next_to_undefined_density_is_found():
    """Below -5.2, 2.4 sd from the mode that the guide misses, log p is NaN."""
    verdict = untrained_fit(two_sides(0.5, edge=-5.2), guide_of("x", dist.Normal(4.0, 0.5))).diagnose()
    assert verdict.level == BAD, str(verdict)
    assert "missed_mode_mass" in verdict.reasons


@pytest.mark.parametrize(("share", "width", "level"), [(0.01, 10.0, BAD), (0.003, 4.0, GOOD)])
def test_a_missed_wide_tail_is_judged_by_its_effect_on_moments(share, width, level):
    """1 % of the mass, ten times as wide, doubles the variance; 0.3 %, four times as wide, is negligible."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        wide = dist.Normal(0.0, width).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        pyro.factor("wide", torch.logaddexp(torch.tensor(1 - share).log(), torch.tensor(share).log() + wide))

    guide = AutoDiagonalNormal(model, init_loc_fn=init_to_value(values={"z": torch.zeros(())}), init_scale=1.0)
    verdict = trained_fit(model, guide, steps=1).diagnose(draws=4000)  # nearly N(0, 1)
    assert verdict.statistics["ess_ratio"] > 0.99
    assert verdict.statistics["pareto_k"] > 0.5
    assert "missed_tail_mass" in verdict.statistics
    assert verdict.level == level, str(verdict)


# mass that the guide's own draws do not show


def test_a_distant_mode_that_no_start_reaches_is_missed():
    """A tenth and a half of the mass is at 25, where neither a start between -2 and 2 nor a Gaussian gets."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 20.0))
        modes = dist.Normal(torch.tensor([0.0, 25.0]), 0.5).log_prob(x[..., None]) + torch.tensor([0.85, 0.15]).log()
        pyro.factor("modes", modes.logsumexp(-1) - dist.Normal(0.0, 20.0).log_prob(x))

    verdict = fit(model, "auto", None, progress=False).diagnose()
    assert verdict.level == BAD
    assert verdict.statistics["missed_tail_mass"] == pytest.approx(0.15, abs=0.04)
    assert re.search(r"x = 2[3-7]\.", verdict.reasons["missed_tail_mass"])
    assert verdict.statistics["pareto_k"] < 0.5
    assert verdict.statistics["ess_ratio"] > 0.99


def test_a_heavy_tail_that_the_guide_cuts_off_is_missed():
    """The guide is the posterior between -3 and 3: all weights are equal, and 1 - 2 arctan(3) / pi is missing."""
    share = math.atan(3.0) / math.pi
    inverse = CumulativeDistributionTransform(dist.Cauchy(0.0, 1.0)).inv
    cut = dist.TransformedDistribution(dist.Uniform(0.5 - share, 0.5 + share), [inverse])
    verdict = untrained_fit(lambda: pyro.sample("x", dist.Cauchy(0.0, 1.0)), guide_of("x", cut)).diagnose()
    assert verdict.statistics["ess_ratio"] > 0.999
    assert verdict.statistics["missed_tail_mass"] == pytest.approx(1 - 2 * share, abs=0.03)
    assert verdict.level == BAD


def test_a_ridge_under_a_mean_field_is_missed():
    """Only a + b is identified. The guide has the conditional variances; its weights have a k-hat of about .6."""

    def model():
        a, b = pyro.sample("a", dist.Normal(0.0, 10.0)), pyro.sample("b", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(a + b, 0.2), obs=torch.tensor(1.0))

    def guide():
        for name in "ab":
            pyro.sample(name, dist.Normal(0.5, (1 / 0.2**2 + 1 / 10.0**2) ** -0.5))

    verdict = untrained_fit(model, guide).diagnose()
    assert verdict.level == BAD
    assert verdict.statistics["missed_tail_mass"] > 0.5


def test_an_exponential_tail_without_mass_is_good():
    """The logarithm of a Gamma variable falls exponentially below its mode, and a guide of its moments faster.

    The largest weight of 4000 draws says nothing about that tail; draws from wider distributions find no mass in it.
    """
    log_moments = math.log(8.0) - 1 / 16 - 1 / 768, 0.365  # of Gamma(8, 1)
    verdict = untrained_fit(
        lambda: pyro.sample("x", dist.Gamma(8.0, 1.0)), guide_of("x", dist.LogNormal(*log_moments))
    ).diagnose()
    assert verdict.statistics["pareto_k"] > 0.7
    assert 0.9 < verdict.statistics["ess_ratio"] < 0.99
    assert verdict.level == GOOD, str(verdict)


def test_auto_is_not_advised_for_a_fit_by_auto():
    fit, data = failed_fit("light tails")
    assert RICHER in fit.diagnose(*data).advice
    fit.metadata["auto"] = "Gaussian of full rank"
    verdict = fit.diagnose(*data)
    assert verdict.level == BAD
    assert verdict.advice
    assert RICHER not in verdict.advice


def test_a_fit_without_a_density_is_not_judged():
    fit = trained_fit(correlated, AutoDelta(correlated), steps=5)
    verdict = fit.diagnose()
    assert verdict.level == UNKNOWN
    assert "a point" in str(verdict)


@pytest.mark.slow
def test_exact_guides_are_good():
    """An exact guide of a conjugate model on 40 data sets is good at least 38 times, 95 %."""
    levels = []
    for seed in range(40):
        torch.manual_seed(seed)
        y = torch.randn(12, dtype=torch.float64) + 1

        def model(y):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(m, 1.0), obs=y)

        def guide(y):
            pyro.sample("m", dist.Normal(y.sum() / (len(y) + 1), 1.02 / math.sqrt(len(y) + 1)))

        levels.append(diagnose(untrained_fit(model, guide, y), y, draws=400, starts=2).level)
    assert levels.count(GOOD) >= 38


def test_draws_for_other_data_cannot_be_judged_without_the_data():
    x, y = covariates()
    fit = untrained_fit(regression, guide_of("b", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)), x, y)
    with pytest.raises(ValueError, match="needs the data"):
        fit.diagnose(idata=fit.to_arviz(x, y, draws=50, predictive=False))


# the number of draws


@pytest.fixture
def draws_taken(monkeypatch) -> list[int]:
    """How many draws each verdict has asked for."""
    counts: list[int] = []
    true = verdict_module.to_arviz
    monkeypatch.setattr(
        verdict_module, "to_arviz", lambda fit, *data, **how: counts.append(how["draws"]) or true(fit, *data, **how)
    )
    return counts


def test_more_draws_are_taken_near_a_bound(draws_taken):
    """For a guide that is a little too narrow, whose k-hat is near a bound, but not for an exact one."""
    untrained_fit(correlated, guide_of("z", dist.Normal(torch.zeros(2), 0.8).to_event(1))).diagnose(starts=0)
    assert draws_taken == [1000, 4000]
    draws_taken.clear()
    exact = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    untrained_fit(correlated, guide_of("z", exact)).diagnose(starts=0)
    assert draws_taken == [1000]


def test_a_guide_that_is_too_wide_needs_its_weights_though_khat_is_good(draws_taken):
    """Its sd is 1.15 times the posterior's, and no weight exceeds 1.15^2; 1000 draws are inconclusive, 4000 are not."""

    def standard():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    verdict = untrained_fit(standard, guide_of("z", dist.Normal(torch.zeros(2), 1.15).to_event(1))).diagnose()
    assert draws_taken == [1000, 4000]
    assert verdict.statistics["pareto_k"] < 0.3
    assert verdict.statistics["log_ratio"] == pytest.approx(math.log(1.15), abs=0.03)
    assert verdict.level == WEIGHTED
    assert list(verdict.reasons) == ["log_ratio"]


# amortized guides


def rows(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def amortized(wrong: bool):
    """The exact posterior of each row, N(0.8 x, 0.2), by a network; the wrong network outputs no negative mean."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 0.8)
    encoder = torch.nn.Sequential(layer, torch.nn.ReLU()) if wrong else layer

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x[:, None])[:, 0], math.sqrt(0.2)))

    return guide


@pytest.mark.parametrize(("wrong", "level"), [(False, GOOD), (True, BAD)])
def test_an_amortized_guide_is_judged_by_its_rows(wrong, level):
    pyro.clear_param_store()
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) * math.sqrt(1.25)
    verdict = untrained_fit(rows, amortized(wrong), x).diagnose(x)
    assert verdict.level == level, str(verdict)
    assert ("bad_rows" in verdict.reasons) == wrong
    assert any("each datum" in advice for advice in verdict.advice) == wrong
    assert RICHER not in verdict.advice  # none of its guides has latents that depend on the datum
