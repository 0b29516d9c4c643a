"""The command line: configuration files, run folders and error messages."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

import ppgen
from ppgen.data import Schema
from ppgen.fitting import fit
from ppgen.infer.compile.libraries import Libraries
from ppgen.runs.cli import main
from ppgen.runs.run import Run


def read_config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_a_configuration_file_repeats_a_run(quick, tmp_path):
    assert main(["train", "vae", "moons", *quick, "--out", "first", "--loss.beta", "3"]) == 0
    assert main(["train", "vae", "--config", "first/config.yaml", "--out", "second"]) == 0
    first, second = (read_config(tmp_path / run) for run in ("first", "second"))
    assert first == second
    assert first["method"] == "vae"
    assert first["loss"] == {"beta": 3.0}
    a, b = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("first", "second"))
    assert a == b


def test_later_options_override_a_configuration_file(quick, tmp_path):
    assert main(["train", "vae", "moons", *quick, "--out", "first"]) == 0
    assert main(["train", "vae", "--config", "first/config.yaml", "--out", "second", "--model.latent_dim", "3"]) == 0
    assert read_config(tmp_path / "second")["model"]["latent_dim"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: nsf\nmodel: {layers: 2}\n", "of a run of 'nsf': use `ppgen train nsf`"),
        ("method: vae\nmodel: {latnt_dim: 2}\n", "no option 'model.latnt_dim'; did you mean 'model.latent_dim'"),
        ("method: vae\nfitt: {steps: 2}\n", "'vae' has no option 'fitt.steps'"),
        ("method: [", "is not valid YAML"),
        ("- vae", "expected a mapping from options to values, got list"),
    ],
)
def test_a_configuration_file_that_the_method_cannot_use_is_refused(content, message, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(content)
    assert main(["train", "vae", "moons", "--config", "config.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draws", "-5"], "--draws -5: a posterior has at least 25 draws"),
        (["--particles", "0"], "--particles: expected a number above 0, got 0"),
        (["--model.hidden", "[0]"], "hidden: expected widths of at least 1"),
        (["--model.latent_dim", "100000000000000"], "can't allocate memory"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_of_the_model_and_of_the_results_are_checked_before_the_training(
    words, message, quick, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("ppgen.runs.training.fit", Mock(side_effect=AssertionError))
    assert main(["train", "vae", "moons", *quick, *words, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_training_without_memory_ends_in_one_line(quick, monkeypatch, capsys):
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
    monkeypatch.setattr("ppgen.infer.svi.SVI.update", Mock(side_effect=error))
    assert main(["train", "vae", "moons", *quick, "--out", "run"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("ppgen: fit: step 1 needs more memory than there is with a batch of ")
    assert printed.count("\n") == 1


def test_a_fault_of_a_program_is_not_taken_for_one_of_the_user(quick, monkeypatch):
    monkeypatch.setattr("ppgen.infer.svi.SVI.update", Mock(side_effect=RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["train", "vae", "moons", *quick, "--out", "run"])


def test_a_configuration_without_options_of_the_loss_is_repeated(quick):
    assert main(["train", "ae", "moons", *quick, "--out", "first"]) == 0
    assert main(["train", "ae", "--config", "first/config.yaml", "--out", "second"]) == 0


def test_a_weight_can_follow_a_schedule(quick, tmp_path):
    assert main(["train", "vae", "moons", *quick, "--out", "run", "--loss.beta", "Ramp(1, steps=4)"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["Rate"] == 0
    assert lines[-1]["Rate"] > 0
    assert str(Run.load("run").fit.loss) == "Reconstruction + Ramp(0 -> 1) * Rate"


def test_epochs_replace_the_default_steps_of_a_method(tmp_path):
    small = ["--data.size", "40", "--fit.batch_size", "16", "--model.hidden", "[4, 6]", "--loss.hidden", "[4, 6]"]
    assert main(["train", "progan", "digits", *small, "--fit.epochs", "1"]) == 0
    folder = tmp_path / "runs" / "progan-digits"
    assert read_config(folder)["fit"]["steps"] is None
    assert len(Run.load(folder).fit.history["loss"]) == 2


@pytest.mark.parametrize("part", ["left out", "failed"])
def test_a_training_that_lacks_a_chain_is_no_success(part, quick, monkeypatch):
    def fit_in_part(*arguments, **options):
        fitted = fit(*arguments, **options)
        if part == "left out":
            fitted.missing_chains = 1
        else:
            fitted.chains[1].failed = True
        return fitted

    monkeypatch.setattr("ppgen.runs.training.fit", fit_in_part)
    assert main(["train", "ae", "moons", *quick, "--fit.restarts", "2", "--out", "run"]) == 3
    assert Path("run/report.html").exists()


def test_default_folders_never_collide(quick, tmp_path):
    assert main(["train", "ae", "moons", *quick]) == 0
    assert main(["train", "ae", "moons", *quick]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"ae-moons", "ae-moons-2"}


def test_a_report_is_rewritten(quick, tmp_path):
    assert main(["train", "ae", "moons", *quick, "--out", "run"]) == 0
    (tmp_path / "run/report.html").unlink()
    assert main(["report", "run"]) == 0
    assert "ae on moons" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "vae", "diggits"], "digits"),
        (["train", "vae", "nowhere.csv"], "nowhere.csv"),
        (["train", "vae", "moons", "--out", "full"], "full exists and is not empty"),
        (["train", "vae", "moons", "--model.covariance", "round"], "covariance"),
        (["train", "vae", "moons", "--fit.steps", "5", "--fit.epochs", "5"], "steps or epochs"),
        (["sample", "full"], "not a run folder"),
        (["sample", "full", "--n", "0"], "--n"),
        (["report", "nothing"], "not a run folder"),
    ],
)
def test_errors_are_named_and_no_file_is_lost(arguments, message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept.txt").write_text("kept")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "full/kept.txt").read_text() == "kept"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("option", [("device", "nonsense"), ("ema", "2"), ("batch_size", "0")])
def test_options_that_fit_refuses_leave_no_folder(option, quick, tmp_path, capsys):
    name, value = option
    command = ["train", "ae", "moons", *quick, f"--fit.{name}", value, "--out"]
    (tmp_path / "mine").mkdir()
    for folder in ("run", "mine"):
        assert main([*command, folder]) == 2
        assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]  # which was there before


def test_an_error_is_raised_with_its_traceback_on_request(monkeypatch):
    monkeypatch.setenv("PPGEN_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        main(["report", "nothing"])


def test_data_that_the_model_cannot_score_leave_no_folder(quick, tmp_path, capsys):
    assert main(["train", "vae", "digits", *quick, "--data.form", "integer"]) == 2
    assert "dequantize" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_method_is_refused(capsys):
    assert main(["train", "vea", "digits"]) == 2
    assert "vae" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ppgen {ppgen.__version__}\n"


def test_the_folder_of_compiled_code_is_shown_and_emptied(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PPGEN_CACHE_DIR", str(tmp_path))
    (library := tmp_path / "made.so").write_bytes(b"code")
    Libraries().add("key", library)
    assert main(["cache"]) == 0
    assert f"folder: {tmp_path / 'compiled'}\nlibraries: 1, 0.0 MB" in capsys.readouterr().out
    assert main(["cache", "--trim", "-1"]) == 2
    assert "--trim: expected a size of at least 0 megabytes, got -1" in capsys.readouterr().err
    assert main(["cache", "--clear", "true"]) == 0
    assert "deleted: 1 libraries" in capsys.readouterr().out
    assert Libraries().entries() == []


def test_data_shows_the_columns_of_a_table_and_writes_its_schema(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("id;plan;day\n1;free;31.01.2024\n2;pro;?\n3;free;01.02.2024\n")
    words = [
        "data",
        str(tmp_path / "t.csv"),
        "--kinds",
        "{id: omitted, plan: ordinal}",
        "--out",
        str(tmp_path / "s.yaml"),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for text in ("3 rows; separator semicolon", "free < pro", "dates written as %d.%m.%Y", "some missing"):
        assert text in shown
    schema = Schema.from_dict(yaml.safe_load((tmp_path / "s.yaml").read_text()))
    assert [(column.name, column.kind) for column in schema.columns] == [
        ("id", "omitted"),
        ("plan", "ordinal"),
        ("day", "datetime"),
    ]
    assert main(["data", str(tmp_path / "none.csv")]) == 2
    assert "there is no file" in capsys.readouterr().err
