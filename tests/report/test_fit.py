"""The report of a fit: a verdict and its statistics, for fits of every kind."""

import math
from html import unescape

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal
from reports import NOISE, P, by_title, figure_with, fitted_by_elbo, regression, tables, text_of
from torch import nn

import ppgen
from ppgen.diagnostics import calibrate
from ppgen.diagnostics import verdict as verdict_module
from ppgen.diagnostics.verdict import GOOD, UNKNOWN
from ppgen.report import Table, report_of_fit
from ppgen.report import fit as fit_module
from ppgen.report.sections.restarts import MAX_PANELS
from ppgen.report.sections.verdict import ANSWERS
from ppgen.utils.budget import Budget

VERDICT, WEIGHTS = "Can the posterior be trusted?", "Importance weights"
ELBO, RESTARTS = "Evidence lower bound", "Do the restarts agree?"
PREDICTIONS, LOO = "Posterior predictions", "Leave-one-out predictions"
BY_RANK, INTERVALS = "The weight on each twentieth", "The median of each restart"


def test_a_good_fit_has_all_sections(tmp_path):
    fit, data, evidence = regression(widen=1.02)
    path = fit.report(tmp_path / "new" / "page.html", *data, draws=400, title="a <title>")
    page = path.read_text()
    assert path == tmp_path / "new" / "page.html"
    assert "<h1>a &lt;title&gt;</h1>" in page
    assert ANSWERS[GOOD] in unescape(page)
    assert page.count("<img") == 7
    report = by_title(report_of_fit(fit, *data, draws=400))
    assert list(report) == ["Summary", VERDICT, "Posterior draws", WEIGHTS, ELBO, PREDICTIONS, LOO, "Training"]
    short = dict(tables(report["Summary"])[0].rows)
    assert short["posterior"] == GOOD
    value, error = short["log evidence, by importance weights (nats)"]
    assert abs(value - evidence) < 4 * error + 1e-3
    for words in ("The weights p(x, z)", BY_RANK):
        assert figure_with(report[WEIGHTS], words)
    assert figure_with(report[ELBO], "The evidence lower bound")
    assert figure_with(report[PREDICTIONS], "Histograms of the data")
    assert figure_with(report[LOO], "LOO-PIT")
    (verdict,) = tables(report[VERDICT])
    assert [row[0] for row in verdict.rows] == list(fit.diagnose(*data, draws=400).statistics)
    assert all(row[2] and not row[3] for row in verdict.rows)


def normal_regression(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(P), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ b, NOISE), obs=y)


def test_restarts_are_reported():
    data = tuple(part.float() for part in regression()[1])
    guide = AutoDiagonalNormal(normal_regression)
    fit = ppgen.fit(normal_regression, guide, data, steps=2, restarts=4, compile=False, progress=False)
    names = {"dims": {"b": ["covariate"]}, "coords": {"covariate": ["one", "age", "mass"]}}
    report = by_title(report_of_fit(fit, *data, draws=100, **names))
    forest = figure_with(report[RESTARTS], INTERVALS).picture
    assert sorted(axes.get_title(loc="left").split("\n")[0] for axes in forest.axes) == ["b[age]", "b[mass]", "b[one]"]
    (table,) = tables(report[RESTARTS])
    assert [row[0] for row in table.rows] == [0, 1, 2, 3]
    assert "yes" in {row[-1] for row in table.rows}


def test_an_automatic_guide_is_reported_without_restarts_where_all_starts_reach_one_mode():
    _, data, _ = regression()
    fit = ppgen.fit(normal_regression, "auto", data, progress=False)
    report = by_title(report_of_fit(fit, *data, draws=300))
    summary = dict(tables(report["Summary"])[0].rows)
    assert summary["guide"] == "Gaussian of full rank"
    assert "compilation" not in summary
    assert RESTARTS not in report


def test_latents_of_each_row_have_a_k_hat_each_and_no_predictions():
    torch.manual_seed(0)
    encoder, x = nn.Linear(1, 2), torch.randn(30)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))

    fit = ppgen.fit(model, guide, x, steps=30, restarts=2, compile=False, progress=False)
    report = by_title(report_of_fit(fit, x, draws=100))
    assert not {PREDICTIONS, LOO} & set(report)
    assert [item.caption.split(",")[0] for item in report[WEIGHTS].items] == ["Pareto k-hat of each datum"]
    trace = figure_with(report[ELBO], "The evidence lower bound").picture.axes[0]
    (level,) = {line.get_ydata()[0] for line in trace.lines if line.get_label() == "log p(x)"}
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).mean()
    assert level == pytest.approx(float(exact), abs=0.1)
    forest = figure_with(report[RESTARTS], INTERVALS).picture
    assert len(forest.axes) == MAX_PANELS
    assert f"{MAX_PANELS} of 30 components" in text_of(forest)


