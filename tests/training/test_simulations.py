"""``fit(simulator, "auto", ...)``: one call for neural posterior estimation."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.diagnostics import calibrate, verdict


def model(x=None):
    """x ~ N(z, 30^2) with z ~ N(100, 30^2), and w ~ U(0, 1), of which x says nothing."""
    z = pyro.sample("z", dist.Normal(100.0, 30.0))
    pyro.sample("w", dist.Uniform(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 30.0), obs=x)


def quick(data=None, **options):
    options = {"steps": 3, "restarts": 2, "progress": False, "compile": False} | options
    return ppgen.fit(ppgen.Simulator(model), "auto", data, **options)


def test_the_guide_starts_where_the_table_is():
    """Latents are standardized by the table: a flow begins at its moments on the real line, whatever the units."""
    fit = quick(simulations=500, steps=1, restarts=1)
    torch.manual_seed(0)
    draws = fit.guide(torch.zeros(500))
    assert abs(draws["z"].mean() - 100) < 10
    assert 15 < draws["z"].std() < 45
    assert ((draws["w"] > 0) & (draws["w"] < 1)).all()


def test_a_table_and_a_number_of_simulations_are_the_same():
    table = ppgen.Simulator(model).draw(200, seed=0)
    by_table, by_number = quick(table), quick(simulations=200)
    for a, b in zip(by_table.chains, by_number.chains, strict=True):
        assert (a.history["loss"] == b.history["loss"]).all()
    assert len(by_table.chains) == 2


def test_failed_simulations_are_named_and_left_out_on_request():
    table = ppgen.Simulator(model).draw(60, seed=0)
    table.x[[3, 40]] = torch.nan
    with pytest.raises(ValueError, match=r"2 of 60 simulations are not finite at 'x': rows 3, 40; failed="):
        quick(table)
    with pytest.warns(UserWarning, match="rows 3, 40; they are left out"):
        fit = quick(table, failed="leave out")
    kept = type(table)(*(part[~table.x.isnan()] for part in table))
    assert (fit.history["loss"] == quick(kept).history["loss"]).all()


@pytest.mark.slow
def test_draws_and_verdict():
    fit = quick(simulations=200)
    idata = fit.to_arviz(torch.tensor([90.0]), draws=30)
    assert idata["posterior"]["z"].shape == (2, 30, 1)
    verdict = fit.diagnose(torch.tensor([90.0]))
    assert verdict.level == "not to be trusted"  # after three steps draws are those of the prior
    assert verdict.statistics["calibration_p"] < 0.01


@pytest.mark.parametrize(("shift", "level"), [(0.0, "good"), (1.0, "not to be trusted")])
def test_the_verdict_can_fail_with_many_latents(monkeypatch, shift, level):
    """Forty components, of which the p-value by Bonferroni is at least 41 / 2001; the level is that, .02, then."""
    rng = np.random.default_rng(0)
    found = calibrate(rng.normal(size=(200, 40)) + shift, rng.normal(size=(200, 19, 40)))
    monkeypatch.setattr(verdict, "calibrate_ensemble", lambda *args, **kwargs: found)
    assert quick(simulations=60, steps=1).diagnose().level == level


def test_a_stored_fit_is_loaded_with_the_simulator_alone(tmp_path):
    fit = quick(simulations=100)
    fit.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", fit.model, "auto")
    x = torch.tensor([90.0])
    first, second = (each.to_arviz(x, draws=25, predictive=False)["posterior"]["z"].values for each in (fit, loaded))
    assert (first == second).all()
    assert loaded.metadata["simulator"]


def test_bad_input_is_refused():
    simulator = ppgen.Simulator(model)
    for options, says in (
        ({}, "either a table"),
        ({"data": simulator.draw(50), "simulations": 50}, "either a table"),
        ({"simulations": 50, "failed": "drop"}, "failed is 'refuse' or 'leave out', got 'drop'"),
        ({"simulations": 50, "budget": 3.0}, "no budget and no loss"),
    ):
        with pytest.raises(ValueError, match=says):
            ppgen.fit(simulator, "auto", **options)
    with pytest.raises(ValueError, match=r"simulations is for a ppgen\.Simulator"):
        ppgen.fit(lambda: None, "auto", simulations=50)


@pytest.mark.slow
def test_a_linear_simulator_is_inverted():
    """Given x = 160, z ~ N(130, 450): the mean within 2 and the deviation within a fifth; calibration at level .01."""
    options = {"restarts": 1, "steps": 400, "progress": False, "compile": False}
    fit = ppgen.fit(ppgen.Simulator(model), "auto", simulations=3000, **options)
    z = fit.to_arviz(torch.tensor([160.0]), draws=2000, predictive=False)["posterior"]["z"].values
    assert abs(z.mean() - 130) < 2
    assert 0.8 < z.std() / 450**0.5 < 1.2
    assert fit.diagnose().level == "good"
