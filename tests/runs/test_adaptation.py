"""Two domains as data, the risk without labels, and a run of domain adaptation from the command line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen import data
from ppgen.data.domains import load_domains
from ppgen.diagnostics import from_netcdf
from ppgen.evaluation import adaptation_risk, feature_spread, features_collapsed
from ppgen.runs.adaptation import SPREAD, Adaptation
from ppgen.runs.cli import main

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
    assert pair.target.label_names == pair.source.label_names
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


def test_sparse_tables_are_read_once_each(tmp_path, monkeypatch):
    import sklearn.datasets

    files = {}
    for number, part in enumerate(("source", "target", "source_test", "target_test")):
        files[part] = tmp_path / f"{part}.svmlight"
        files[part].write_text("".join(f"{i % 2} {number}:{i + 1}\n" for i in range(20)))
    read, original = [], sklearn.datasets.load_svmlight_file
    monkeypatch.setattr(
        sklearn.datasets, "load_svmlight_file", lambda path, **options: read.append(path) or original(path, **options)
    )
    with pytest.warns(UserWarning, match="not trained on"):
        pair = load_domains(**files, scale="none")
    assert sorted(read) == sorted(map(str, files.values()))
    assert pair.event_shape == (4,)  # of the widest, a test file
    for domain, column in (("source", 2), ("target", 3)):
        data_of = getattr(pair, domain)
        np.testing.assert_array_equal(data_of.test.x[:, column], np.arange(20) + 1)
        assert not data_of.train.x[:, column].any()


@judged
def test_a_file_of_its_own_is_the_test_split(tmp_path):
    source = table(tmp_path / "s.csv", ["cat", "dog"])
    files = {
        "source_test": table(tmp_path / "source_test.csv", ["dog"], n=6),
        "target_test": table(tmp_path / "the_target_test.csv", ["dog", "cat"], n=8),
    }
    alone = load_domains(source, table(tmp_path / "tt.csv", None), label="kind", test=0.0)
    pair = load_domains(source, str(tmp_path / "tt.csv"), label="kind", **files)
    for domain, n in (("source", 6), ("target", 8)):
        held, main, x = getattr(pair, domain), getattr(alone, domain), pd.read_csv(files[f"{domain}_test"])
        np.testing.assert_array_equal(held.train.x, main.train.x)  # in the units of the train rows, which are the same
        np.testing.assert_array_equal(held.validation.x, main.validation.x)
        np.testing.assert_allclose(pair.source.scaler.inverse(held.test.x), x[["a", "b"]], atol=1e-6)
        assert len(held.test.x) == n
    assert pair.source.test.y.tolist() == [1] * 6
    assert pair.target.test.y.tolist() == [1, 0] * 4
    assert (pair.target.train.y == -1).all()
    one = load_domains(source, str(tmp_path / "tt.csv"), label="kind", size=20, source_test=files["source_test"])
    assert (len(one.source.x), len(one.target.test.x)) == (26, 4)  # the target's by its share


def numbered(path, labels):
    return table(path, np.array(labels))


NEGATIVE = {
    "of a source": (
        "source",
        [0, 1, -1, -1],
        r"source\.csv: 20 of 40 labels of the source are below 0, the least is -1",
    ),
    "of a source's test": (
        "source_test",
        [0, 1, 1, -1],
        r"source_test\.csv: 10 of 40 rows have labels .* not have: -1",
    ),
    "of a target": (
        "target",
        [0, -2, 1, -1],
        r"target\.csv: 10 of 40 rows have labels that the source .* have: -2; it",
    ),
    "of a target's test": ("target_test", [-2, -1], r"target_test\.csv: 20 of 40 rows have labels .* not have: -2"),
}


@judged
@pytest.mark.parametrize("case", NEGATIVE)
def test_labels_below_zero_are_named(case, tmp_path):
    part, labels, message = NEGATIVE[case]
    given = {"source": [0, 1], "target": [1], "source_test": [0, 1], "target_test": [1]} | {part: labels}
    files = {name: numbered(tmp_path / f"{name}.csv", values) for name, values in given.items()}
    with pytest.raises(ValueError, match=message):
        load_domains(**files, label="kind")


@judged
def test_minus_one_is_an_unknown_label_of_the_target(tmp_path):
    source = numbered(tmp_path / "source.csv", [0, 1, 2])
    pair = load_domains(source, numbered(tmp_path / "some.csv", [2, -1, 0, -1]), label="kind")
    assert pair.target.y.tolist() == [2, -1, 0, -1] * 10
    assert load_domains(source, numbered(tmp_path / "none.csv", [-1]), label="kind").target.y is None


def test_labels_of_the_target_are_told_of():
    with pytest.warns(UserWarning, match="rotated_moons: the target's labels are not trained on; they serve to judge"):
        load_domains("moons", "rotated_moons", size=50)


def test_domains_that_do_not_fit_are_named(tmp_path):
    plain = table(tmp_path / "plain.csv", None)
    labeled = table(tmp_path / "labeled.csv", ["cat", "dog"])
    other = table(tmp_path / "other.csv", ["cat", "cow"])
    wide = table(tmp_path / "wide.csv", ["cat", "dog"], columns=("a", "b", "c"))
    renamed = table(tmp_path / "renamed.csv", ["cat", "dog"], columns=("a", "c"))
    with pytest.raises(ValueError, match=r"plain\.csv: the source needs labels"):
        load_domains(plain, plain)
    for target, message in (
        (wide, r"rows of one shape, got \(2,\) of .*labeled.csv and \(3,\) of .*wide.csv"),
        (renamed, r"the same columns, got \('a', 'b'\) and \('a', 'c'\)"),
        (other, "other.csv: 20 of 40 rows have labels that the source does not have: cow; it has cat, dog"),
    ):
        with pytest.raises(ValueError, match=message):
            load_domains(labeled, target, label="kind")


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
@pytest.mark.parametrize(
    "more", [["--model.conditional", "true"], ["--model.bayesian", "true", "--data.test", "0"]], ids=str
)
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
    assert (out / "posterior.nc").exists() == ("--model.bayesian" in more)
    assert ("The posterior is" in page) == ("--model.bayesian" in more)
    if "--model.bayesian" in more:  # of training rows, where none are held out
        stored = from_netcdf(out / "posterior.nc")
        assert stored["posterior"]["w"].shape[:2] == (1, 30)
        assert np.bincount(stored["observed_data"]["d"]).tolist() == [32, 32]
    run = Adaptation.load(out)
    x, _ = run.held_out("target")
    assert run.model.predict_proba(x).shape == (len(x), 2)
    assert not features_collapsed({"target": numbers[SPREAD.format("target")]})
    run.keep(run.numbers | {SPREAD.format("target"): 1e-3})
    assert [(finding.sign, finding.player) for finding in run.training_warnings()] == [("features collapsed", "target")]
    assert main(["report", str(out)]) == 0
    assert "their spread is 0.001 of what it was" in (out / "report.html").read_text()
    assert main(["sample", str(out)]) == 1
    assert "a run of 'dann' draws no data" in capsys.readouterr().err
    assert main(["compare", str(out)]) == 1
    assert "a run of 'dann' draws no data" in capsys.readouterr().err


@judged
def test_a_run_is_judged_by_files_of_their_own(tmp_path, capsys):
    files = {
        "source": numbered(tmp_path / "source.csv", [0, 1]),
        "target": numbered(tmp_path / "target.csv", [-1, 0, -1]),
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
    run = Adaptation.load(out)
    assert run.numbers["held-out rows"] == "30 of the source, 33 of the target"
    x, y = run.held_out("target")
    known = y >= 0
    assert known.sum() == 22
    right = (run.model.predict(x).numpy() == y)[known]
    assert run.numbers["accuracy in the target, by its labels"][0] == pytest.approx(right.mean())


def test_a_target_without_labels_is_not_judged(tmp_path, capsys):
    source, target = table(tmp_path / "a.csv", ["cat", "dog"], n=120), table(tmp_path / "b.csv", None, n=120)
    out = tmp_path / "run"
    words = ["train", "dann", "--source", source, "--target", target, "--out", str(out), "--data.label", "kind"]
    assert main([*words, *SMALL, "--fit.steps", "20", "--progress", "false"]) == 0, capsys.readouterr().err
    numbers = json.loads((out / "numbers.json").read_text())
    assert not [name for name in numbers if name.startswith("accuracy in the target")]
    assert "those of the target have none" in (out / "report.html").read_text()
