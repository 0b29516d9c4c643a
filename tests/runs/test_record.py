"""A run folder is whole: it is used elsewhere, without its data, and a change of the data is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ppgen.data import load
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.report import Report
from ppgen.runs.cli import main
from ppgen.runs.record import KEPT_ROWS, Record
from ppgen.runs.run import DataChangedError, DataMissingError, Run

STORED = Path(__file__).parent / "stored"
OPTIONS = ["--fit.steps", "6", "--model.hidden", "[8]", "--draws", "25", "--particles", "4", "--fit.compile", "false"]
OPTIONS += ["--evaluation_seconds", "inf"]


def table(scale: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal([1000.0, -50.0], [30.0, 2.0], size=(400, 2)) * scale, columns=["height", "depth"])
    return frame.assign(kind=np.resize(["cat", "dog", "eel"], 400))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a conditional run on a table, and beside it the table."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("ppgen.report.report_of_run", lambda *_, title, **__: Report(title))
        table().to_csv("table.csv", index=False)
        words = ["train", "vae", "table.csv", "--data.label", "kind", "--conditional", "true", *OPTIONS]
        assert main([*words, "--out", "run"]) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """A copy of both in the working directory, from where the absolute path in the record leads nowhere."""
    shutil.copytree(trained / "run", "run")
    shutil.copy(trained / "table.csv", "table.csv")
    forget_paths(tmp_path / "run")
    return tmp_path


def forget_paths(run: Path) -> None:
    """As if the folder came from another machine."""
    tensors, metadata = read(run / "run.safetensors")
    for part in metadata["parts"].values():
        for origin in part["origins"]:
            origin["path"] = "/another/machine/table.csv"
    write(run / "run.safetensors", tensors, metadata)


def sampled(*more: str) -> np.ndarray:
    assert main(["sample", "run", "--n", "50", "--label", "1", "--out", "samples.npy", *more]) == 0
    return np.load("samples.npy")


def test_samples_and_verdict_do_not_depend_on_the_data(place, capsys):
    samples = sampled()
    assert np.abs(samples.mean(0) - [1000, -50]).max() < 30
    assert main(["diagnose", "run", "--draws", "50"]) == 0
    verdict = capsys.readouterr().out.partition("posterior")[2]
    for change in (lambda: table(1000.0).to_csv("table.csv", index=False), lambda: (place / "table.csv").unlink()):
        change()
        assert np.array_equal(sampled(), samples)
        assert main(["diagnose", "run", "--draws", "50"]) == 0
        assert capsys.readouterr().out.partition("posterior")[2] == verdict


def test_the_record_holds_what_describes_the_data_and_the_machine(place):
    record = Record.read(place / "run")
    kept, splits = record.parts["data"].kept, record.parts["data"].splits
    assert (kept.columns, kept.label_names, kept.classes) == (("height", "depth"), ("cat", "dog", "eel"), 3)
    assert (kept.event_shape, kept.form, kept.levels) == ((2,), "continuous", None)
    assert [(origin.source, origin.rows, origin.dtype) for origin in kept.origins] == [("table.csv", 400, "float64")]
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(400))
    assert set(record.versions) == {"ppgen", "python", "torch", "pyro", "numpy"}
    assert (record.seed, record.threads) == (0, 1) or record.threads > 1
    run = Run.load("run")
    for split in ("train", "validation", "test"):  # the data as read again, with the stored scaler and splits
        whole, few = getattr(run.data, split), getattr(run.kept, split)
        count = min(KEPT_ROWS, len(whole.x))
        assert np.array_equal(few.x, whole.x[:count])
        assert np.array_equal(few.y, whole.y[:count])


@pytest.mark.filterwarnings("default")
def test_a_report_without_data_shows_the_rows_that_are_kept(place, capsys):
    (place / "table.csv").unlink()
    (place / "run/report.html").unlink()
    assert main(["report", "run"]) == 0
    printed = capsys.readouterr()
    assert "needs the data of the run, table.csv, which cannot be read: there is no file or folder" in printed.err
    assert (place / "run/report.html").exists()
    assert main(["report", "run", "--evaluate", "true"]) == 2
    assert main(["compare", "run"]) == 2
    with pytest.raises(DataMissingError, match=r"table\.csv"):
        Run.load("run").evaluate()


@pytest.mark.figures
@pytest.mark.filterwarnings("default")
def test_the_page_of_a_report_says_that_the_data_are_missing(place):
    (place / "table.csv").unlink()
    assert main(["report", "run"]) == 0
    page = (place / "run/report.html").read_text()
    assert "The data are missing: shown are the first rows of each split" in page
    assert all(f"<h2>{title}</h2>" in page for title in ("Samples", "Reconstructions", "Posterior draws"))


@pytest.mark.filterwarnings("default")
def test_data_that_have_changed_are_named_and_evaluated_on_request(place, capsys):
    numbers = json.loads((place / "run/numbers.json").read_text())
    changed = table()
    changed.loc[399, "depth"] += 1e-9  # one value of the last row
    changed.to_csv("table.csv", index=False)
    assert main(["report", "run"]) == 0  # from the rows that are kept
    assert "table.csv had 400 rows with digest" in capsys.readouterr().err
    for words in (["report", "run", "--evaluate", "true"], ["compare", "run"]):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "the data have changed since the training: table.csv had 400 rows with digest" in message
        assert "--changed true" in message
    with pytest.raises(DataChangedError):
        Run.load("run").evaluate()
    assert json.loads((place / "run/numbers.json").read_text()) == numbers
    assert main(["report", "run", "--evaluate", "true", "--changed", "true"]) == 0
    assert "the data have changed since the training" in capsys.readouterr().err
    again = json.loads((place / "run/numbers.json").read_text())
    assert again.keys() == numbers.keys()
    assert all(np.allclose(again[name], number) for name, number in numbers.items())


@pytest.mark.filterwarnings("default")
def test_changed_data_keep_the_scaler_and_the_label_numbers_of_the_run(place):
    few = table().query("kind != 'cat'")
    few.to_csv("table.csv", index=False)
    before, now = Run.load("run").kept, Run.load("run", changed=True).data
    assert np.array_equal(now.scaler.shift, before.scaler.shift)
    assert now.label_names == ("cat", "dog", "eel")
    assert set(np.unique(now.y)) == {1, 2}
    few.assign(kind="yak").to_csv("table.csv", index=False)
    with pytest.raises(ValueError, match="labels that the run does not know: yak"):
        _ = Run.load("run", changed=True).data
    few.rename(columns={"depth": "width"}).to_csv("table.csv", index=False)
    with pytest.raises(ValueError, match="columns was"):
        _ = Run.load("run", changed=True).data


@pytest.mark.filterwarnings("default")
def test_a_folder_without_a_record_reads_its_data_and_says_so(place, capsys):
    samples = sampled()
    (place / "run/run.safetensors").unlink()
    capsys.readouterr()
    assert np.array_equal(sampled(), samples)
    message = capsys.readouterr().err
    assert "an earlier version of ppgen wrote this folder, without a record of its data" in message
    assert "read again from table.csv" in message


def test_a_damaged_or_foreign_record_is_refused(place, capsys):
    path = place / "run/run.safetensors"
    tensors, metadata = read(path)
    for change, message in [
        ({"format": "run folder 2"}, "another version of ppgen"),
        ({"parts": {"data": {}}}, "not a whole record"),
        ({"seed": None}, "not a whole record"),
    ]:
        write(path, tensors, metadata | change)
        with pytest.raises(CheckpointError, match=message):
            Record.read(place / "run")
    path.write_bytes(b"nothing")
    assert main(["sample", "run", "--label", "1"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_a_stored_record_of_each_format_is_read(tmp_path):
    shutil.copy(STORED / "run_folder_1.safetensors", tmp_path / "run.safetensors")
    record = Record.read(tmp_path)
    (part,), (origin,) = record.parts.values(), record.origins()
    assert (part.kept.columns, part.kept.label_names, record.seed) == (("height", "depth"), ("cat", "dog"), 7)
    assert {name: rows.tolist() for name, rows in part.splits.items()} == {
        "train": [1, 2, 5, 0],
        "validation": [3],
        "test": [4],
    }
    assert part.kept.scaler.inverse(part.kept.test.x) == pytest.approx(np.array([[5.0, 1.0]]))
    assert (origin.path, origin.rows) == ("/data/table.csv", 6)
    # the digest of these rows on any machine
    frame = {"height": [1.0, 2, 3, 4, 5, 6], "depth": [0.5, -1, 2, 7, 1, 0], "kind": ["cat", "dog"] * 3}
    pd.DataFrame(frame).to_csv("table.csv", index=False)
    assert origin == load("table.csv", label="kind").origins[0]


@pytest.mark.usefixtures("place")
@pytest.mark.filterwarnings("default")
def test_runs_on_other_rows_of_a_source_are_compared_with_a_warning(capsys):
    table().iloc[::-1].to_csv("table.csv", index=False)
    assert main(["train", "ae", "table.csv", "--data.label", "kind", *OPTIONS, "--out", "other"]) == 0
    assert main(["compare", "other", "run", "--n", "30"]) == 2  # of the second one, the data have changed
    assert "the data of run are not those of other: table.csv had 400 rows" in capsys.readouterr().err


def test_a_source_is_found_at_its_absolute_path_from_another_directory(trained, tmp_path):
    table(5.0).to_csv(tmp_path / "table.csv", index=False)  # another table of that name is no change of the data
    assert len(Run.load(trained / "run").data.x) == 400


@pytest.mark.parametrize(("bound", "rows"), [(2**25, 40), (12_000, 7)])  # 40 rows are held out
def test_the_stored_posterior_is_small_and_enough_for_report_and_verdict(bound, rows, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("ppgen.runs.data_run.POSTERIOR_BYTES", bound)
    options = [word for word in quick if word not in ("--draws", "0", "--data.size", "300")]
    words = ["train", "vae", "digits", *options, "--data.size", "200", "--draws", "200", "--out", "run"]
    assert main([*words, "--model.latent_dim", "2"]) == 0
    run = Run.load("run")
    idata, verdict = run.posterior()
    assert idata["posterior"]["z"].shape == (1, 200, rows, 2)  # 1600 bytes a row
    assert "posterior_predictive" not in idata
    x = run.diagnosed_rows()[0][:rows]
    drawn = run.fit.to_arviz(x, draws=200, predictive=False)
    assert verdict.statistics == pytest.approx(run.fit.diagnose(idata=drawn, starts=0).statistics)
    # latents, and for each row and draw three numbers of 4 bytes and one of 8; then the file's own structure
    assert (tmp_path / "run/posterior.nc").stat().st_size < 200 * rows * (2 * 4 + 3 * 4 + 8) + 120_000
