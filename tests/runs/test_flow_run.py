"""Runs of flows on data with levels."""

import json
import math

import numpy as np
import pytest

from ppgen.runs.cli import main
from ppgen.runs.run import Run


@pytest.mark.parametrize("method", ["glow", "realnvp"])
def test_a_run_on_levels_reports_bits_per_dimension(method, tmp_path, capsys):
    options = ["--model.hidden", "[4]", "--model.layers", "1", "--data.size", "200", "--fit.steps", "3"]
    assert main(["train", method, "digits", *options, "--out", "run"]) == 0
    assert "held-out bits per dimension" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "run" / "numbers.json").read_text())
    (nats, _), (bits, _) = (
        numbers[f"held-out {quantity}"] for quantity in ("log-likelihood (nats per datum)", "bits per dimension")
    )
    assert bits == pytest.approx(-nats / (64 * math.log(2)))
    run = Run.load("run")
    assert run.model.levels == 17
    samples = run.sample(5)
    assert samples.shape == (5, 1, 8, 8)
    assert set(np.unique(samples)) <= set(range(17))
