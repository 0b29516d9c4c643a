"""Each method of the command line: its names exist, and it trains, samples and leaves a complete run folder."""

import json

import numpy as np
import pytest

from ppgen.models import VAE
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
