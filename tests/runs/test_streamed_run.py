"""``ppgen train`` on data that stay on disk."""

import json

import numpy as np
import pandas as pd

from ppgen.runs.cli import main


def test_a_run_streams_its_data_and_has_the_same_scaler(tmp_path):
    x = np.random.default_rng(0).normal(3, 2, (200, 3))
    table = pd.DataFrame(x, columns=list("abc")).assign(kind=np.where(x[:, 0] > 3, "u", "v"))
    table.to_parquet(tmp_path / "x.parquet", row_group_size=40)
    words = ["train", "vae", str(tmp_path / "x.parquet"), "--out", str(tmp_path / "run")]
    options = {
        "data.label": "kind",
        "data.stream": "true",
        "conditional": "true",
        "draws": "25",
        "particles": "5",
        "evaluation_seconds": "inf",
    }
    options |= {"fit.epochs": "1", "fit.batch_size": "40", "fit.compile": "false", "progress": "false"}
    assert main([*words, *(word for name, value in options.items() for word in (f"--{name}", value))]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert json.loads((tmp_path / "run" / "numbers.json").read_text())["held-out rows"] == 40
    assert main(["sample", str(tmp_path / "run"), "--n", "300", "--label", "0"]) == 0
    samples = np.load(tmp_path / "run" / "samples.npy")
    assert abs(samples.mean() - 3) < 1  # in the units of the file
