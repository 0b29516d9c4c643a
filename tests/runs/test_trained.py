"""`ppgen.load`: a trained model in the units of its source, and further training from its weights."""

import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import ppgen
from ppgen.report import Report
from ppgen.runs.cli import main
from ppgen.runs.run import DataMissingError
from ppgen.runs.training import resume

SHORT = ["--fit.steps", "6", "--particles", "4", "--fit.compile", "false", "--evaluation_seconds", "inf"]
SMALL = [*SHORT, "--draws", "0", "--model.hidden", "[8]"]


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal([1000.0, -50.0], [30.0, 2.0], size=(300, 2)), columns=["height", "depth"])
    return frame.assign(kind=np.resize(["cat", "dog"], 300))


RUNS = {
    "vae": ["vae", "table.csv", "--data.label", "kind", "--conditional", "true", *SMALL],
    "maf": ["maf", "table.csv", "--data.label", "kind", *SMALL, "--data.validation", "0", "--data.test", "0"],
    "dann": ["dann", "--source", "table.csv", "--target", "table.csv", "--data.label", "kind", *SMALL],
    "digits": ["vae", "digits", "--data.size", "200", *SMALL],
    "bernoulli": ["vae", "digits", "--data.size", "200", *SMALL, "--model.likelihood", "bernoulli"],
    "glow": [
        "glow",
        "digits",
        "--data.size",
        "200",
        "--draws",
        "0",
        *SHORT,
        "--model.hidden",
        "[4]",
        "--model.layers",
        "1",
    ],
    "ramp": ["vae", "moons", *SMALL, "--loss.beta", "Ramp(2.0, steps=12)", "--fit.restarts", "2"],
    "gan": ["gan", "moons", *SMALL],
    "flows": ["vae", "moons", *SMALL, "--model.posterior", "planar"],
    "energy": ["flow", "--energy", "u1", *SHORT, "--particles", "100", "--model.hidden", "[8]"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Trains each of `RUNS` when it is first asked for, in one folder."""
    home = tmp_path_factory.mktemp("trained")
    table().to_csv(home / "table.csv", index=False)

    def folder(name):
        if not (home / name).exists():
            with pytest.MonkeyPatch.context() as patched:
                patched.chdir(home)
                patched.setattr("ppgen.report.report_of_run", lambda *_, title, **__: Report(title))
                patched.setattr("ppgen.report.adaptation.report_of_adaptation", lambda *_, **__: Report("adapted"))
                patched.setattr("ppgen.runs.adaptation.AdaptationRun.measure", lambda *_: {})
                assert main(["train", *RUNS[name], "--out", name]) == 0
        return home / name

    return folder


pytestmark = pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")


def standardized(frame, run):
    """The rows as the model sees them, by NumPy alone."""
    train = table()[["height", "depth"]].to_numpy()[run.data.rows["train"]]
    return torch.as_tensor(((frame.to_numpy() - train.mean(0)) / train.std(0)).astype(np.float32)), train.std(0)


def test_densities_are_in_the_units_of_the_file(folders):
    trained = ppgen.load(folders("maf"))
    frame = table()[["height", "depth"]][:5]
    rows, scale = standardized(frame, trained.run)
    expected = trained.run.model.log_prob(rows).numpy() - np.log(scale).sum()
    assert trained.log_prob(frame) == pytest.approx(expected, rel=1e-4)
    assert trained.log_prob(frame[["depth", "height"]]) == pytest.approx(expected, rel=1e-4)  # columns go by name
    # by its own density, the mass of a box of 6 standard deviations is one
    sides = [np.linspace(m - 6 * s, m + 6 * s, 81) for m, s in zip([1000, -50], [30, 2], strict=True)]
    points = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
    cell = np.prod([side[1] - side[0] for side in sides])
    assert np.exp(trained.log_prob(points)).sum() * cell == pytest.approx(1.0, abs=0.02)


def test_codes_and_reconstructions_of_a_conditional_model(folders):
    trained = ppgen.load(folders("vae"))
    frame, kinds = table()[["height", "depth"]][:6], table()["kind"][:6].to_numpy()
    rows, scale = standardized(frame, trained.run)
    y = torch.tensor([0, 1] * 3)
    codes = trained.encode(frame, kinds)
    assert codes == pytest.approx(trained.run.model.encode(rows, y).mean.numpy(), rel=1e-5)
    assert trained.encode(frame.to_numpy(), y.numpy(), mean=False).shape == codes.shape
    assert trained.decode(codes, kinds) == pytest.approx(trained.reconstruct(frame, kinds), rel=1e-5)
    assert np.abs(trained.reconstruct(frame, kinds) - [1000, -50]).max() < 200
    torch.manual_seed(3)
    evidence = trained.run.model.log_evidence(rows, y, particles=7).numpy() - np.log(scale).sum()
    assert trained.log_evidence(frame, kinds, particles=7, seed=3) == pytest.approx(evidence, rel=1e-4)
    assert trained.sample(4, label="dog").shape == trained.sample(4, label=["dog", "cat", "cat", "dog"]).shape == (4, 2)
    assert np.array_equal(trained.sample(4, label="dog"), trained.sample(4, label=1))
    assert trained.to_arviz(frame, kinds, draws=25).posterior["z"].shape[:3] == (1, 25, 6)
    assert trained.to_arviz(draws=25).posterior["z"].shape[:2] == (1, 25)  # of the rows in the folder


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.sample(3, label="dgo"), "no label 'dgo'; did you mean 'dog'"),
        (lambda t: t.sample(3, label=2), "expected numbers 0 .. 1, got 2 to 2"),
        (lambda t: t.sample(3, label=[0, 1]), "3 or one for all rows"),
        (lambda t: t.sample(3), "the model is conditional: choose the label"),
        (lambda t: t.encode(table()[["height"]]), "column 'depth' is missing"),
        (lambda t: t.encode(np.zeros((2, 3)), 0), r"expected rows of shape \(2,\)"),
        (lambda t: t.encode(np.array([[np.nan, 1.0]]), 0), "x"),
        (lambda t: t.train(), "give one of epochs and steps"),
    ],
)
def test_what_does_not_match_the_data_is_refused(call, message, folders):
    with pytest.raises(ValueError, match=message):
        call(ppgen.load(folders("vae")))


def test_rows_are_computed_a_few_at_a_time(folders, monkeypatch):
    trained = ppgen.load(folders("vae"))
    frame, kinds = table()[["height", "depth"]][:11], table()["kind"][:11].to_numpy()
    methods = (trained.encode, trained.reconstruct)
    whole = [method(frame, kinds) for method in methods]
    monkeypatch.setattr("ppgen.utils.budget.MAX_NUMBERS", 8)
    sizes = []
    trained.run.model.encoder.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    for method, expected in zip(methods, whole, strict=True):
        assert method(frame, kinds) == pytest.approx(expected, rel=1e-5)
    assert sizes == 2 * [4, 4, 3]


def test_methods_that_a_model_lacks_are_named(folders):
    trained = ppgen.load(folders("gan"))
    assert not hasattr(trained, "encode")
    assert "encode" not in dir(trained)
    assert "sample" in dir(trained)
    with pytest.raises(AttributeError, match="a run of 'gan' has no log_prob; it has sample, decode, to_arviz"):
        trained.log_prob(np.zeros((2, 2)))


def test_a_classifier_predicts_the_labels_of_the_source(folders):
    trained = ppgen.load(folders("dann"))
    predicted = trained.predict(table()[["height", "depth"]])
    assert predicted.shape == (300,)
    assert set(predicted) <= {"cat", "dog"}
    assert not hasattr(trained, "sample")


def test_images_are_gray_levels_or_numbers_from_0_to_1(folders):
    levels = np.arange(17).repeat(64)[: 10 * 64].reshape(10, 1, 8, 8)
    continuous = ppgen.load(folders("digits"))
    seen = continuous.run.units.to_model(levels).numpy()
    assert np.array_equal(np.floor(seen * 17), levels)  # dequantized
    assert np.allclose(continuous.encode(seen), continuous.encode(levels))
    flow = ppgen.load(folders("glow"))
    drawn = flow.sample(3)
    assert np.array_equal(drawn, np.round(drawn))
    assert np.isfinite(flow.log_prob(drawn)).all()
    binary = ppgen.load(folders("bernoulli"))
    assert binary.reconstruct(levels // 9).shape == levels.shape
    for trained, wrong in ((continuous, levels + 9), (binary, levels), (flow, levels + 0.5)):
        with pytest.raises(ValueError, match=r"gray levels|0 or 1|integer"):
            trained.run.units.to_model(wrong)


def test_a_flow_without_data_has_draws_and_a_density(folders):
    trained = ppgen.load(folders("energy"))
    x = trained.sample(5)
    assert np.allclose(trained.log_prob(x), trained.run.log_density(torch.as_tensor(x)).numpy())


def test_training_goes_on_in_a_new_folder(folders, tmp_path):
    folder = folders("ramp")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    trained = ppgen.load(folder)
    more = trained.train(steps=1, out=tmp_path / "more", progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    options = more.run.config
    assert (options["fit"]["steps"], options["fit"]["epochs"], options["fit"]["seed"]) == (1, None, 1)
    assert options["loss"]["beta"] == 1.0  # half of the ramp's twelve steps
    start, end = (run.fit.chains[run.fit.best].weights for run in (trained.run, more.run))
    moved = [float((end[name] - start[name]).abs().max()) for name in start]
    assert 0 < max(moved) <= 1.01 * options["lr"]  # one step of Adam from the old weights
    assert np.array_equal(ppgen.load(tmp_path / "more").sample(3), more.sample(3))
    assert main(["resume", str(tmp_path / "more")]) == 2  # it is complete


def test_a_run_that_was_trained_on_a_gpu_is_used_on_the_cpu(folders, tmp_path):
    """Weights are stored without their device; only the configuration names it."""
    copy = shutil.copytree(folders("ramp"), tmp_path / "copy")
    text = (copy / "config.yaml").read_text()
    assert "device: null" in text
    (copy / "config.yaml").write_text(text.replace("device: null", "device: cuda:3"))
    trained = ppgen.load(copy)
    assert np.array_equal(trained.sample(3), ppgen.load(folders("ramp")).sample(3))
    assert trained.train(steps=1, progress=False).run.config["fit"]["device"] is None


def test_codes_of_a_flow_posterior_have_a_center(folders):
    trained = ppgen.load(folders("flows"))
    x = trained.sample(4)
    assert trained.decode(trained.encode(x)) == pytest.approx(trained.reconstruct(x), rel=1e-5)


def test_training_goes_on_after_a_kill_before_the_first_checkpoint(folders, tmp_path, monkeypatch):
    trained = ppgen.load(folders("gan"))
    whole = trained.train(steps=3, out=tmp_path / "whole", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr("ppgen.runs.metrics_log.MetricsLog.__call__", lambda *_: sys.exit())
        with pytest.raises(SystemExit):  # no error, after which the folder would be removed
            trained.train(steps=3, out=tmp_path / "killed", progress=False)
    with pytest.warns(UserWarning, match="begins again"):
        resumed = resume(tmp_path / "killed", progress=False)
    one, other = (run.fit.chains[0].weights for run in (whole.run, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)  # critics too


@pytest.mark.filterwarnings("default:.*needs the data")
def test_two_domains_are_used_without_their_tables(folders, tmp_path, monkeypatch, capsys):
    trained = ppgen.load(shutil.copytree(folders("dann"), tmp_path / "copy"))
    rows = trained.run.diagnosed_rows()
    assert np.bincount(rows[2]).tolist() == [60, 60]  # held-out rows of both domains
    assert (rows[1][60:] == -1).all()
    monkeypatch.setattr("ppgen.runs.record.Record.locate", lambda *_: "gone.csv")
    monkeypatch.setattr("ppgen.report.adaptation.report_of_adaptation", lambda *_, note, **__: Report(note))
    assert main(["report", "copy"]) == 0
    assert "this needs the data of the run, table.csv, table.csv, which cannot be read" in capsys.readouterr().err
    assert "The data are missing" in (tmp_path / "copy/report.html").read_text()
    assert main(["diagnose", "copy", "--draws", "50"]) == 0


def test_further_training_needs_the_data(folders, tmp_path):
    trained = ppgen.load(folders("maf"))
    (folders("maf").parent / "table.csv").rename(tmp_path / "elsewhere.csv")
    try:
        with pytest.raises(DataMissingError, match=r"needs the data of the run, table\.csv"):
            trained.train(epochs=1, out=tmp_path / "more")
        assert not (tmp_path / "more").exists()
        assert trained.sample(2).shape == (2, 2)
    finally:
        (tmp_path / "elsewhere.csv").rename(folders("maf").parent / "table.csv")


def test_a_device_that_there_is_not_is_an_error_before_files_are_read(folders):
    with pytest.raises(ValueError, match="device must be one of this machine, such as 'cpu', got 'nonsense'"):
        ppgen.load(folders("maf"), device="nonsense")
    with pytest.raises(ValueError, match="device must be one of this machine"):
        ppgen.Fit.load(folders("maf") / "fit.safetensors", lambda: None, lambda: None, device="nonsense")
