"""The page on a posterior: a verdict and its figures, for fits of every kind, and what they say of planted mistakes."""

import math
from dataclasses import replace
from html import unescape

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal
from torch import nn

import ppgen
from ppgen.diagnostics import Ranks, calibrate, loo, rhat
from ppgen.diagnostics import verdict as verdict_module
from ppgen.diagnostics.verdict import BAD, GOOD, UNKNOWN, WEIGHTED, Verdict
from ppgen.fitting import Fit
from ppgen.report import Figure, Report, Section, Table, figures, report_of_fit
from ppgen.report import fit as of_fit
from ppgen.report import predictions as of_predictions
from ppgen.report.posterior import LIMIT, MEANINGS, WORDS, posterior
from ppgen.report.predictions import predictions
from ppgen.training.result import Chain
from ppgen.utils.arviz_versions import by_datum

N, P, NOISE = 40, 3, 0.7


def as_fit(model, guide, *data, chains: int = 1, steps: int = 60) -> Fit:
    """A fit that nobody trained."""
    trace = np.random.default_rng(0).normal(2.0, 0.1, steps)
    chain = Chain({}, {"loss": trace}, {"step": np.zeros(0), "loss": np.zeros(0)}, "as given", steps, 0.0)
    return Fit(model, guide, ppgen.ELBO(), [chain] * chains, data)