def test_a_point_estimate_has_no_verdict_but_a_page():
    _, data, _ = regression()

    def model(x, y):
        b = pyro.sample("b", dist.Normal(x.new_zeros(P), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * b).sum(-1), NOISE), obs=y)

    data = tuple(part.float() for part in data)
    fit = ppgen.fit(model, AutoDelta(model), data, steps=5, compile=False, progress=False)
    report = by_title(report_of_fit(fit, *data, draws=50))
    section = report[VERDICT]
    assert ANSWERS[UNKNOWN] in section.text
    assert "a point without a density" in section.text
    assert not section.items
    (test,) = tables(report["Draws compared with data"])
    assert test.header == ("site", "statistic", "p-value")
    assert ELBO not in report
    assert not {PREDICTIONS, LOO} & set(report)
    assert dict(tables(report["Summary"])[0].rows)["posterior"] == UNKNOWN


def test_programs_without_latents_or_data_have_a_page():
    x = torch.randn(20)

    def no_latents(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit = ppgen.fit(no_latents, lambda x: None, x, steps=5, compile=False, progress=False)
    assert "no latents" in by_title(report_of_fit(fit, x, draws=50))[VERDICT].text

    def no_data():
        pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(8), 1.0 + 0.1 * torch.arange(8)).to_event(1))

    report = report_of_fit(fitted_by_elbo(no_data, guide), draws=200)
    assert report.subtitle == "no data; 200 draws in each chain"
    moved = figure_with(by_title(report)[WEIGHTS], BY_RANK).picture
    assert f"{MAX_PANELS} of 8 components" in text_of(moved)
    assert moved.axes[0].get_title(loc="left").split("\n")[0] in ("z[5]", "z[6]", "z[7]")


def test_the_verdict_is_that_of_the_draws_shown(monkeypatch):
    fit, data, _ = regression(widen=1.1)
    drawn, true = [], verdict_module.to_arviz
    monkeypatch.setattr(verdict_module, "to_arviz", lambda *args, **how: drawn.append(how) or true(*args, **how))
    report = by_title(report_of_fit(fit, *data, draws=200, seed=3))
    assert len(drawn) == 1
    verdict = fit.diagnose(*data, draws=200, seed=3)
    shown = {row[0]: row[1] for row in tables(report[VERDICT])[0].rows}
    assert shown == pytest.approx(verdict.statistics)
    names = {"b": ["covariate"], "y": ["patient"]}
    renamed = fit.to_arviz(*data, draws=200, predictive=False, chunk=200, seed=3, dims=names)
    assert fit.diagnose(*data, idata=renamed, seed=3).statistics == pytest.approx(verdict.statistics)


def test_too_many_data_are_not_replicated(monkeypatch):
    fit, data, _ = regression()
    monkeypatch.setattr(fit_module, "MAX_REPLICATED", 100)
    report = by_title(report_of_fit(fit, *data, draws=100, starts=0))
    assert "too many data" in report[PREDICTIONS].text
    assert not report[PREDICTIONS].items
    assert [type(item) for item in report[LOO].items] == [Table]
    assert tables(report[LOO])[0].rows[0][0] == "y"


def amortized(x: torch.Tensor) -> ppgen.Fit:
    encoder = nn.Linear(1, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))

    return ppgen.fit(model, guide, x, steps=2, compile=False, progress=False)


def test_without_time_there_are_few_draws_or_rows_and_the_page_says_so(tmp_path):
    fit, data, _ = regression()
    short = report_of_fit(fit, *data, budget=Budget(0))
    assert "25 draws in each chain. The time for this report was short" in short.subtitle
    x, names = torch.arange(40.0), {"dims": {"z": ["patient"]}, "coords": {"patient": [f"p{i}" for i in range(40)]}}
    fit = amortized(x)
    page = fit.report(tmp_path / "page.html", x, draws=50, seconds=0, **names).read_text()
    assert "data of shape (8,); 50 draws in each chain. The time for this report was short" in page
    with pytest.raises(ValueError, match="seconds: expected a number of at least 0"):
        fit.report(tmp_path / "page.html", x, seconds=-1)


def test_time_that_suffices_changes_no_statistic():
    fit, data, _ = regression()
    tabled = [by_title(report_of_fit(fit, *data, starts=0, budget=b))[VERDICT].items[0] for b in (None, Budget(1000))]
    assert tabled[0].rows == tabled[1].rows


def test_a_calibration_is_a_section():
    rng = np.random.default_rng(0)
    truths, draws = rng.normal(size=(200, 8)), rng.normal(size=(200, 99, 8))
    draws[..., 5] *= 0.3
    fit, data, _ = regression()
    report = by_title(report_of_fit(fit, *data, draws=50, starts=0, calibration=calibrate(truths, draws)))
    section = report["Calibration"]
    assert section.text.startswith("All tests together have p = 0.00")
    (table,) = tables(section)
    assert min(table.rows, key=lambda row: row[1])[0] == "z[5]"
    assert table.rows[-1][0] == "distance"
    assert figure_with(section, "Ranks").picture.axes[0].get_title(loc="left").startswith("z[5]")


def test_many_latents_are_reported_quickly(tmp_path):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(120), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 10.0), obs=x)

    x = torch.randn(40)
    fit = ppgen.fit(model, AutoDiagonalNormal(model), x, steps=20, restarts=2, compile=False, progress=False)
    page = fit.report(tmp_path / "page.html", x, draws=200, starts=0).read_text()
    assert page.count("<img") >= 5
