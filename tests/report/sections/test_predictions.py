"""The sections on predictions and on leave-one-out."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from reports import N, captions, context_of, figure_with, fitted_by_elbo, regression, tables

from ppgen.diagnostics import loo
from ppgen.diagnostics.verdict import GOOD, WEIGHTED, Verdict
from ppgen.report import figures
from ppgen.report.sections import leave_one_out as loo_module
from ppgen.report.sections.leave_one_out import leave_one_out
from ppgen.report.sections.predictions import predictions
from ppgen.report.sections.weights import importance_weights
from ppgen.utils.arviz_versions import pointwise_loo

BY_RANK, HISTOGRAMS, LOO_PIT = "The weight on each twentieth", "Histograms of the data", "LOO-PIT"


def test_replicates_of_a_shifted_guide_are_resampled(monkeypatch):
    """The posterior is N(3, .2²) and the guide N(3.3, .3²): weights correct the mean of replicates."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    y = torch.linspace(2, 4, 25)
    fit = fitted_by_elbo(model, lambda y: pyro.sample("m", dist.Normal(3.3, 0.3)), y)
    idata = fit.to_arviz(y, draws=1000)
    drawn = []
    draw = figures.predictive_histograms
    monkeypatch.setattr(figures, "predictive_histograms", lambda sites: drawn.append(sites["y"][0]) or draw(sites))
    for level, words, mean in ((GOOD, "as the guide draws them", 3.3), (WEIGHTED, "resampled by the", 3.0)):
        section = predictions(context_of(fit, idata, Verdict(level, {})))
        assert section is not None
        assert words in section.text
        assert {row[1]: row[3] for row in tables(section)[0].rows}["mean"] == pytest.approx(mean, abs=0.05)
        assert drawn[-1].mean() == pytest.approx(mean, abs=0.06)
    heights = (
        figure_with(importance_weights(context_of(fit, idata)), BY_RANK).picture.axes[0].patches[-1].get_data().values
    )
    assert heights[:5].mean() > 2 * heights[-5:].mean()


def test_leave_one_out_is_that_of_the_diagnostic_or_of_fewer_data(monkeypatch):
    fit, data, _ = regression(rows=60)
    idata = fit.to_arviz(*data, draws=1000)
    (row,) = tables(leave_one_out(context_of(fit, idata)))[-1].rows
    name, count, (elpd, error), bad = row
    whole = loo(idata)
    assert (name, count) == ("y", "60 of 60")
    assert bad == (whole.pareto_k > whole.good_k).sum() < 3
    assert elpd == pytest.approx(pointwise_loo(whole)[0].sum())
    assert error == pytest.approx(float(whole.se), rel=0.01)
    monkeypatch.setattr(loo_module, "MAX_DATA", 20)
    (fewer,) = tables(leave_one_out(context_of(fit, idata)))[-1].rows
    assert fewer[1] == "20 of 60"
    assert fewer[2][0] == pytest.approx(elpd / 3, rel=0.3)


def test_loo_pit_shows_predictions_that_are_too_narrow():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 0.4), obs=y)

    y = torch.as_tensor(np.random.default_rng(0).normal(size=80))
    distribution = dist.Normal(80 * y.mean() / (80 + 0.16 / 100), 0.4 / math.sqrt(80))
    fit = fitted_by_elbo(model, lambda y: pyro.sample("m", distribution), y)
    section = leave_one_out(context_of(fit, fit.to_arviz(y, draws=400)))
    assert section is not None
    axes = figure_with(section, LOO_PIT).picture.axes[0]
    found = axes.lines[-1].get_ydata()
    assert found[:30].max() > 0.1
    assert found[-30:].min() < -0.1
    assert "p < .001" in axes.get_title(loc="left")


def test_unreliable_weights_have_no_loo_pit():
    fit, data, _ = regression(shift=6.0, widen=0.2)
    section = leave_one_out(context_of(fit, fit.to_arviz(*data, draws=200)))
    assert section is not None
    assert LOO_PIT not in captions(section)
    assert tables(section)[-1].rows[0][-1] > N / 2


def test_each_column_has_a_panel():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m.unsqueeze(-1), torch.ones(3)).to_event(1), obs=x)

    x = torch.randn(30, 3)
    fit = fitted_by_elbo(model, lambda x: pyro.sample("m", dist.Normal(x.mean(), 0.1)), x)
    section = predictions(context_of(fit, fit.to_arviz(x, draws=100)))
    axes = figure_with(section, HISTOGRAMS).picture.axes
    assert [part.get_xlabel() for part in axes] == ["x[0]", "x[1]", "x[2]"]