def regression(*, shift: float = 0.0, widen: float = 1.0, rows: int = N, seed: int = 0) -> tuple[Fit, tuple, float]:
    """A conjugate one whose guide is the posterior, moved and widened; its data, and the exact log evidence."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(rows), rng.normal(size=(rows, P - 1))])
    y = x @ np.array([0.5, -1.0, 0.3]) + NOISE * rng.normal(size=rows)
    covariance = np.linalg.inv(np.eye(P) + x.T @ x / NOISE**2)
    root = torch.as_tensor(np.linalg.cholesky(covariance))
    center = torch.as_tensor(covariance @ x.T @ y / NOISE**2) + shift * root.sum(1)

    def model(x, y):
        b = pyro.sample("b", dist.Normal(x.new_zeros(P), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * b).sum(-1), NOISE), obs=y)

    def guide(x, y):
        pyro.sample("b", dist.MultivariateNormal(center, scale_tril=widen * root))

    marginal = dist.MultivariateNormal(torch.zeros(rows).double(), torch.as_tensor(x @ x.T + NOISE**2 * np.eye(rows)))
    data = torch.as_tensor(x), torch.as_tensor(y)
    return as_fit(model, guide, *data), data, float(marginal.log_prob(data[1]))


def by_title(report: Report) -> dict[str, Section]:
    return {section.title: section for section in report.sections}


def tables(section: Section) -> list[Table]:
    return [item for item in section.items if isinstance(item, Table)]


def captions(section: Section) -> str:
    return "\n".join(item.caption for item in section.items)


def text_of(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def picture(section: Section, words: str) -> Figure:
    (found,) = [item for item in section.items if isinstance(item, Figure) and item.caption.startswith(words)]
    return found


TAIL, MOVED, TRACE, FOREST = "The weights", "Draws of the guide", "The evidence bound", "Restarts"
REPLICATES, LOO_PIT = "Data, and", "LOO-PIT"


# a page for every kind of fit


def test_a_good_fit_makes_a_whole_page(tmp_path):
    fit, data, evidence = regression(widen=1.02)
    path = fit.report(tmp_path / "new" / "page.html", *data, draws=400, title="a <title>")
    page = path.read_text()
    assert path == tmp_path / "new" / "page.html"
    assert "<h1>a &lt;title&gt;</h1>" in page
    assert WORDS[GOOD] in unescape(page)
    assert page.count("<img") == 7
    report = by_title(report_of_fit(fit, *data, draws=400))
    assert list(report) == ["In short", "Posterior", "Predictions", "Training"]
    short = dict(tables(report["In short"])[0].rows)
    assert short["posterior"] == GOOD
    value, error = short["log evidence, by importance weights (nats)"]
    assert abs(value - evidence) < 4 * error + 1e-3
    for words in (TAIL, MOVED, TRACE):
        assert picture(report["Posterior"], words)
    for words in (REPLICATES, LOO_PIT):
        assert picture(report["Predictions"], words)
    verdict, *_ = tables(report["Posterior"])
    assert [row[0] for row in verdict.rows] == list(fit.diagnose(*data, draws=400).figures)
    assert all(row[2] and not row[3] for row in verdict.rows)


def test_a_fit_without_a_guide_of_its_own_is_reported_with_its_restarts():
    _, data, _ = regression()

    def model(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(P), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ b, NOISE), obs=y)

    fit = ppgen.fit(model, "auto", data, progress=False)
    names = {"dims": {"b": ["covariate"]}, "coords": {"covariate": ["one", "age", "mass"]}}
    report = by_title(report_of_fit(fit, *data, draws=300, **names))
    assert dict(tables(report["In short"])[0].rows)["guide"] == "Gaussian of full rank"
    assert "the step" not in dict(tables(report["In short"])[0].rows)
    forest = picture(report["Posterior"], FOREST).picture
    assert sorted(axes.get_title(loc="left").split("\n")[0] for axes in forest.axes) == ["b[age]", "b[mass]", "b[one]"]
    table = tables(report["Posterior"])[-1]
    assert [row[0] for row in table.rows] == [0, 1, 2, 3]
    assert {row[-1] for row in table.rows} == {"yes"}


def test_latents_of_rows_have_a_k_hat_each_and_no_predictions():
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
    assert "Predictions" not in report
    assert picture(report["Posterior"], "Pareto k-hat, a number a datum")
    assert TAIL not in captions(report["Posterior"])
    trace = picture(report["Posterior"], TRACE).picture.axes[0]
    (level,) = {line.get_ydata()[0] for line in trace.lines if line.get_label() == "log p(x)"}
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).mean()
    assert level == pytest.approx(float(exact), abs=0.1)
    forest = picture(report["Posterior"], FOREST).picture
    assert len(forest.axes) == LIMIT
    assert f"{LIMIT} of 30 entries" in text_of(forest)


def test_a_point_has_no_verdict_and_a_page():
    _, data, _ = regression()

    def model(x, y):
        b = pyro.sample("b", dist.Normal(x.new_zeros(P), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * b).sum(-1), NOISE), obs=y)

    data = tuple(part.float() for part in data)
    fit = ppgen.fit(model, AutoDelta(model), data, steps=5, compile=False, progress=False)
    report = by_title(report_of_fit(fit, *data, draws=50))
    section = report["Posterior"]
    assert WORDS[UNKNOWN] in section.text
    assert "a point without a density" in section.text
    (test,) = tables(section)
    assert test.header == ("site", "statistic", "p-value")
    assert TRACE not in captions(section)
    assert "Predictions" not in report
    assert dict(tables(report["In short"])[0].rows)["posterior"] == UNKNOWN


def test_programs_without_latents_or_data_have_a_page():
    x = torch.randn(20)

    def no_latents(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit = ppgen.fit(no_latents, lambda x: None, x, steps=5, compile=False, progress=False)
    assert "no latents" in by_title(report_of_fit(fit, x, draws=50))["Posterior"].text

    def no_data():
        pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(8), 1.0 + 0.1 * torch.arange(8)).to_event(1))

    report = report_of_fit(as_fit(no_data, guide), draws=200)
    assert report.subtitle == "no data; 200 draws a restart"
    moved = picture(by_title(report)["Posterior"], MOVED).picture
    assert f"{LIMIT} of 8 entries" in text_of(moved)
    assert moved.axes[0].get_title(loc="left").split("\n")[0] in ("z[5]", "z[6]", "z[7]")


# what it says


def test_one_judgment_of_one_set_of_draws(monkeypatch):
    fit, data, _ = regression(widen=1.1)
    drawn, true = [], verdict_module.to_arviz
    monkeypatch.setattr(verdict_module, "to_arviz", lambda *args, **how: drawn.append(how) or true(*args, **how))
    report = by_title(report_of_fit(fit, *data, draws=200, seed=3))
    assert len(drawn) == 1
    verdict = fit.diagnose(*data, draws=200, seed=3)
    shown = {row[0]: row[1] for row in tables(report["Posterior"])[0].rows}
    assert shown == pytest.approx(verdict.figures)
    names = {"b": ["covariate"], "y": ["patient"]}
    renamed = fit.to_arviz(*data, draws=200, predictive=False, chunk=200, seed=3, dims=names)
    assert fit.diagnose(*data, idata=renamed, seed=3).figures == pytest.approx(verdict.figures)


def test_a_narrow_guide_is_called_bad_and_weights_say_where_it_is_narrow():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))

    def guide():
        scale = torch.where(torch.arange(8) == 6, 0.3, 1.0)
        pyro.sample("z", dist.Normal(torch.zeros(8), scale).to_event(1))

    fit = as_fit(model, guide)
    report = by_title(report_of_fit(fit, draws=600))
    section = report["Posterior"]
    assert WORDS[BAD] in section.text
    assert "To try: a richer guide" in section.text
    assert {row[0] for row in tables(section)[0].rows if row[3]} >= {"pareto_k"}
    assert set(fit.diagnose(draws=600).figures) <= set(MEANINGS)
    assert (
        "not to be relied on" in dict(tables(report["In short"])[0].rows)["log evidence, by importance weights (nats)"]
    )
    first = picture(section, MOVED).picture.axes[0]
    assert first.get_title(loc="left").startswith("z[6]\n")
    heights = first.patches[-1].get_data().values
    assert min(heights[0], heights[-1]) > 2 * heights[8:12].mean()


def test_a_guide_that_lies_beside_is_seen_and_replicates_are_resampled(monkeypatch):
    """The posterior is N(3, .2²) and the guide N(3.3, .3²): weights mend the mean of replicates."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    y = torch.linspace(2, 4, 25)
    fit = as_fit(model, lambda y: pyro.sample("m", dist.Normal(3.3, 0.3)), y)
    idata = fit.to_arviz(y, draws=1000)
    drawn = []
    draw = figures.replicates
    monkeypatch.setattr(figures, "replicates", lambda sites: drawn.append(sites["y"][0]) or draw(sites))
    for level, words, mean in ((GOOD, "as the guide draws them", 3.3), (WEIGHTED, "resampled by the", 3.0)):
        section = predictions(fit, idata, Verdict(level, {}))
        assert section is not None
        assert words in section.text
        assert {row[1]: row[3] for row in tables(section)[0].rows}["mean"] == pytest.approx(mean, abs=0.05)
        assert drawn[-1].mean() == pytest.approx(mean, abs=0.06)
    heights = picture(posterior(fit, idata), MOVED).picture.axes[0].patches[-1].get_data().values
    assert heights[:5].mean() > 2 * heights[-5:].mean()


