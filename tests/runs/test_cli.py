"""The command line as a user runs it, on small data and few steps."""

import json

import numpy as np
import pytest
import torch
import yaml

from ppgen import data as datasets
from ppgen.evaluation.summary import METRICS
from ppgen.models import VAE
from ppgen.report import Report
from ppgen.runs.cli import main
from ppgen.runs.compare import _alike
from ppgen.runs.methods import FORM_OF_LIKELIHOOD, SYSTEMS
from ppgen.runs.run import Run
from ppgen.runs.stages import read_stages

QUICK = ["--fit.steps", "6", "--model.hidden", "[8]", "--draws", "0", "--particles", "4", "--data.size", "300"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, request):
    """Runs in an empty folder; with a page of a title alone, unless the test is marked to have the figures."""
    monkeypatch.chdir(tmp_path)
    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr("ppgen.runs.run.report_of_run", lambda *_, title, **__: Report(title))


# what each system is tried on: moons, but for systems of images
GROWN = ["--model.hidden", "[4, 6]", "--loss.hidden", "[4, 6]"]
SOURCES = {"progan": ("digits", GROWN), "glow": ("digits", [])}

DRAWING = [
    name for name, system in SYSTEMS.items() if not (system.of_domains or system.of_energy)
]  # see test_adaptation, test_energies


KINDS = ("ae", "vae", "gan", "ali", "maf", "edm", "ot_fm")  # a system of each model


@pytest.mark.figures
@pytest.mark.parametrize("system", KINDS)
def test_every_kind_of_model_makes_its_page(system, tmp_path):
    assert {SYSTEMS[name].model for name in KINDS} == {SYSTEMS[name].model for name in DRAWING}
    assert main(["train", system, "moons", *QUICK, "--draws", "25"]) == 0
    page = (tmp_path / "runs" / f"{system}-moons" / "report.html").read_text()
    for title in ("In short", "Training", "Samples", "What is missing", "Configuration"):
        assert f"<h2>{title}</h2>" in page
    assert ("<h2>The game</h2>" in page) == (system in ("gan", "ali"))
    assert ("The posterior is not to be trusted" in page) == (system == "vae")


@pytest.mark.figures
@pytest.mark.parametrize("conditional", ["false", "true"])
def test_a_growing_run_shows_its_stages(conditional, tmp_path):
    command = ["train", "progan", "digits", *QUICK, *GROWN, "--conditional", conditional, "--fit.growth.fade", "0.2"]
    assert main(command) == 0
    folder = tmp_path / "runs" / "progan-digits"
    assert "<h2>Progressive growing</h2>" in (folder / "report.html").read_text()
    first, last = read_stages(folder, 0)
    assert first.shape == last.shape == (12, 1, 8, 8)
    assert (first[..., ::2, ::2].repeat(2, -1).repeat(2, -2) == first).all()
    assert not (last[..., ::2, ::2].repeat(2, -1).repeat(2, -2) == last).all()
    assert yaml.safe_load((folder / "config.yaml").read_text())["fit"]["growth"] == {"fade": 0.2, "stages": None}
    fixed = ["train", "progan", "digits", *QUICK, *GROWN, "--fit.growth", "null", "--out", "fixed"]
    assert main(fixed) == 0
    assert read_stages(tmp_path / "fixed", 0) == []
    assert "<h2>Progressive growing</h2>" not in (tmp_path / "fixed" / "report.html").read_text()


@pytest.mark.figures
@pytest.mark.parametrize("system", ["edm", "ot_fm"])
def test_of_images_the_way_from_noise_is_shown_and_of_a_prior_what_it_imputes(system, tmp_path):
    assert main(["train", system, "digits", *QUICK, "--conditional", "true"]) == 0
    folder = tmp_path / "runs" / f"{system}-digits"
    page = (folder / "report.html").read_text()
    assert "<h2>From noise to data</h2>" in page
    assert ("what is below is imputed" in page) == (system == "edm")
    options = ["--label", "3", "--guidance", "2", "--sampler", "heun", "--steps", "3"]
    assert main(["sample", str(folder), "--n", "5", *options]) == 0
    assert np.load(folder / "samples.npy").shape == (5, 1, 8, 8)


def test_a_sampler_is_of_diffusions_alone(capsys):
    assert main(["train", "vae", "moons", *QUICK, "--out", "run"]) == 0
    assert main(["sample", "run", "--sampler", "heun"]) == 1
    assert "only a diffusion draws in steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("vae", "posterior: not to be trusted\n  pareto_k"),
        ("gan", "posterior: without a density to judge by\n"),
        ("nsf", "the programs have no latents"),
    ],
)
def test_a_runs_posterior_is_judged(system, said, capsys):
    assert main(["train", system, "moons", *QUICK, "--out", "run"]) == 0
    assert main(["diagnose", "run", "--draws", "50"]) == 0
    assert said in capsys.readouterr().out


