"""Comparison of runs on the same data."""

import numpy as np
import pandas as pd
import pytest

from ppgen import data as datasets
from ppgen.evaluation import summary
from ppgen.runs.cli import main
from ppgen.runs.compare import _in_units_of


def test_runs_are_compared_under_every_metric(quick, tmp_path, capsys, monkeypatch):
    metrics = dict(list(summary.METRICS.items())[:2])
    monkeypatch.setattr(summary, "METRICS", metrics)
    for method in ("vae", "gan"):
        assert main(["train", method, "ring", *quick, "--out", method]) == 0
    capsys.readouterr()
    assert main(["compare", "vae", "gan", "--n", "60"]) == 0
    printed = capsys.readouterr().out
    for words in (*metrics, "training data", "modes captured", "classifier two-sample accuracy"):
        assert words in printed
    page = (tmp_path / "compare.html").read_text()
    assert all(words in page for words in metrics)
    captured = next(line for line in printed.splitlines() if line.startswith("modes captured"))
    assert captured.split()[-1] == "8"  # of 60 rows of the true distribution


def test_runs_whose_folders_have_the_same_name_are_all_compared(quick, capsys, monkeypatch):
    monkeypatch.setattr(summary, "METRICS", {})
    for folder in ("a/run", "b/run"):
        assert main(["train", "ae", "moons", *quick, "--out", folder]) == 0
    capsys.readouterr()
    assert main(["compare", "a/run", "b/run", "--n", "60"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["a/run", "b/run", "training", "data"]
    assert main(["compare", "a/run", "./a/run"]) == 2
    assert "expected different run folders" in capsys.readouterr().err


def test_runs_on_different_data_are_not_compared(quick, capsys):
    assert main(["train", "ae", "moons", *quick, "--out", "a"]) == 0
    assert main(["train", "ae", "ring", *quick, "--out", "b"]) == 0
    assert main(["compare", "a", "b"]) == 2
    assert "compare runs on the same data" in capsys.readouterr().err
    assert main(["compare", "a", "--n", "19"]) == 2
    assert "expected n of at least 20" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["continuous", "unit", "binary"])
def test_gray_levels_and_numbers_from_zero_to_one_are_compared_in_the_same_unit(form):
    integer, other = (datasets.load("digits", form=form, size=50) for form in ("integer", form))
    levels = _in_units_of(integer, other.x, other)
    assert levels.min() == 0
    assert levels.max() == 16
    if form != "binary":
        assert np.array_equal(levels, integer.x)
    fractions = _in_units_of(other, integer.x, integer)
    assert 0 < fractions.min() < fractions.max() < 1
    assert np.array_equal(_in_units_of(integer, fractions, other), integer.x)
    assert _in_units_of(other, other.x, other) is other.x


@pytest.mark.figures
def test_runs_on_a_table_are_compared_column_by_column(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "METRICS", {})
    pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["age", "income, €"]).to_csv(
        "t.csv", index=False
    )
    assert main(["train", "ae", "t.csv", *quick, "--out", "run"]) == 0
    assert main(["compare", "run", "--n", "60"]) == 0
    page = (tmp_path / "compare.html").read_text()
    for words in ("run: the table", "detection score", "copies of training rows", "income, €", "Synthetic rows."):
        assert words in page