def test_restarts_at_two_places_are_shown_with_their_r_hat():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(7), 10.0).to_event(1))
        sides = torch.stack([dist.Normal(-4.0, 0.5).log_prob(x[3]), dist.Normal(4.0, 0.5).log_prob(x[3])])
        pyro.factor("sides", sides.logsumexp(0))

    def guide():
        fourth = torch.arange(7) == 3
        loc = fourth * (8 * pyro.param("side", torch.zeros(())) - 4)
        pyro.sample("x", dist.Normal(loc, torch.where(fourth, 0.5, 10.0)).to_event(1))

    given = as_fit(model, guide)
    given.chains = [replace(given.chains[0], weights={"side": torch.tensor(s)}) for s in (0.0, 1.0, 1.0, 4.0)]
    idata = given.to_arviz(draws=200)
    section = posterior(given, idata, given.diagnose(idata=idata))
    assert section is not None
    assert "r_hat" in {row[0] for row in tables(section)[0].rows if row[3]}
    assert [row[-1] for row in tables(section)[-1].rows] == ["yes", "yes", "yes", "no"]
    forest = picture(section, FOREST).picture
    expected = float(rhat({"posterior": idata["posterior"].isel(chain=[0, 1, 2])})["x"].values[3])
    assert forest.axes[0].get_title(loc="left") == f"x[3]\nR-hat {expected:.3f}"
    assert expected > 1.5
    assert f"{LIMIT} of 7 entries" in text_of(forest)


