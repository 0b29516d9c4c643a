"""Two domains as data, the risk without labels, and a run of domain adaptation from the command line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen import data
from ppgen.adaptation import Adaptation
from ppgen.cli import main
from ppgen.data.domains import load_domains
from ppgen.diagnostics import adaptation_risk, feature_spread, features_collapsed

judged = pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")


@judged
def test_domains_share_units_and_hide_the_targets_labels():
    pair = load_domains("moons", "rotated_moons", size=200, scale="standard")
    raw = data.load("rotated_moons", size=200, seed=1, scale="none")
    np.testing.assert_allclose(pair.source.scaler.inverse(pair.target.x), raw.x, atol=1e-6)
    rows = pair.rows("train")
    n, m = len(pair.source.train.x), len(pair.target.train.x)
    assert rows.d.tolist() == [0] * n + [1] * m
    assert (rows.y[n:] == -1).all()
    assert np.array_equal(rows.y[:n], pair.source.train.y)
    assert np.array_equal(rows.x, np.concatenate([pair.source.train.x, pair.target.train.x]))
    assert np.array_equal(pair.target.y, raw.y)
    assert not np.array_equal(pair.source.y, pair.target.y)  # toy laws do not share their draws


def table(path, labels, columns=("a", "b"), n=40):
    values = np.random.default_rng(len(path.name)).normal(size=(n, len(columns)))
    frame = pd.DataFrame(values, columns=list(columns))
    if labels is not None:
        frame["kind"] = np.resize(labels, n)
    frame.to_csv(path, index=False)
    return str(path)


@judged
def test_labels_meet_by_name(tmp_path):
    source = table(tmp_path / "source.csv", ["cat", "dog", "eel"])
    target = table(tmp_path / "target.csv", ["eel", "dog"])
    pair = load_domains(source, target, label="kind")
    names = np.array(pair.source.label_names)
    assert names[np.unique(pair.target.y)].tolist() == ["dog", "eel"]
    assert pair.num_classes == 3


@judged
def test_sparse_tables_meet_in_the_columns_of_the_wider(tmp_path):
    source, target = tmp_path / "source.svmlight", tmp_path / "target.svmlight"
    source.write_text("".join(f"{'-1' if i % 2 else '1'} 0:{i} 2:0.5\n" for i in range(20)))
    target.write_text("".join(f"{'1' if i % 2 else '-1'} 1:{i + 1} 4:2\n" for i in range(20)))
    pair = load_domains(str(source), str(target), scale="none")
    assert pair.event_shape == (5,)
    assert pair.source.label_names == ("-1", "1")
    np.testing.assert_array_equal(pair.source.x[:, 0], range(20))
    np.testing.assert_array_equal(pair.source.y, [1, 0] * 10)
    np.testing.assert_array_equal(pair.target.y, [0, 1] * 10)
    np.testing.assert_array_equal(pair.target.x[3], [0, 4, 0, 0, 2])
    with pytest.raises(ValueError, match="is not a readable svmlight file"):
        data.load(source, features=2)
    (tmp_path / "bad.svmlight").write_text("1 0:x\n")
    with pytest.raises(ValueError, match=r"bad\.svmlight is not a readable svmlight file"):
        data.load(tmp_path / "bad.svmlight")
    with pytest.raises(ValueError, match="features=3 is of sparse tables"):
        data.load(table(tmp_path / "plain.csv", None), features=3)


def test_labels_of_the_target_are_told_of():
    with pytest.warns(UserWarning, match="rotated_moons: the target's labels are not trained on; they serve to judge"):
        load_domains("moons", "rotated_moons", size=50)


def test_domains_that_do_not_fit_are_named(tmp_path):
    plain = table(tmp_path / "plain.csv", None)
    labelled = table(tmp_path / "labelled.csv", ["cat", "dog"])
    other = table(tmp_path / "other.csv", ["cat", "cow"])
    wide = table(tmp_path / "wide.csv", ["cat", "dog"], columns=("a", "b", "c"))
    renamed = table(tmp_path / "renamed.csv", ["cat", "dog"], columns=("a", "c"))
    with pytest.raises(ValueError, match=r"plain\.csv: the source needs labels"):
        load_domains(plain, plain)
    for target, message in (
        (wide, r"rows of one shape, got \(2,\) of .*labelled.csv and \(3,\) of .*wide.csv"),
        (renamed, r"the same columns, got \('a', 'b'\) and \('a', 'c'\)"),
        (other, "other.csv: labels that the source does not have: cow; it has cat, dog"),
    ):
        with pytest.raises(ValueError, match=message):
            load_domains(labelled, target, label="kind")


def test_the_risk_of_domains_that_agree_is_that_of_the_source():
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(2, 800, 3))
    wrong = rng.random(800) < 0.2
    risk = adaptation_risk(h, g, wrong)
    assert risk.source == wrong.mean()
    assert risk.effective > 700
    assert risk.weighted == pytest.approx(risk.source, abs=4 * risk.weighted_error)  # level 6e-5
    assert risk.distance.p_value > 1e-3


def test_weights_find_the_risk_of_a_target_that_lies_elsewhere():
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 1)) + 1.0
    wrong = (rng.random(4000) < 1 / (1 + np.exp(-2 * h[:, 0]))).astype(int)  # more errors where the target lies
    truth = (1 / (1 + np.exp(-2 * g[:, 0]))).mean()
    risk = adaptation_risk(torch.as_tensor(h), torch.as_tensor(g), torch.as_tensor(wrong))
    assert abs(risk.source - truth) > 0.2
    assert risk.weighted == pytest.approx(truth, abs=4 * risk.weighted_error)
    assert risk.effective < 2000
    assert risk.distance.statistic > 0.6


def test_features_that_collapse_are_seen_and_others_are_not():
    h = np.random.default_rng(0).normal(size=(50, 3))
    spreads = {
        "as they were": feature_spread(h + 5, h),
        "half as far": feature_spread(torch.as_tensor(h / 2), h),
        "next to nothing": feature_spread(h / 1000, h),
        "one": feature_spread(np.ones((50, 3)), h),
        "one from the start": feature_spread(np.ones((50, 3)), np.zeros((50, 3))),
        "from one to many": feature_spread(h, np.zeros((50, 3))),
    }
    assert list(spreads.values()) == pytest.approx([1, 0.5, 0.001, 0, 0, np.inf])
    found = features_collapsed(spreads)
    assert [finding.player for finding in found] == ["next to nothing", "one", "one from the start"]
    assert "features collapsed (next to nothing): their spread is 0.001 of what it was" in str(found[0])


def test_risks_refuse_what_is_no_share_of_errors():
    h = np.zeros((10, 2)) + np.arange(10)[:, None]
    for wrong in (np.ones(9), np.full(10, 0.5)):
        with pytest.raises(ValueError, match=r"wrong: expected \(10,\) zeros and ones"):
            adaptation_risk(h, h, wrong)


OPTIONS = ["--data.size", "120", "--fit.steps", "30", "--fit.batch_size", "40", "--progress", "false", "--draws", "30"]
SMALL = ["--model.hidden", "[8]", "--model.latent_dim", "4", "--loss.hidden", "[8]", "--fit.compile", "false"]


@pytest.mark.filterwarnings("default:.*the target's labels are not trained on")
@pytest.mark.parametrize("more", [[], ["--model.conditional", "true"], ["--model.bayesian", "true"]], ids=str)
def test_a_run_from_the_command_line(more, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "dann", "--source", "moons", "--target", "rotated_moons", "--out", str(out)]
    assert main([*words, *OPTIONS, *SMALL, *more]) == 0
    printed = capsys.readouterr()
    assert "the target's labels are not trained on" in printed.err
    assert "accuracy in the target, by its labels" in printed.out
    page = (out / "report.html").read_text()
    for words_of_page in (
        "moons to rotated_moons",
        "domains told apart by features",
        "The same rows by label and domain",
    ):
        assert words_of_page in page
    numbers = json.loads((out / "numbers.json").read_text())
    assert 0 <= numbers["accuracy in the source"][0] <= 1
    assert (out / "posterior.nc").exists() == ("bayesian" in str(more))
    run = Adaptation.load(out)
    x, _ = run.held_out("target")
    assert run.model.predict_proba(x).shape == (len(x), 2)
    assert main(["report", str(out)]) == 0
    assert main(["sample", str(out)]) == 1
    assert "a run of 'dann' draws no data" in capsys.readouterr().err
    assert main(["compare", str(out)]) == 1
    assert "a run of 'dann' draws no data" in capsys.readouterr().err


def test_a_target_without_labels_is_not_judged(tmp_path, capsys):
    source, target = table(tmp_path / "a.csv", ["cat", "dog"], n=120), table(tmp_path / "b.csv", None, n=120)
    out = tmp_path / "run"
    words = ["train", "dann", "--source", source, "--target", target, "--out", str(out), "--data.label", "kind"]
    assert main([*words, *SMALL, "--fit.steps", "20", "--progress", "false"]) == 0, capsys.readouterr().err
    numbers = json.loads((out / "numbers.json").read_text())
    assert not [name for name in numbers if name.startswith("accuracy in the target")]
    assert "those of the target have none" in (out / "report.html").read_text()
