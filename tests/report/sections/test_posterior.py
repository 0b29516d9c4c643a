"""The sections on a posterior, and what they show of guides that are wrong in a known way."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from reports import by_title, context_of, figure_with, fit_of, fitted_by_elbo, tables, text_of

from ppgen.diagnostics import CHECKS, rhat
from ppgen.diagnostics.verdict import BAD, WEIGHTED, Verdict
from ppgen.report import report_of_fit
from ppgen.report.sections.restarts import MAX_PANELS, restarts
from ppgen.report.sections.verdict import ANSWERS, verdict_section

BY_RANK, INTERVALS = "The weight on each twentieth", "The median of each restart"


def test_a_narrow_guide_is_not_trusted_and_weights_show_where_it_is_narrow():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))

    def guide():
        scale = torch.where(torch.arange(8) == 6, 0.3, 1.0)
        pyro.sample("z", dist.Normal(torch.zeros(8), scale).to_event(1))

    fit = fitted_by_elbo(model, guide)
    report = by_title(report_of_fit(fit, draws=600))
    section = report["Can the posterior be trusted?"]
    assert ANSWERS[BAD] in section.text
    assert "What to try next: a richer guide" in section.text
    assert {row[0] for row in tables(section)[0].rows if row[3]} >= {"pareto_k"}
    assert set(fit.diagnose(draws=600).statistics) <= set(CHECKS)
    results = dict(tables(report["Summary"])[0].rows)
    assert "by unreliable weights" in results["log evidence, by importance weights (nats)"]
    first = figure_with(report["Importance weights"], BY_RANK).picture.axes[0]
    assert first.get_title(loc="left").startswith("z[6]\n")
    heights = first.patches[-1].get_data().values
    assert min(heights[0], heights[-1]) > 2 * heights[8:12].mean()


def test_r_hat_compares_restarts_of_comparable_evidence():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(7), 10.0).to_event(1))
        sides = torch.stack([dist.Normal(-4.0, 0.5).log_prob(x[3]), dist.Normal(4.0, 0.5).log_prob(x[3])])
        pyro.factor("sides", sides.logsumexp(0))

    def guide():
        fourth = torch.arange(7) == 3
        loc = fourth * (8 * pyro.param("side", torch.zeros(())) - 4)
        pyro.sample("x", dist.Normal(loc, torch.where(fourth, 0.5, 10.0)).to_event(1))

    given = fitted_by_elbo(model, guide)
    given.chains = [replace(given.chains[0], weights={"side": torch.tensor(s)}) for s in (0.0, 1.0, 1.0, 4.0)]
    idata = given.to_arviz(draws=200)
    context = context_of(given, idata, given.diagnose(idata=idata))
    assert "r_hat" in {row[0] for row in tables(verdict_section(context))[0].rows if row[3]}
    section = restarts(context)
    assert [row[-1] for row in tables(section)[-1].rows] == ["yes", "yes", "yes", "no"]
    forest = figure_with(section, INTERVALS).picture
    expected = float(rhat({"posterior": idata["posterior"].isel(chain=[0, 1, 2])})["x"].values[3])
    assert forest.axes[0].get_title(loc="left") == f"x[3]\nR-hat {expected:.3f}"
    assert expected > 1.5
    assert f"{MAX_PANELS} of 7 components" in text_of(forest)


def test_a_reason_without_a_statistic_is_in_the_table():
    verdict = Verdict(WEIGHTED, {"restarts": 1.0}, {"prior": "it is improper"}, ("restarts=4", "a proper prior"))
    section = verdict_section(context_of(fit_of(), verdict=verdict))
    first, last = tables(section)[0].rows
    assert first == ("restarts", 1, CHECKS["restarts"].description, "")
    assert last == ("prior", None, "", "it is improper")
    assert "What to try next: restarts=4; a proper prior." in section.text