def test_leave_one_out_is_that_of_the_diagnostic_and_of_fewer_data_where_there_are_many(monkeypatch):
    fit, data, _ = regression(rows=60)
    idata = fit.to_arviz(*data, draws=1000)
    (row,) = tables(predictions(fit, idata))[-1].rows
    name, count, (elpd, error), bad = row
    whole = loo(idata)
    assert (name, count) == ("y", "60 of 60")
    assert bad == (whole.pareto_k > whole.good_k).sum() < 3
    assert elpd == pytest.approx(by_datum(whole)[0].sum())
    assert error == pytest.approx(float(whole.se), rel=0.01)
    monkeypatch.setattr(of_predictions, "LEFT_OUT", 20)
    (fewer,) = tables(predictions(fit, idata))[-1].rows
    assert fewer[1] == "20 of 60"
    assert fewer[2][0] == pytest.approx(elpd / 3, rel=0.3)


def test_too_many_data_are_not_drawn_anew(monkeypatch):
    fit, data, _ = regression()
    monkeypatch.setattr(of_fit, "MOST", 100)
    section = by_title(report_of_fit(fit, *data, draws=100, starts=0))["Predictions"]
    assert "too many data" in section.text
    assert [type(item) for item in section.items] == [Table]
    assert tables(section)[0].rows[0][0] == "y"


def test_predictions_that_are_too_narrow_are_seen_by_loo_pit():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 0.4), obs=y)

    y = torch.as_tensor(np.random.default_rng(0).normal(size=80))
    distribution = dist.Normal(80 * y.mean() / (80 + 0.16 / 100), 0.4 / math.sqrt(80))
    fit = as_fit(model, lambda y: pyro.sample("m", distribution), y)
    section = predictions(fit, fit.to_arviz(y, draws=400))
    assert section is not None
    axes = picture(section, LOO_PIT).picture.axes[0]
    found = axes.lines[-1].get_ydata()
    assert found[:30].max() > 0.1
    assert found[-30:].min() < -0.1
    assert "p < .001" in axes.get_title(loc="left")


def test_weights_that_serve_no_datum_leave_loo_pit_out():
    fit, data, _ = regression(shift=6.0, widen=0.2)
    section = predictions(fit, fit.to_arviz(*data, draws=200))
    assert section is not None
    assert LOO_PIT not in captions(section)
    assert tables(section)[-1].rows[0][-1] > N / 2


def test_columns_are_shown_apart_and_data_that_are_no_numbers_left_out():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m.unsqueeze(-1), torch.ones(3)).to_event(1), obs=x)

    x = torch.randn(30, 3)
    fit = as_fit(model, lambda x: pyro.sample("m", dist.Normal(x.mean(), 0.1)), x)
    section = predictions(fit, fit.to_arviz(x, draws=100))
    axes = picture(section, REPLICATES).picture.axes
    assert [part.get_xlabel() for part in axes] == ["x[0]", "x[1]", "x[2]"]


def test_a_calibration_is_a_section():
    rng = np.random.default_rng(0)
    truths, draws = rng.normal(size=(200, 8)), rng.normal(size=(200, 99, 8))
    draws[..., 5] *= 0.3
    fit, data, _ = regression()
    report = by_title(report_of_fit(fit, *data, draws=50, starts=0, calibration=calibrate(truths, draws)))
    section = report["Calibration"]
    assert section.text.startswith("All together, p = 0.00")
    (table,) = tables(section)
    assert min(table.rows, key=lambda row: row[1])[0] == "z[5]"
    assert table.rows[-1][0] == "distance"
    assert picture(section, "Ranks").picture.axes[0].get_title(loc="left").startswith("z[5]")


