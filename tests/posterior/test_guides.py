"""Fits by ``guide="auto"`` are loaded in new processes and behave as before; other programs are refused."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen import Fit
from ppgen.posterior import flow_vi
from ppgen.posterior.candidates import CandidateBuilder
from ppgen.posterior.guides import programs_of
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.starts import initial_points
from ppgen.utils.budget import Budget

X = torch.randn(20, generator=torch.Generator().manual_seed(1))


def gaussian(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + x, 1.0), obs=y)


def mirrored(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a.abs(), 0.3), obs=y)


def curved(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(a**2, 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b, 5.0), obs=y)


def classes(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(a + 3 * c, 0.3), obs=y)


def flat(x, y=None):
    a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x + a, 1.0), obs=y)


def bounded_by_data(x, y=None):
    bound = 1 + x.abs().max()
    a = pyro.sample("a", dist.Uniform(-bound, bound))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


# the program, its data, and the kind of guide that is found
FITS = {
    "gaussian": (gaussian, X + 1, "gaussian"),
    "mixture": (mirrored, X / 5 + 2, "mixture"),
    "discrete": (classes, X / 3 + 3 * (torch.arange(20) % 2), None),
    "improper": (flat, 2 * X, "gaussian"),
}


def auto(model, y=X):
    return ppgen.fit(model, "auto", (X, y), progress=False)


@pytest.mark.parametrize("case", FITS)
def test_a_loaded_fit_equals_the_saved_one(case, tmp_path):
    model, y, kind = FITS[case]
    fit = auto(model, y)
    assert kind in (None, fit.metadata["guide"]["kind"])
    assert_equal_after_loading(fit, model, y, tmp_path)


@pytest.mark.parametrize("model", [gaussian, curved])
def test_a_flow_is_built_again(model, tmp_path, monkeypatch):
    """A flow of a few steps, of one latent and of several."""
    for name, value in (("STEPS_PER_ROUND", 3), ("MAX_ROUNDS", 1)):
        monkeypatch.setattr(flow_vi, name, value)
    target = UnconstrainedLogDensity(model, (X, X))
    starts = initial_points(target, 2, torch.Generator().manual_seed(0))
    builder = CandidateBuilder(target, starts, 0, 0.0)
    candidate = builder.flow(starts[0], torch.eye(target.dim, dtype=torch.float64), Budget())
    fit = Fit(**vars(candidate.fit))
    assert fit.metadata["guide"]["kind"] == "flow"
    assert_equal_after_loading(fit, model, X, tmp_path)


def assert_equal_after_loading(fit, model, y, tmp_path):
    fit.save(tmp_path / "fit")
    kind = fit.metadata["guide"]["kind"]
    pyro.clear_param_store()
    loaded = Fit.load(tmp_path / "fit", model, "auto")
    assert type(loaded.guide) is type(fit.guide)
    assert str(loaded.loss) == str(fit.loss)
    found, expected = (f.predict(X[:3], draws=20)["y"] for f in (loaded, fit))
    np.testing.assert_array_equal(found.values, expected.values)
    found, expected = (f.to_arviz(X, y, draws=25, predictive=False)["sample_stats"] for f in (loaded, fit))
    np.testing.assert_array_equal(found["log_weight"].values, expected["log_weight"].values)
    if kind != "mixture":
        torch.manual_seed(0)
        losses = loaded.breakdown(X, y)
        torch.manual_seed(0)
        assert losses == fit.breakdown(X, y)


@pytest.mark.slow
def test_a_fit_is_loaded_in_a_new_process(tmp_path):
    fit = auto(gaussian, X + 1)
    fit.save(tmp_path / "fit")
    script = f"""
        import json, pyro, pyro.distributions as dist, torch, ppgen
        def program(x, y=None):
            a = pyro.sample("a", dist.Normal(0.0, 5.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(a + x, 1.0), obs=y)
        fit = ppgen.Fit.load({str(tmp_path / "fit")!r}, program, "auto")
        print(json.dumps(fit.predict(torch.tensor([2.0]), draws=4)["y"].values.tolist()))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == fit.predict(torch.tensor([2.0]), draws=4)["y"].values.tolist()


def test_supports_that_follow_from_data_need_the_data(tmp_path):
    fit = auto(bounded_by_data)
    fit.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"'a' has another shape or support than in the fit.* load\(..., data=x\)"):
        Fit.load(tmp_path / "fit", bounded_by_data, "auto")
    loaded = Fit.load(tmp_path / "fit", bounded_by_data, "auto", data=(X, X))
    np.testing.assert_array_equal(loaded.predict(X, draws=9)["y"].values, fit.predict(X, draws=9)["y"].values)


def test_shapes_that_follow_from_data_need_the_data(tmp_path):
    def grouped(g, y=None):
        with pyro.plate("groups", int(g.max()) + 1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(g)):
            pyro.sample("y", dist.Normal(a[g], 1.0), obs=y)

    g = torch.arange(20) % 3
    fit = ppgen.fit(grouped, AutoNormal(grouped), (g, X), steps=2, compile=False, progress=False)
    fit.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"give the data: load\(..., data=x\)"):
        Fit.load(tmp_path / "fit", grouped, AutoNormal(grouped))
    loaded = Fit.load(tmp_path / "fit", grouped, AutoNormal(grouped), data=(g, X))
    assert loaded.example[0].dtype == torch.int64
    np.testing.assert_array_equal(loaded.predict(g, draws=9)["y"].values, fit.predict(g, draws=9)["y"].values)


def test_other_programs_and_files_are_refused(tmp_path):
    auto(gaussian).save(tmp_path / "fit")
    with pytest.raises(LookupError, match="the program has the latents 'a', 'b', and the fit has 'a'"):
        Fit.load(tmp_path / "fit", curved, "auto")
    with pytest.raises(ValueError, match="'a' has another shape or support"):
        Fit.load(tmp_path / "fit", bounded_by_data, "auto")
    with pytest.raises(ValueError, match="a Pyro program or \"auto\", got 'nuts'"):
        Fit.load(tmp_path / "fit", gaussian, "nuts")
    guide = AutoNormal(gaussian)
    ppgen.fit(gaussian, guide, (X, X), steps=2, compile=False, progress=False).save(tmp_path / "other")
    with pytest.raises(LookupError, match='this fit has a guide of its own, not "auto": give that guide'):
        Fit.load(tmp_path / "other", gaussian, "auto")


def test_scales_of_a_linear_markov_model_are_latents_of_the_guide_too():
    """Pyro's autoguides trace the program themselves, and have to see what its density has."""

    def model(y):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        heavy = dist.StudentT(4.0, torch.zeros(1), s).to_event(1)
        pyro.sample("y", dist.LinearHMM(noise, torch.eye(1), heavy, torch.eye(1), noise), obs=y)

    y = torch.randn(3, 1)
    guide = AutoNormal(programs_of(model, []).model)
    assert set(guide(y)) == set(UnconstrainedLogDensity(model, (y,)).shapes) == {"s", "y_trans_gamma"}
