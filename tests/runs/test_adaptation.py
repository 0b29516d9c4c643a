"""Runs of domain adaptation from the command line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen.data import load
from ppgen.data.domains import load_domains
from ppgen.diagnostics import from_netcdf
from ppgen.evaluation import features_collapsed
from ppgen.models import DANN
from ppgen.runs.adaptation import FEATURE_SPREAD, AdaptationRun
from ppgen.runs.cli import main
from ppgen.runs.training import some_rows
from ppgen.tuning import DEFAULT_SCORER, score_of

labels_are_hidden = pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")


def table(path, labels, columns=("a", "b"), n=40):
    values = np.random.default_rng(len(path.name)).normal(size=(n, len(columns)))
    frame = pd.DataFrame(values, columns=list(columns))
    if labels is not None:
        frame["kind"] = np.resize(labels, n)
    frame.to_csv(path, index=False)
    return str(path)


OPTIONS = ["--data.size", "120", "--fit.steps", "30", "--fit.batch_size", "40", "--progress", "false", "--draws", "30"]
OPTIONS += ["--evaluation_seconds", "inf"]
SMALL = ["--model.hidden", "[8]", "--model.latent_dim", "4", "--loss.hidden", "[8]", "--fit.compile", "false"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*the target's labels are not trained on")
@pytest.mark.parametrize(
    "more", [["--model.conditional", "true"], ["--model.bayesian", "true", "--data.test", "0"]], ids=str
)
def test_a_run_reports_both_domains_and_its_warnings(more, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "dann", "--source", "moons", "--target", "rotated_moons", "--out", str(out)]
    assert main([*words, *OPTIONS, *SMALL, *more]) == 0
    printed = capsys.readouterr()
    assert "the target's labels are not trained on" in printed.err
    assert "accuracy on the target, by its labels" in printed.out
    page = (out / "report.html").read_text()
    for words_of_page in (
        "moons to rotated_moons",
        "accuracy of a domain classifier on the features",
        "The same rows, colored by label and domain",
    ):
        assert words_of_page in page
    numbers = json.loads((out / "numbers.json").read_text())
    assert 0 <= numbers["accuracy on the source"][0] <= 1
    assert (out / "posterior.nc").exists() == ("--model.bayesian" in more)
    assert ("Can the posterior be trusted?" in page) == ("--model.bayesian" in more)
    if "--model.bayesian" in more:  # of training rows, where none are held out
        stored = from_netcdf(out / "posterior.nc")
        assert stored["posterior"]["w"].shape[:2] == (1, 30)
        assert np.bincount(stored["observed_data"]["d"]).tolist() == [32, 32]
    run = AdaptationRun.load(out)
    x, _ = run.held_out("target")
    assert run.model.predict_proba(x).shape == (len(x), 2)
    assert not features_collapsed({"target": numbers[FEATURE_SPREAD.format("target")]})
    run.numbers = run.numbers | {FEATURE_SPREAD.format("target"): 1e-3}
    assert [(finding.name, finding.subject) for finding in run.training_warnings()] == [
        ("features collapsed", "target")
    ]
    assert main(["report", str(out)]) == 0
    assert "their spread is 0.001 of that before training" in (out / "report.html").read_text()
    assert main(["sample", str(out)]) == 2
    assert "'dann' does not generate data" in capsys.readouterr().err
    assert main(["compare", str(out)]) == 2
    assert "a run of 'dann' does not generate data of a data set" in capsys.readouterr().err


@labels_are_hidden
def test_a_run_is_evaluated_on_test_files(tmp_path, capsys):
    files = {
        "source": table(tmp_path / "source.csv", [0, 1]),
        "target": table(tmp_path / "target.csv", [-1, 0, -1]),
        "source_test": table(tmp_path / "source_test.csv", np.array([0, 1]), n=30),
        "target_test": table(tmp_path / "target_test.csv", np.array([1, 0, -1]), n=33),
    }
    words = [word for part, path in files.items() for word in (f"--{part}", path)]
    out = tmp_path / "run"
    steps = [
        "--fit.steps",
        "20",
        "--fit.batch_size",
        "40",
        "--progress",
        "false",
        "--out",
        str(out),
        "--data.label",
        "kind",
    ]
    assert main(["train", "dann", *words, *steps, *SMALL]) == 0, capsys.readouterr().err
    run = AdaptationRun.load(out)
    assert run.numbers["held-out rows"] == "30 of the source, 33 of the target"
    x, y = run.held_out("target")
    known = y >= 0
    assert known.sum() == 22
    right = (run.model.predict(x).numpy() == y)[known]
    assert run.numbers["accuracy on the target, by its labels"][0] == pytest.approx(right.mean())


def test_rows_of_both_domains_are_checked_before_the_training():
    domains = torch.tensor([0] * 3000 + [1] * 500)
    assert some_rows(domains).unique().tolist() == [0, 1]
    assert 1024 <= len(some_rows(domains)) < 2048


def test_a_target_without_labels_has_no_accuracy(tmp_path, capsys):
    source, target = table(tmp_path / "a.csv", ["cat", "dog"], n=120), table(tmp_path / "b.csv", None, n=120)
    out = tmp_path / "run"
    words = ["train", "dann", "--source", source, "--target", target, "--out", str(out), "--data.label", "kind"]
    assert main([*words, *SMALL, "--fit.steps", "20", "--progress", "false"]) == 0, capsys.readouterr().err
    numbers = json.loads((out / "numbers.json").read_text())
    assert not [name for name in numbers if name.startswith("accuracy on the target")]
    assert "The rows of the target have no labels" in (out / "report.html").read_text()


@pytest.mark.slow
@labels_are_hidden
@pytest.mark.filterwarnings("ignore:the best of restarts goes by the loss")
def test_tuning_chooses_by_a_score_and_the_folder_keeps_the_choice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "ppgen.tuning.CANDIDATES", {"coral 1": {"distance": "coral", "alpha": 1.0, "conditional": True}}
    )
    monkeypatch.setattr("ppgen.tuning.SOURCE_ONLY", "nothing")
    monkeypatch.setattr("ppgen.tuning.DEFAULT_STEPS", 5)
    out = tmp_path / "run"
    words = ["train", "dann", "--source", "moons", "--target", "rotated_moons", *OPTIONS, *SMALL]
    assert main([*words, "--tune", "entropy", "--fit.restarts", "2", "--out", str(out)]) == 0, capsys.readouterr().err
    tuning = json.loads((out / "tuning.json").read_text())
    assert tuning["scorer"] == "entropy"
    assert tuning["steps"] == 5
    assert set(tuning["scores"]) == {"nothing", "coral 1"}
    run = AdaptationRun.load(out)
    assert run.numbers["chosen without target labels, by entropy"] == tuning["chosen"]
    chosen = tuning["chosen"] == "coral 1"
    assert run.config["loss"]["alpha"] == ("Ramp(1.0, shape='sigmoid')" if chosen else 0.0)
    assert run.model.conditional == chosen


@labels_are_hidden
def test_negatives_of_the_source_make_features_invariant(tmp_path):
    x = load("digits", form="unit").train.x[:200]
    np.savez(tmp_path / "negatives.npz", x=1 - x)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(200) % 10)

    def decided(source, target, given=None):
        data = load_domains(str(tmp_path / source), str(tmp_path / target))
        config = {"model": {"contrast_invariant": given}}
        return AdaptationRun.with_data(config, data)["model"]["contrast_invariant"]

    with pytest.warns(UserWarning, match="the target's images look like negatives of the source's"):
        assert decided("images.npz", "negatives.npz")
    assert not decided("images.npz", "images.npz")
    assert decided("images.npz", "negatives.npz", given=False) is False


@labels_are_hidden
def test_a_score_chooses_where_checks_choose():
    data = load_domains("moons", "rotated_moons", size=60)
    rows = tuple(map(torch.as_tensor, data.rows("validation")))
    model = DANN((2,), 2, hidden=(4,))

    def checks(rows=rows, alpha=None, tune=None, **options):
        fit = {"steps": None, "epochs": None, "patience": None} | options
        return AdaptationRun.checks({"fit": fit, "tune": tune, "loss": {"alpha": alpha}}, model, rows)

    scorers = {None: DEFAULT_SCORER, "entropy": "entropy", "circular_validation": DEFAULT_SCORER}
    for options in ({}, {"epochs": 9, "patience": 2}):
        for tune, scorer in scorers.items():
            found = checks(tune=tune, **options)
            assert list(found) == ["score"]
            assert found["score"]() == score_of(model, rows, scorer)()
    of_source = tuple(part[rows[2] == 0] for part in rows)
    for options in ({"steps": 9}, {"epochs": 9}, {"alpha": 0.0}, {"rows": of_source}):
        assert list(checks(**options)) == ["validation"]


@pytest.mark.slow
@labels_are_hidden
def test_a_run_without_a_length_is_checked_by_a_score(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "dann", "--source", "moons", "--target", "rotated_moons", "--data.size", "200", *SMALL]
    words += ["--loss.alpha", "0.1", "--draws", "0", "--progress", "false", "--out", str(out), "--fit.max_steps", "60"]
    assert main(words) == 0, capsys.readouterr().err
    run = AdaptationRun.load(out)
    score = score_of(run.model, AdaptationRun.rows(run.config, run.data, "validation"))
    assert run.fit.chains[0].validation["loss"].min() == pytest.approx(score(), abs=1e-6)


@labels_are_hidden
def test_what_cannot_be_tuned_is_refused(tmp_path, capsys):
    words = ["train", "dann", "--source", "moons", "--target", "rotated_moons", *OPTIONS, *SMALL]
    assert main([*words, "--tune", "--data.validation", "0", "--out", str(tmp_path / "none")]) == 2
    assert "raise --data.validation" in capsys.readouterr().err
    assert main([*words, "--tune", "accuracy", "--out", str(tmp_path / "wrong")]) == 2
    assert "expected scorer to be one of" in capsys.readouterr().err
