"""Energies, evidence that is annealed, and the runs of a flow against an energy."""

import json
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen import recipes
from ppgen.infer import AutoFlow
from ppgen.models import ENERGIES
from ppgen.runs.cli import main
from ppgen.runs.energy import EnergyRun
from ppgen.tracing.particles import log_weights
from ppgen.tracing.traces import Traces

every_energy = pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES.keys())

# Rezende & Mohamed 2015, table 1, at two points, worked out by hand
AT = {
    "u1": ((2.0, 0.0), 0.0),
    "u2": ((1.0, 0.6), 0.5),
    "u3": ((-4.0, 0.35), 0.5 - math.log(2)),
    "u4": ((-4.0, 0.0), -math.log(2)),
}


# the energies


@every_energy
def test_an_energy_is_that_of_the_table(energy):
    x, expected = AT[energy.name]
    assert float(energy.potential(torch.tensor(x))) == pytest.approx(expected, abs=1e-4)


@every_energy
def test_log_z_is_the_integral(energy):
    """By another rule, on another grid; and by importance sampling from the base, at 5 standard errors (6e-7)."""
    side = torch.linspace(-energy.window, energy.window, 401, dtype=torch.float64)
    density = (-energy.potential(torch.stack(torch.meshgrid(side, side, indexing="ij"), -1))).exp()
    assert float(torch.trapezoid(torch.trapezoid(density, side), side).log()) == pytest.approx(energy.log_z, abs=1e-4)
    w = log_weights(energy.model, energy.base, (), particles=40_000).double().exp()
    assert float(w.mean() - math.exp(energy.log_z)) == pytest.approx(0.0, abs=5 * float(w.std()) / 200)


@every_energy
def test_pyros_own_guides_take_an_energy(energy):
    guide = AutoNormal(energy.model)
    fit = ppgen.fit(energy.model, guide, None, steps=3, compile=False)
    x = guide()["x"]
    assert energy.support.check(x)
    assert -float(fit.chains[0].final) < energy.log_z + 1
    assert fit.example == ()


# annealed evidence


def between(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(y, 0.5), obs=x)


def between_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.3)), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(pyro.param("b", torch.tensor(0.7)) * x, 0.4))


def between_base(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(0.0, 3.0))
    pyro.sample("z", dist.StudentT(3.0))


X = torch.tensor([0.5, -1.0, 2.0])


def between_prior(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(z, 1.0))


@pytest.mark.parametrize("path_derivative", [False, True])
@pytest.mark.parametrize("base", [None, between_base])
def test_it_is_the_path_from_the_base_to_the_posterior(base, path_derivative):
    """On one draw t log p + (1 - t) log b - log q mixes the evidences of p and of b; so for gradients."""
    store = pyro.get_param_store()

    def evaluated(loss, model):
        pyro.set_rng_seed(1)
        for _, leaf in store.named_parameters():
            leaf.grad = None
        value = loss.loss_and_grads(model, between_guide, X)
        return np.array([value, *(float(store._params[name].grad) for name in ("a", "b"))])

    evidence = ppgen.ELBO(path_derivative=path_derivative)
    at_model, at_base = evaluated(evidence, between), evaluated(evidence, base or between_prior)
    assert not np.allclose(at_model, at_base)
    for step, t in ((0, 0.0), (3, 0.3), (10, 1.0), (25, 1.0)):
        loss = ppgen.AnnealedELBO(base, schedule=ppgen.Ramp(1.0, steps=10), path_derivative=path_derivative)
        loss.step.fill_(step)
        np.testing.assert_allclose(evaluated(loss, between), t * at_model + (1 - t) * at_base, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_follows_the_path(builds):
    losses = []
    for compile in (True, False):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        loss = ppgen.AnnealedELBO(between_base, path_derivative=True)
        fit = ppgen.fit(between, between_guide, X, loss=loss, steps=12, compile=compile)
        losses.append(fit.history["loss"])
    assert len(builds) == 1
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_base_shares_the_rows_that_a_model_draws():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            y = pyro.sample("y", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(y, 0.5), obs=x[rows])

    def other(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(x[rows], 3.0))

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(x[rows], pyro.param("s", torch.tensor(0.4))))

    pyro.set_rng_seed(0)
    loss = ppgen.AnnealedELBO(other, schedule=ppgen.Ramp(1.0, steps=10))
    # at t = 0, of q = N(x, .4) against N(x, 3), one draw a row: the rows must be the same
    values = [loss.loss(model, guide, X) for _ in range(200)]
    exact = float(torch.distributions.kl_divergence(dist.Normal(0.0, 0.4), dist.Normal(0.0, 3.0)))
    assert np.mean(values) == pytest.approx(exact, abs=5 * np.std(values) / 200**0.5)