def test_a_diffusion_has_no_posterior_to_judge(capsys):
    assert main(["train", "ddpm", "moons", *QUICK, "--out", "run"]) == 0
    assert main(["diagnose", "run"]) == 1
    assert "noise by construction" in capsys.readouterr().err


def test_epochs_stand_in_for_a_systems_own_steps(tmp_path):
    small = ["--data.size", "40", "--fit.batch_size", "16", *GROWN]
    assert main(["train", "progan", "digits", *small, "--fit.epochs", "1"]) == 0
    assert yaml.safe_load((tmp_path / "runs" / "progan-digits" / "config.yaml").read_text())["fit"]["steps"] is None
    assert len(Run.load(tmp_path / "runs" / "progan-digits").fit.history["loss"]) == 2


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("moons", ["--data.form", "continuous"], "expected an image's event shape"),
        ("digits", ["--model.hidden", "[4, 4, 4, 4]"], "8 x 8 pixels have no 4 scales"),
        ("digits", ["--fit.growth.stages", "[1, 2, 3]"], "3 stages (1.0, 2.0, 3.0), and the networks have 2 scales"),
    ],
)
def test_what_cannot_grow_says_so(source, options, said, capsys):
    assert main(["train", "progan", source, "--fit.steps", "6", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("system", DRAWING)
def test_every_system_trains_reports_and_samples(system, tmp_path, capsys):
    source, options = SOURCES.get(system, ("moons", []))
    assert main(["train", system, source, *QUICK, "--draws", "25", *options]) == 0
    folder = tmp_path / "runs" / f"{system}-{source}"
    assert str(folder / "report.html") in capsys.readouterr().out
    expected = {"config.yaml", "metrics.jsonl", "weights.safetensors", "numbers.json", "report.html"}
    expected |= {"posterior.nc"} if SYSTEMS[system].model is VAE else set()
    expected |= {"stages.safetensors"} if system == "progan" else set()
    assert {path.name for path in folder.iterdir()} == expected
    run = Run.load(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        terms = [v for k, v in line.items() if k not in ("chain", "step", "epoch", "loss", "adversarial_metrics")]
        assert line["loss"] == pytest.approx(sum(terms))
        assert ("adversarial_metrics" in line) == bool(run.fit.loss.critics)
    assert main(["sample", str(folder), "--n", "5"]) == 0
    assert np.load(folder / "samples.npy").shape == (5, *run.data.event_shape)
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_configuration_file_repeats_a_run(tmp_path):
    assert main(["train", "vae", "moons", *QUICK, "--out", "first", "--loss.beta", "3"]) == 0
    assert main(["train", "vae", "--config", "first/config.yaml", "--out", "second"]) == 0
    first, second = (yaml.safe_load((tmp_path / run / "config.yaml").read_text()) for run in ("first", "second"))
    assert first == second
    assert first["loss"] == {"beta": 3.0}
    a, b = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("first", "second"))
    assert a == b


def test_options_after_a_configuration_file_override_it(tmp_path):
    assert main(["train", "vae", "moons", *QUICK, "--out", "first"]) == 0
    assert main(["train", "vae", "--config", "first/config.yaml", "--out", "second", "--model.latent_dim", "3"]) == 0
    assert yaml.safe_load((tmp_path / "second/config.yaml").read_text())["model"]["latent_dim"] == 3


def test_a_schedule_for_a_weight(tmp_path):
    options = ["--loss.beta", "Ramp", "--loss.beta.end", "1", "--loss.beta.steps", "4"]
    assert main(["train", "vae", "moons", *QUICK, "--out", "run", *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["Rate"] == 0
    assert lines[-1]["Rate"] > 0
    assert str(Run.load("run").fit.loss) == "Reconstruction + Ramp(0 -> 1) * Rate"


def test_a_run_read_back_draws_what_it_drew(tmp_path):
    assert main(["train", "vae", "moons", *QUICK, "--out", "run", "--fit.restarts", "2"]) == 0
    a, b = Run.load("run"), Run.load("run")
    assert len(a.fit.chains) == 2
    assert np.array_equal(a.sample(7, seed=1), b.sample(7, seed=1))
    x = torch.as_tensor(a.data.test.x)
    torch.manual_seed(0)
    first = a.model.log_evidence(x, particles=3)
    torch.manual_seed(0)
    assert torch.equal(first, b.model.log_evidence(x, particles=3))


def test_samples_are_in_the_units_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal([1000.0, -50.0], [30.0, 2.0], size=(400, 2))
    np.savetxt("table.csv", table, delimiter=",", header="height,depth", comments="")
    quick = [word for word in QUICK if word not in ("--data.size", "300")]
    assert main(["train", "vae", "table.csv", *quick, "--out", "run"]) == 0
    drawn = Run.load("run").sample(500)
    # a standard deviation of room around the means: an untrained model stands near the standardized data
    assert np.all(np.abs(drawn.mean(0) - [1000, -50]) < [30, 2])


def test_labels_condition_a_model(tmp_path, capsys):
    assert main(["train", "vae", "moons", *QUICK, "--conditional", "true", "--out", "run"]) == 0
    assert main(["sample", "run", "--label", "1", "--n", "3"]) == 0
    assert np.load(tmp_path / "run/samples.npy").shape == (3, 2)
    assert main(["sample", "run", "--n", "3"]) == 1
    assert "expected labels y" in capsys.readouterr().err


@pytest.mark.parametrize("likelihood", FORM_OF_LIKELIHOOD)
def test_data_come_in_the_form_that_the_likelihood_scores(likelihood, tmp_path):
    assert main(["train", "vae", "digits", *QUICK, "--model.likelihood", likelihood, "--out", "run"]) == 0
    x = Run.load("run").data.x
    wanted = {"gaussian": np.float32, "bernoulli": np.float32, "categorical": np.int64}[likelihood]
    assert x.dtype == wanted
    assert (set(np.unique(x)) == {0.0, 1.0}) == (likelihood == "bernoulli")


def test_default_folders_never_collide(tmp_path):
    assert main(["train", "ae", "moons", *QUICK]) == 0
    assert main(["train", "ae", "moons", *QUICK]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"ae-moons", "ae-moons-2"}


def test_report_is_written_anew(tmp_path):
    assert main(["train", "ae", "moons", *QUICK, "--out", "run"]) == 0
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
def test_mistakes_are_named_and_nothing_is_lost(arguments, message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept.txt").write_text("kept")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "full/kept.txt").read_text() == "kept"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept.txt"]


def test_data_that_the_model_cannot_score_leave_no_folder(tmp_path, capsys):
    assert main(["train", "vae", "digits", *QUICK, "--data.form", "integer"]) == 1
    assert "dequantize" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_system_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["train", "vea", "digits"])
    assert "vae" in capsys.readouterr().err


def test_a_configuration_of_another_system_is_refused(tmp_path, capsys):
    assert main(["train", "ae", "moons", *QUICK, "--out", "run"]) == 0
    (tmp_path / "ae.yaml").write_text("system: ae\n")
    assert main(["train", "vae", "moons", "--config", "ae.yaml", "--out", "other"]) == 1
    assert "ppgen train ae" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["gan", "ali"])
def test_a_conditional_game_compares_labels_too(system, tmp_path):
    assert main(["train", system, "moons", *QUICK, "--conditional", "true", "--out", "run"]) == 0
    run = Run.load("run")
    assert "data(y)" in str(run.fit.loss)
    assert main(["sample", "run", "--label", "1", "--n", "3"]) == 0
    assert run.draws(5).shape == (5, 2)


def test_options_of_critics_come_from_the_metric(tmp_path):
    options = ["--loss.steps", "2", "--loss.lr", "0.01", "--loss.hidden", "[8]", "--loss.weight", "3"]
    assert main(["train", "wgan", "moons", *QUICK, *options, "--out", "run"]) == 0
    metric = Run.load("run").fit.loss.terms[0].term.metric
    assert (metric.steps, metric.lr, metric.penalty.weight) == (2, 0.01, 3.0)


def test_a_game_averages_its_weights_unless_told_otherwise(tmp_path):
    assert main(["train", "gan", "moons", *QUICK, "--out", "run"]) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["fit"]["ema"] == 0.999


def test_runs_are_compared_under_every_metric(tmp_path, capsys, monkeypatch):
    quick = {name: METRICS[name] for name in ("energy distance", "Jensen-Shannon, by a critic (nats)")}
    monkeypatch.setattr("ppgen.evaluation.summary.METRICS", quick)
    for system in ("vae", "gan"):
        assert main(["train", system, "ring", *QUICK, "--out", system]) == 0
    capsys.readouterr()
    assert main(["compare", "vae", "gan", "--n", "60"]) == 0
    shown = capsys.readouterr().out
    for words in (*quick, "training data", "modes captured", "classifier two-sample accuracy"):
        assert words in shown
    page = (tmp_path / "compare.html").read_text()
    assert all(words in page for words in quick)
    captured = next(line for line in shown.splitlines() if line.startswith("modes captured"))
    assert captured.split()[-1] == "8"  # 60 rows of the law itself


def test_runs_on_other_data_are_not_compared(capsys):
    assert main(["train", "ae", "moons", *QUICK, "--out", "a"]) == 0
    assert main(["train", "ae", "ring", *QUICK, "--out", "b"]) == 0
    assert main(["compare", "a", "b"]) == 1
    assert "compare runs on the same data" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["continuous", "unit", "binary"])
def test_levels_and_numbers_from_zero_to_one_are_compared_in_one_unit(form):
    integer, other = (datasets.load("digits", form=form, size=50) for form in ("integer", form))
    back = _alike(other.x, other, integer)
    assert back.min() == 0
    assert back.max() == 16
    if form != "binary":
        assert np.array_equal(back, integer.x)
    there = _alike(integer.x, integer, other)
    assert 0 < there.min() < there.max() < 1
    assert np.array_equal(_alike(there, other, integer), integer.x)
    assert _alike(other.x, other, other) is other.x
