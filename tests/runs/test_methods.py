"""Each method of the command line: its names exist, and it trains, samples and leaves a complete run folder."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ppgen
from ppgen.models import VAE
from ppgen.models.protocols import Encodes, HasLogEvidence, HasLogProb
from ppgen.runs.cli import main
from ppgen.runs.data_run import DataRun
from ppgen.runs.methods import METHODS
from ppgen.runs.run import Run

SMALL_IMAGES = ["--model.hidden", "[4, 6]", "--loss.hidden", "[4, 6]"]
# methods of images, and the options of a small run; all others are trained on moons
IMAGES = {"progan": SMALL_IMAGES, "glow": []}
ON_DATA = [name for name, method in METHODS.items() if method.kind.endswith(":DataRun")]


def test_each_method_names_a_model_a_recipe_and_a_kind_of_run():
    for name, method in METHODS.items():
        assert callable(method.model_class()), name
        assert callable(method.recipe_function()), name
        assert issubclass(method.run_class(), Run), name
        assert method.summary, name


def test_the_docs_say_of_each_method_what_its_default_is_good_for():
    page = (Path(__file__).parents[2] / "docs" / "defaults.md").read_text()
    rows = page.split("| method | good for | where it fails |")[1].split("\n\n")[0]
    named = [name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")]
    assert sorted(named) == sorted(METHODS)


@pytest.mark.parametrize("name", ON_DATA)
def test_each_method_on_data_trains_reports_and_samples(name, quick, tmp_path, capsys):
    source, options = ("digits", IMAGES[name]) if name in IMAGES else ("moons", [])
    assert main(["train", name, source, *quick, "--draws", "25", *options]) == 0
    folder = tmp_path / "runs" / f"{name}-{source}"
    assert str(folder / "report.html") in capsys.readouterr().out
    expected = {"config.yaml", "run.safetensors", "metrics.jsonl", "weights.safetensors", "numbers.json", "report.html"}
    expected |= {"posterior.nc"} if METHODS[name].model_class() is VAE else set()
    expected |= {"stages.safetensors"} if name == "progan" else set()
    assert {path.name for path in folder.iterdir()} == expected
    run = DataRun.load(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        terms = [v for k, v in line.items() if k not in ("chain", "step", "epoch", "loss", "adversarial_metrics")]
        assert line["loss"] == pytest.approx(sum(terms))
        assert ("adversarial_metrics" in line) == bool(run.fit.loss.critics)
    assert main(["sample", str(folder), "--n", "5"]) == 0
    assert np.load(folder / "samples.npy").shape == (5, *run.data.event_shape)
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    check_loaded(folder)


def check_loaded(folder):
    """Each method that a loaded model lists works in the units of the source, and it has exactly those."""
    trained = ppgen.load(folder)
    x = trained.sample(5)
    assert np.array_equal(x, np.load(folder / "samples.npy"))
    results = {"sample": x}
    if hasattr(trained, "reconstruct"):
        results["reconstruct"] = trained.reconstruct(x)
    if hasattr(trained, "encode"):
        codes = trained.encode(x, mean=False)
        assert codes.shape == (5, trained.run.model.latent_dim)
        results["decode"] = trained.decode(codes)
    elif hasattr(trained, "decode"):
        results["decode"] = trained.decode(np.zeros((5, trained.run.model.latent_dim)))
    for name, value in results.items():
        assert value.shape == x.shape, name
        assert np.isfinite(value).all(), name
    for name, capability in (("log_prob", HasLogProb), ("log_evidence", HasLogEvidence), ("encode", Encodes)):
        assert hasattr(trained, name) == isinstance(trained.run.model, capability) == (name in trained.methods())
        if hasattr(trained, name) and name != "encode":
            assert np.isfinite(getattr(trained, name)(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")
def test_each_method_is_trained_on(name, quick, tmp_path, monkeypatch):
    """From the weights of a run, in a new folder, which is whole as well."""
    monkeypatch.setattr("ppgen.runs.data_run.DataRun.evaluate", lambda *_: {})
    data = ["digits" if name in IMAGES else "moons"]
    options = [*quick, "--draws", "0", *IMAGES.get(name, [])]
    if name == "dann":
        data, options = ["--source", "moons", "--target", "rotated_moons"], [*quick, "--loss.hidden", "[8]"]
    if name == "flow":
        data, options = ["--energy", "u1"], ["--fit.steps", "4", "--model.hidden", "[8]", "--particles", "100"]
    assert main(["train", name, *data, *options, "--out", "run"]) == 0
    more = ppgen.load("run").train(steps=2, progress=False)
    assert more.run.folder == tmp_path / "run-continued"
    again = ppgen.load("run-continued")
    one, other = (trained.run.fit.chains[0].weights for trained in (more, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    start = ppgen.load("run").run.fit
    assert set(start.chains[start.best].weights) == set(one)