def missing_base(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def added_base(x):
    between_base(x)
    pyro.sample("zz", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: ppgen.AnnealedELBO(elbo=TraceMeanField_ELBO()), TypeError, "not with TraceMeanField_ELBO"),
        (lambda: ppgen.AnnealedELBO(schedule=0.5), TypeError, "schedule is a Ramp or an Anneal, got 0.5"),
        (lambda: ppgen.AnnealedELBO().loss(between, between_guide, X), ValueError, "needs the length of the run"),
        (
            lambda: ppgen.AnnealedELBO(missing_base, schedule=ppgen.Ramp(1.0, steps=2)).loss(between, between_guide, X),
            LookupError,
            "the base does not draw 'y'",
        ),
        (
            lambda: ppgen.AnnealedELBO(added_base, schedule=ppgen.Ramp(1.0, steps=2)).loss(between, between_guide, X),
            LookupError,
            "the base draws 'zz', which is no latent of the model; did you mean 'z'",
        ),
    ],
)
def test_what_cannot_be_annealed_says_why(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_it_is_no_evidence_bound_on_the_way():
    loss = ppgen.AnnealedELBO(between_base, path_derivative=True)
    assert not loss.is_evidence
    assert str(loss) == "AnnealedELBO(path derivative)[Ramp(0 -> 1)]"
    assert str(recipes.reverse_kl(anneal=0.5)) == "AnnealedELBO(path derivative)[Anneal(0 -> 1, 1 cycles)]"
    assert str(recipes.reverse_kl(path_derivative=False)) == "ELBO"


# mode dropping

APART = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-3.0, 3.0]), 0.5))


def two_modes():
    x = pyro.sample("x", dist.Normal(0.0, 3.0).mask(False))
    pyro.factor("energy", APART.log_prob(x))


def wide():
    pyro.sample("x", dist.Normal(0.0, 3.0))


@pytest.mark.parametrize("seed", range(2))
def test_a_mode_that_is_dropped_is_kept_from_a_base(seed):
    """Both have the same guide, seed and rates."""
    shares = {}
    for anneal, steps in ((0.0, 100), (0.7, 250)):
        guide = AutoFlow(two_modes, layers=2, init_scale=1.0)
        loss = recipes.reverse_kl(wide, particles=128, anneal=anneal, path_derivative=False, max_plate_nesting=0)
        adam = partial(torch.optim.Adam, lr=0.03)
        options = {"optim": adam, "lr_scheduler": "cosine", "seed": seed, "compile": False}
        ppgen.fit(two_modes, guide, None, loss=loss, steps=steps, **options)
        with torch.no_grad(), pyro.plate("draws", 2000):
            x = guide()["x"]
        shares[anneal] = float((x > 0).float().mean())
        assert float((x.abs() - 3).abs().mean()) < 1.0  # it lies at the modes
    assert min(shares[0.0], 1 - shares[0.0]) < 0.01
    assert min(shares[0.7], 1 - shares[0.7]) > 0.1


# the command line

QUICK = ["--fit.steps", "4", "--model.hidden", "[8]", "--model.layers", "1", "--particles", "1000"]
QUICK += ["--loss.particles", "8"]


