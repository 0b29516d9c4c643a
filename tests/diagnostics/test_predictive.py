"""Predictive checks: exact probabilities, levels, and data that the model cannot have made."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, untrained_fit
from scipy import stats

from ppgen.diagnostics import pit, predictive_check
from ppgen.diagnostics.predictive import STATISTICS

N = 40


def coin(y):
    """Data of a known distribution, which both predictive distributions are: y ~ N(mu, 1), mu almost known."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1e-4))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(y):
    pyro.sample("mu", dist.Normal(0.0, 1e-4))


def idata_of(y, draws=2000, seed=0):
    y = torch.as_tensor(y, dtype=torch.float64)
    return untrained_fit(coin, exact, y).to_arviz(y, draws=draws, chunk=draws, seed=seed)


@pytest.mark.parametrize("group", ["posterior_predictive", "prior_predictive"])
def test_p_values_are_exact_for_a_known_distribution(group):
    """Within .05, four standard errors of a share of 2000 draws, doubled."""
    y = np.random.default_rng(0).normal(size=N) + 0.2
    table = predictive_check(idata_of(y), group=group)
    assert list(table.index) == list(STATISTICS)
    assert list(table.columns) == ["observed", "mean", "sd", "p_value"]
    two_sided = lambda p: 2 * min(p, 1 - p)  # noqa: E731
    assert table.p_value["mean"] == pytest.approx(two_sided(stats.norm(0, N**-0.5).cdf(y.mean())), abs=0.05)
    assert table.p_value["sd"] == pytest.approx(two_sided(stats.chi2(N - 1).cdf(N * y.var())), abs=0.05)
    assert table.p_value["max"] == pytest.approx(two_sided(stats.norm.cdf(y.max()) ** N), abs=0.05)
    assert table.observed["mean"] == pytest.approx(y.mean(), abs=1e-6)
    assert table["sd"]["mean"] == pytest.approx(N**-0.5, rel=0.1)


def test_p_values_of_the_prior_are_uniform():
    """Of 80 data sets from the model, p-values of the mean are uniform at level .01; a statistic at the bound is 1."""
    rng = np.random.default_rng(0)
    found = [
        predictive_check(idata_of(rng.normal(size=N), 100, seed), group="prior_predictive", statistics={"m": np.mean})
        for seed in range(80)
    ]
    assert stats.kstest([table.p_value["m"] for table in found], "uniform").pvalue > 0.01
    constant = predictive_check(idata_of(np.zeros(N), 100), statistics={"one": lambda y: 1.0})
    assert constant.p_value["one"] == 1.0


def test_an_outlier_is_detected_by_the_maximum():
    y = np.random.default_rng(0).normal(size=N)
    y[0] = 8.0
    table = predictive_check(idata_of(y, 1000), statistics={"mean": np.mean, "max": np.max})
    assert table.p_value["max"] < 0.01
    assert table.p_value["mean"] > 0.05


def test_weighted_replicates_are_those_of_the_posterior():
    """A guide shifted by a standard deviation; weighted replicates have the posterior's mean, within .05."""
    torch.manual_seed(0)
    pair = Conjugate(shift=1.0, widen=1.2)
    idata = pair.to_arviz()
    target = (pair.x @ pair.mean).mean()
    plain, weighted = (predictive_check(idata, statistics={"m": np.mean}, weighted=w) for w in (False, True))
    assert abs(plain["mean"]["m"] - target) > 0.1
    assert abs(weighted["mean"]["m"] - target) < 0.05
    with pytest.raises(ValueError, match="expected replicates of the posterior"):
        predictive_check(idata, weighted=True, group="prior_predictive")


def test_pit_of_numbers_and_counts_is_uniform():
    """Kolmogorov-Smirnov at level .01 of 400 data, and far below where the spread is wrong."""
    rng = np.random.default_rng(0)
    assert stats.kstest(pit(idata_of(rng.normal(size=400), 1000)).values, "uniform").pvalue > 0.01
    assert stats.kstest(pit(idata_of(2 * rng.normal(size=400), 1000)).values, "uniform").pvalue < 1e-4

    def counts(y):
        rate = pyro.sample("rate", dist.Normal(0.7, 1e-4))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.as_tensor(rng.poisson(0.7, size=400), dtype=torch.float32)
    guide = lambda y: pyro.sample("rate", dist.Normal(0.7, 1e-4))  # noqa: E731
    found = pit(untrained_fit(counts, guide, y).to_arviz(y, draws=1000, chunk=1000))
    assert found.dims == ("data",)
    assert stats.kstest(found.values, "uniform").pvalue > 0.01


def test_bad_input_is_named():
    idata = idata_of(np.zeros(5), 30)
    with pytest.raises(ValueError, match=r"expected a number from 'all', got shape \(5,\)"):
        predictive_check(idata, statistics={"all": lambda y: y})
    with pytest.raises(ValueError, match=r'group is "posterior_predictive" or'):
        predictive_check(idata, group="posterior")
    with pytest.raises(ValueError, match="posterior_predictive has no variable 'z'; there are 'y'"):
        predictive_check(idata, var_name="z")
    y = torch.zeros(5)
    silent = untrained_fit(coin, exact, y).to_arviz(y, draws=30, predictive=False)
    with pytest.raises(ValueError, match=r"no group 'posterior_predictive': to_arviz\(..., predictive=True\)"):
        predictive_check(silent)