def test_what_told_against_a_fit_without_a_figure_is_in_the_table_too():
    fit, data, _ = regression()
    idata = fit.to_arviz(*data, draws=50)
    verdict = Verdict(WEIGHTED, {"restarts": 1.0}, {"looked": "nobody looked"}, ("restarts=4", "a walk"))
    section = posterior(fit, idata, verdict)
    assert section is not None
    assert tables(section)[0].rows[-1] == ("looked", None, "", "nobody looked")
    assert "To try: restarts=4; a walk." in section.text


# the figures, by what they draw


def test_the_band_of_ranks_holds_what_is_uniform():
    rng = np.random.default_rng(0)
    ranks = Ranks(rng.integers(0, 100, (300, 1)), 99, ("z",))
    for made, inside in ((ranks, True), (Ranks(ranks.ranks // 2, 99, ("z",)), False)):
        axes = figures.uniformity(made).axes[0]
        path = made.path()
        found = axes.lines[-1].get_ydata()[1:-1]
        held = (found >= path.low - path.expected - 1e-9) & (found <= path.high - path.expected + 1e-9)
        assert held.all() == inside


def test_a_tail_is_drawn_in_equal_shares():
    log_weights = np.random.default_rng(0).normal(size=100)
    smooth = log_weights - np.logaddexp.reduce(log_weights)
    left, right = figures.weight_tail(log_weights, smooth, 0.2).axes
    heights = left.lines[0].get_ydata()
    assert heights.mean() == pytest.approx(1.0)
    assert (np.diff(heights) <= 0).all()
    shares = np.exp(smooth)
    assert right.get_title(loc="left") == f"{1 / np.square(shares).sum():.0f} effective draws of 100"
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.cumsum(np.sort(shares)[::-1]))


def test_a_moved_entry_has_its_weight_at_one_end():
    z = np.random.default_rng(0).normal(size=4000)
    weights = np.exp(0.5 * z)
    axes = figures.moved({"z": z}, weights / weights.sum()).axes[0]
    heights = axes.patches[-1].get_data().values
    assert heights.sum() == pytest.approx(20)
    assert (np.diff(heights) > 0).all()
    assert "mean +0.5" in axes.get_title(loc="left")


def test_replicates_are_counted_as_data_are():
    seen = np.arange(5.0).repeat(4)
    axes = figures.replicates({"y": (np.tile(seen, (10, 1)), seen)}).axes[0]
    *_, median, data = (patch.get_data().values for patch in axes.patches)
    np.testing.assert_array_equal(data, [4] * 5)
    np.testing.assert_array_equal(median, data)


def test_the_evidence_is_in_the_frame_and_the_way_there_is_not():
    trace = -5 - 1000 * np.exp(-np.arange(400) / 10.0)
    broken = np.where(np.arange(len(trace)) % 3 == 0, -np.inf, trace)[None]
    below = figures.evidence_trace(broken, (-9.0, -9.1, -8.9)).axes[0]
    assert below.get_ylim()[0] < -9.1
    axes = figures.evidence_trace(np.stack([trace, trace - 500]), (-4.0, -4.1, -3.9)).axes[0]
    low, high = axes.get_ylim()
    assert -10 < low < -5
    assert -3.9 < high < -3
    assert "ended below the frame: 1" in text_of(axes.figure)


def test_a_multivariate_autoguide_over_many_latents_is_quick_to_report(tmp_path):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(120), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 10.0), obs=x)

    x = torch.randn(40)
    fit = ppgen.fit(model, AutoMultivariateNormal(model), x, steps=20, restarts=2, compile=False, progress=False)
    page = fit.report(tmp_path / "page.html", x, draws=200, starts=0).read_text()
    assert page.count("<img") >= 5