@pytest.mark.parametrize("name", ENERGIES)
def test_a_run_leaves_its_numbers_and_its_page(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "flow", "--energy", name, *QUICK]) == 0
    folder = tmp_path / "runs" / f"flow-{name}"
    assert "KL from the flow to the energy" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "weights.safetensors", "numbers.json", "report.html")
    }
    numbers = json.loads((folder / "numbers.json").read_text())
    (kl, error), (bound, _) = (v for v in numbers.values() if isinstance(v, list))
    assert kl == pytest.approx(ENERGIES[name].log_z - bound)
    assert kl > -5 * error
    assert 0 < numbers["effective share of importance samples"] <= 1
    page = (folder / "report.html").read_text()
    for title in ("In short", "Density", "Training", "Configuration"):
        assert f"<h2>{title}</h2>" in page
    run = EnergyRun.load(folder)
    x = torch.as_tensor(run.draws(5))
    assert run.log_density(x).shape == (5,)
    # q integrates to one over the window
    side, grid = run.data.grid(200)
    mass = float(run.log_density(grid.float()).exp().sum()) * (side[1] - side[0]) ** 2
    assert mass == pytest.approx(1.0, abs=0.02)


def test_a_run_is_sampled_reported_and_repeated(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "flow", "--energy", "u2", *QUICK, "--out", "run"]) == 0
    assert main(["sample", "run", "--n", "7"]) == 0
    x = np.load("run/samples.npy")
    assert x.shape == (7, 2)
    assert np.abs(x).max() <= 4
    (tmp_path / "run/report.html").unlink()
    assert main(["report", "run"]) == 0
    assert (tmp_path / "run/report.html").exists()
    assert main(["train", "flow", "--config", "run/config.yaml", "--out", "again"]) == 0
    assert (tmp_path / "run/metrics.jsonl").read_text() == (tmp_path / "again/metrics.jsonl").read_text()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["energy"] == "u2"
    assert main(["sample", "run", "--label", "1"]) == 1
    assert "has no labels" in capsys.readouterr().err
    assert main(["compare", "run"]) == 1
    assert "a run of 'flow' is of an energy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--energy", "u5"], "no energy 'u5'; there are 'u1', 'u2'"),
        (["--energy", "u1", "--model.flow", "nfs"], "no flow 'nfs'; did you mean 'nsf'"),
        (["--energy", "u1", "--model.init_scale", "0"], "init_scale is more than 0"),
        (["--energy", "u1", "--fit.batch_size", "5"], "batch_size=5: programs without data"),
        (["--energy", "u1", "--loss.anneal", "1.5"], "0 < rise <= 1"),
    ],
)
def test_mistakes_are_named(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "flow", *QUICK, *options]) == 1
    assert said in capsys.readouterr().err


def test_the_energy_must_be_named(capsys):
    with pytest.raises(SystemExit):
        main(["train", "flow"])
    assert "energy" in capsys.readouterr().err


def test_a_draw_of_an_energy_has_its_site(tmp_path):
    energy = ENERGIES["u1"]
    guide = AutoFlow(energy.model, layers=1, hidden=(8,))
    draws = Traces(energy.model, guide, ())
    assert set(draws.find("posterior", "x")["value"].shape) == {2}
    fit = ppgen.fit(
        *(energy.model, guide, None),
        loss=ppgen.ELBO(elbo=Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)),
        steps=2,
        compile=False,
    )
    assert fit.to_arviz(draws=50, predictive=False).vi_stats.pareto_k.shape == (1,)
    assert list(fit.breakdown()) == ["ELBO"]


def test_a_fit_without_data_goes_on_where_it_was_stopped(tmp_path):
    energy = ENERGIES["u2"]

    def fitted(**options):
        pyro.set_rng_seed(0)
        guide = AutoFlow(energy.model, layers=1, hidden=(8,))
        loss = recipes.reverse_kl(energy.base, particles=8, anneal=0.5, max_plate_nesting=0)
        return ppgen.fit(energy.model, guide, None, loss=loss, steps=12, compile=False, **options).chains[0]

    whole, file = fitted(), tmp_path / "run.safetensors"
    fitted(checkpoint=file, callbacks=[lambda moment: moment.stop("enough") if moment.step == 5 else None])
    resumed = fitted(checkpoint=file)
    assert len(resumed.history["loss"]) == 12
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in whole.weights.items())


@pytest.mark.parametrize(("option", "said"), [("validation", "none to hold out"), ("batch_size", "have no batches")])
def test_what_programs_without_data_cannot_have(option, said):
    energy = ENERGIES["u1"]
    with pytest.raises(ValueError, match=said):
        ppgen.fit(energy.model, AutoFlow(energy.model), None, **{option: {"validation": 0.1, "batch_size": 4}[option]})
