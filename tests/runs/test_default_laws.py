"""Laws of default runs: they end with their best check, whatever the ceiling; columns count in any unit and order."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_ind

import ppgen
from ppgen.runs.cli import main
from ppgen.runs.data_run import DataRun
from ppgen.runs.methods import METHODS
from ppgen.training import chain as chain_trainer
from ppgen.training import convergence

IMAGES = ("progan", "glow")  # they take only images
ON_TABLES = [name for name, method in METHODS.items() if method.kind.endswith(":DataRun") and name not in IMAGES]
WITHOUT_CRITICS = [name for name in ON_TABLES if not METHODS[name].recipe_function()().critics]
QUICK = ["fm"]
SMALL = [
    *("--model.hidden", "[8]", "--fit.batch_size", "32", "--data.size", "150", "--fit.compile", "false"),
    *("--draws", "0", "--progress", "false"),
]
UNITS = np.array([1.0, 1e-3, 300.0])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Shorter patience, so that runs take tens of steps and not thousands, and no evaluation after them."""
    for name in ("PATIENCE_STEPS", "FLAT_STEPS"):
        monkeypatch.setattr(chain_trainer, name, 20)
    monkeypatch.setattr(chain_trainer, "CHECK_STEPS", (5, 1000))
    monkeypatch.setattr(convergence, "WINDOW", 60)
    monkeypatch.setattr(DataRun, "finish", lambda *_, **__: [])


def trained(method: str, source: str, *options: str) -> DataRun:
    """A run of the command line with small networks."""
    words = ["train", method, source, *SMALL, *options]
    out = "-".join([method, source, *options])
    assert main([*words, "--out", out]) == 0
    return DataRun.load(out)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT_CRITICS]
)
def test_a_default_run_ends_with_its_best_check_whatever_the_ceiling(name):
    run = trained(name, "moons")
    (chain,) = run.fit.chains
    assert chain.stop_reason.startswith("converged")
    assert chain.final == chain.validation["loss"].min()
    held_out = run.rows(run.config, run.data, "validation")
    with run.fit.eval_mode():
        again = [sum(run.fit.breakdown(*held_out).values()) for _ in range(20)]
    error = np.std(again) + np.std(chain.validation["loss"][-5:])
    assert np.mean(again) < chain.final + 4 * error + 1e-3 * abs(chain.final)
    longer = trained(name, "moons", "--fit.max_steps", str(2 * convergence.MAX_STEPS))
    assert longer.fit.chains[0].stop_reason == chain.stop_reason
    for key, weights in longer.fit.chains[0].weights.items():
        torch.testing.assert_close(weights, chain.weights[key], rtol=0, atol=0)


def rows(seed: int = 0) -> np.ndarray:
    """Rows of three columns that depend on one another, none of which is Gaussian."""
    a, b, c = np.random.default_rng(seed).normal(size=(3, 300))
    return np.stack([a, a**2 / 2 + 0.5 * b, np.exp(0.5 * b) + 0.3 * c], 1)


def table(name: str, x: np.ndarray) -> str:
    """The path of a table with these rows."""
    pd.DataFrame(x, columns=["a", "b", "c"]).to_csv(path := f"{name}.csv", index=False)
    return path


def held_out_density(run: DataRun) -> float:
    """The mean log density of held-out rows, in the units of the source."""
    x = run.data.scaler.inverse(run.data.test.x)
    return float(np.mean(ppgen.load(run.folder).log_prob(x)))


@pytest.mark.slow
def test_a_default_run_is_the_same_in_other_units():
    """All methods see the same rows, and after 60 steps a flow has the same density to .01 nats."""
    sources = [table(name, rows() * units) for name, units in (("one", 1.0), ("other", UNITS))]
    runs = [trained("nsf", source, "--fit.steps", "60") for source in sources]
    first, second = (run.data.train.x for run in runs)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    one, other = map(held_out_density, runs)
    assert one == pytest.approx(other + np.log(UNITS).sum(), abs=0.01)


def test_a_default_fit_of_a_whitened_flow_is_the_same_in_other_units():
    """Without a scaler, after 60 steps, to .01 nats."""
    densities = []
    for units in (np.ones(3), UNITS):
        x = torch.as_tensor(rows() * units)
        torch.manual_seed(0)
        model = ppgen.models.FlowModel((3,), flow="nsf", layers=2, hidden=(8,)).double()
        ppgen.fit(model.model, model.guide, x[:200], batch_size=60, steps=60, compile=False, progress=False)
        densities.append(float(model.log_prob(x[200:]).mean()) + np.log(units).sum())
    assert densities[0] == pytest.approx(densities[1], abs=0.01)


@pytest.mark.slow
def test_the_order_of_the_columns_does_not_count_beyond_the_noise_of_seeds():
    """Held-out densities of four seeds in each order: Welch's test at a level of .001."""
    x = rows()
    found = [
        [held_out_density(trained("nsf", table("t", x[:, order]), "--fit.seed", str(seed))) for seed in seeds]
        for order, seeds in (([0, 1, 2], range(4)), ([2, 0, 1], range(4, 8)))
    ]
    assert ttest_ind(*found, equal_var=False).pvalue > 0.001
    assert np.std(found) < 0.5
