"""Runs of a flow that is fitted to an unnormalized density, from the command line."""

import json

import numpy as np
import pytest
import torch
import yaml

from ppgen.models import ENERGIES
from ppgen.runs.cli import main
from ppgen.runs.energy import EnergyRun

QUICK = ["--fit.steps", "4", "--model.hidden", "[8]", "--model.layers", "1", "--particles", "1000"]
QUICK += ["--loss.particles", "8"]


@pytest.mark.parametrize("name", ENERGIES)
def test_a_run_stores_its_results_and_its_report(name, tmp_path, capsys):
    assert main(["train", "flow", "--energy", name, *QUICK]) == 0
    folder = tmp_path / "runs" / f"flow-{name}"
    assert "KL(flow, target)" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "run.safetensors", "metrics.jsonl", "weights.safetensors", "numbers.json", "report.html")
    }
    numbers = json.loads((folder / "numbers.json").read_text())
    (kl, error), (bound, _) = (v for v in numbers.values() if isinstance(v, list))
    assert kl == pytest.approx(ENERGIES[name].log_z - bound)
    assert kl > -5 * error
    assert 0 < numbers["effective sample size / importance samples"] <= 1
    page = (folder / "report.html").read_text()
    for title in ("Summary", "Density", "Training", "Configuration"):
        assert f"<h2>{title}</h2>" in page
    run = EnergyRun.load(folder)
    x = torch.as_tensor(run.sample(5))
    assert run.log_density(x).shape == (5,)
    # q integrates to one over the window
    side, grid = run.data.grid(200)
    mass = float(run.log_density(grid.float()).exp().sum()) * (side[1] - side[0]) ** 2
    assert mass == pytest.approx(1.0, abs=0.02)


def test_a_run_is_sampled_reported_and_repeated(tmp_path, capsys):
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
    assert main(["sample", "run", "--label", "1"]) == 2
    assert "has no labels" in capsys.readouterr().err
    assert main(["compare", "run"]) == 2
    assert "a run of 'flow' does not generate data of a data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--energy", "u5"], "no energy 'u5'; there are 'u1', 'u2'"),
        (["--energy", "u1", "--model.flow", "nfs"], "no flow 'nfs'; did you mean 'nsf'"),
        (["--energy", "u1", "--model.init_scale", "0"], "init_scale must be above 0"),
        (["--energy", "u1", "--fit.batch_size", "5"], "batch_size=5: programs without data"),
        (["--energy", "u1", "--loss.anneal", "1.5"], "rise in (0, 1]"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys):
    assert main(["train", "flow", *QUICK, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_unnormalized_density_is_required(capsys):
    assert main(["train", "flow"]) == 2
    assert "energy" in capsys.readouterr().err
