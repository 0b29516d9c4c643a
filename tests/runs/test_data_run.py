"""Runs on data: their reports, samples, labels, forms of data and results."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ppgen import data
from ppgen.diagnostics import from_netcdf
from ppgen.diagnostics.arviz import MIN_DRAWS
from ppgen.runs.cli import main
from ppgen.runs.data_run import DataRun
from ppgen.runs.evaluations import HeldOut
from ppgen.runs.methods import METHODS
from ppgen.runs.run import LEAST_DRAWS, Run

EACH_MODEL = ("ae", "vae", "gan", "ali", "maf", "edm", "ot_fm")  # a method of each model


@pytest.mark.figures
@pytest.mark.parametrize("name", EACH_MODEL)
def test_the_report_of_each_model_is_complete(name, quick, tmp_path):
    on_data = [method for method in METHODS.values() if method.kind.endswith(":DataRun")]
    assert {METHODS[method].model for method in EACH_MODEL} == {method.model for method in on_data}
    assert main(["train", name, "moons", *quick, "--draws", "25"]) == 0
    page = (tmp_path / "runs" / f"{name}-moons" / "report.html").read_text()
    for title in ("Summary", "Training", "Samples", "Coverage of the data", "Configuration"):
        assert f"<h2>{title}</h2>" in page
    assert ("<h2>Adversarial training</h2>" in page) == (name in ("gan", "ali"))
    assert ("Neither the guide" in page) == (name == "vae")


@pytest.mark.slow
@pytest.mark.figures
@pytest.mark.parametrize("name", ["edm", "ot_fm"])
def test_the_report_of_a_diffusion_of_images_shows_the_path_from_noise_and_imputation(name, quick, tmp_path):
    assert main(["train", name, "digits", *quick, "--conditional", "true"]) == 0
    folder = tmp_path / "runs" / f"{name}-digits"
    page = (folder / "report.html").read_text()
    assert "<h2>From noise to data</h2>" in page
    assert ("imputed" in page) == (name == "edm")
    options = ["--label", "3", "--guidance", "2", "--sampler", "heun", "--steps", "3"]
    assert main(["sample", str(folder), "--n", "5", *options]) == 0
    assert np.load(folder / "samples.npy").shape == (5, 1, 8, 8)


def test_only_diffusion_models_have_a_sampler(quick, capsys):
    assert main(["train", "vae", "moons", *quick, "--out", "run"]) == 0
    assert main(["sample", "run", "--sampler", "heun"]) == 2
    assert "only diffusion models and flow matching have a sampler" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vae", "posterior: not to be trusted\n  pareto_k"),
        ("gan", "posterior: without a density to judge by\n"),
        ("nsf", "the programs have no latents"),
    ],
)
def test_the_posterior_of_a_run_is_diagnosed(name, message, quick, capsys):
    assert main(["train", name, "moons", *quick, "--out", "run"]) == 0
    assert main(["diagnose", "run", "--draws", "50"]) == 0
    assert message in capsys.readouterr().out


def test_too_few_posterior_draws_are_refused_before_the_training(quick, capsys):
    assert LEAST_DRAWS == MIN_DRAWS
    assert main(["train", "vae", "moons", *quick, "--draws", "10"]) == 2
    assert "--draws 10: a posterior has at least 25 draws for each chain, or 0 for none" in capsys.readouterr().err


def test_a_diffusion_model_has_no_posterior_to_diagnose(quick, capsys):
    assert main(["train", "ddpm", "moons", *quick, "--out", "run"]) == 0
    assert main(["diagnose", "run"]) == 2
    assert "noise by construction" in capsys.readouterr().err


def test_results_have_the_capabilities_of_the_model(quick, tmp_path):
    names = {}
    for name, options in (("vae", []), ("ddpm", ["--model.steps", "5"]), ("maf", [])):
        assert main(["train", name, "moons", *quick, *options, "--out", name]) == 0
        names[name] = set(json.loads((tmp_path / name / "numbers.json").read_text()))
    evidence = "held-out log evidence, 4 importance samples (nats per datum)"
    assert evidence in names["vae"]
    likelihood = "held-out log-likelihood (nats per datum)"
    elbo = "held-out ELBO of the discrete-time chain (nats per datum)"
    assert {likelihood, elbo} <= names["ddpm"]
    assert likelihood in names["maf"]
    assert not {evidence, elbo} & names["maf"]
    assert "held-out loss term ELBO" in names["maf"]  # minus the evidence lower bound, unlike other numbers
    assert any("in the base space" in key for key in names["maf"])
    for keys in names.values():
        assert {"held-out rows", "generated: precision", "generated: recall"} <= keys


def test_a_run_without_time_is_evaluated_on_few_rows_until_more_time_is_given(quick, tmp_path, capsys):
    options = ["--evaluation_seconds", "1e-9", "--draws", "25"]
    assert main(["train", "vae", "moons", *quick, *options, "--out", "run"]) == 0
    numbers = json.loads((tmp_path / "run" / "numbers.json").read_text())
    assert numbers["evaluation"].endswith("ppgen report run --evaluate true --evaluation_seconds inf")
    costly = [name for name in numbers if name.startswith(("held-out log evidence", "generated"))]
    assert not costly
    assert {"held-out loss term Reconstruction", "held-out loss term Rate"} < set(numbers)
    assert from_netcdf(tmp_path / "run" / "posterior.nc")["posterior"].sizes["data"] == 2
    assert main(["report", "run", "--evaluate", "true", "--evaluation_seconds", "inf"]) == 0
    numbers = json.loads((tmp_path / "run" / "numbers.json").read_text())
    assert not {"evaluation", "held-out rows behind the log evidence"} & set(numbers)
    assert "held-out log evidence, 4 importance samples (nats per datum)" in numbers
    assert numbers["generated: samples compared"] == 1000
    assert from_netcdf(tmp_path / "run" / "posterior.nc")["posterior"].sizes["data"] == 60
    assert main(["report", "run", "--evaluation_seconds", "-1"]) == 2
    assert "--evaluation_seconds: expected a number above 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["particles", "evaluation_seconds"])
def test_options_of_the_evaluation_are_checked_before_the_training(option, quick, tmp_path, capsys):
    assert main(["train", "vae", "moons", *quick, f"--{option}", "0", "--out", "run"]) == 2
    assert f"--{option}: expected a number above 0, got 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["glow", "realnvp"])
def test_a_flow_of_gray_levels_reports_bits_per_dimension(method, tmp_path, capsys):
    options = ["--model.hidden", "[4]", "--model.layers", "1", "--data.size", "200", "--fit.steps", "3"]
    assert main(["train", method, "digits", *options, "--out", "run"]) == 0
    assert "held-out bits per dimension" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "run" / "numbers.json").read_text())
    (nats, _), (bits, _) = (
        numbers[f"held-out {quantity}"] for quantity in ("log-likelihood (nats per datum)", "bits per dimension")
    )
    assert bits == pytest.approx(-nats / (64 * math.log(2)))
    run = DataRun.load("run")
    assert run.model.levels == 17
    samples = run.sample(5)
    assert samples.shape == (5, 1, 8, 8)
    assert set(np.unique(samples)) <= set(range(17))


@pytest.mark.parametrize(
    ("form", "nats", "bits"),
    [
        ("continuous", 0.0, math.log2(17)),  # the density of U[0, 1), which spreads over all levels
        ("integer", -64 * math.log(17), math.log2(17)),
        ("binary", -64 * math.log(2), 1.0),
        ("unit", 0.0, None),  # a density of levels that are not dequantized
    ],
)
def test_a_uniform_distribution_has_the_bits_of_its_levels(form, nats, bits):
    held_out = HeldOut(None, None, data.load("digits", form=form, size=20), (), 1, 0)  # type: ignore[arg-type]
    assert held_out.bits_per_dimension(nats, 64 * math.log(2)) == (
        None if bits is None else (pytest.approx(bits), pytest.approx(1.0))
    )


def test_columns_in_any_units_have_no_bits():
    held_out = HeldOut(None, None, data.load("moons", size=20), (), 1, 0)  # type: ignore[arg-type]
    assert held_out.bits_per_dimension(1.0, 1.0) is None


def test_a_loaded_run_generates_the_same_samples(quick):
    assert main(["train", "vae", "moons", *quick, "--out", "run", "--fit.restarts", "2"]) == 0
    a, b = DataRun.load("run"), DataRun.load("run")
    assert len(a.fit.chains) == 2
    assert np.array_equal(a.sample(7, seed=1), b.sample(7, seed=1))
    x = torch.as_tensor(a.data.test.x)
    torch.manual_seed(0)
    first = a.model.log_evidence(x, particles=3)
    torch.manual_seed(0)
    assert torch.equal(first, b.model.log_evidence(x, particles=3))


def test_samples_have_the_units_of_the_file(quick):
    rng = np.random.default_rng(0)
    table = rng.normal([1000.0, -50.0], [30.0, 2.0], size=(400, 2))
    np.savetxt("table.csv", table, delimiter=",", header="height,depth", comments="")
    options = [word for word in quick if word not in ("--data.size", "300")]
    assert main(["train", "vae", "table.csv", *options, "--out", "run"]) == 0
    samples = DataRun.load("run").sample(500)
    # within a standard deviation of the means: an untrained model is near the standardized data
    assert np.all(np.abs(samples.mean(0) - [1000, -50]) < [30, 2])


def test_a_conditional_model_samples_one_label(quick, tmp_path, capsys):
    assert main(["train", "vae", "moons", *quick, "--conditional", "true", "--out", "run"]) == 0
    assert main(["sample", "run", "--label", "1", "--n", "3"]) == 0
    assert np.load(tmp_path / "run/samples.npy").shape == (3, 2)
    (tmp_path / "link.npy").symlink_to(tmp_path / "elsewhere.npy")  # which the user names, and which is followed
    assert main(["sample", "run", "--label", "0", "--n", "4", "--out", "link.npy"]) == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "elsewhere.npy").shape == (4, 2)
    assert main(["sample", "run", "--n", "3"]) == 2
    assert "run: the model is conditional: choose the label of the samples with --label" in capsys.readouterr().err


def test_an_unconditional_model_has_no_label_to_sample(quick, capsys):
    assert main(["train", "vae", "moons", *quick, "--out", "run"]) == 0
    assert main(["sample", "run", "--label", "1"]) == 2
    assert "run: the model is not conditional: leave --label out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gan", "ali"])
def test_the_critic_of_a_conditional_model_compares_labels_too(name, quick):
    assert main(["train", name, "moons", *quick, "--conditional", "true", "--out", "run"]) == 0
    run = DataRun.load("run")
    assert "data(y)" in str(run.fit.loss)
    assert main(["sample", "run", "--label", "1", "--n", "3"]) == 0
    assert run.generate(5).shape == (5, 2)


@pytest.mark.parametrize(
    ("likelihood", "dtype"), [("gaussian", np.float32), ("bernoulli", np.float32), ("categorical", np.int64)]
)
def test_data_are_loaded_in_the_form_that_the_likelihood_scores(likelihood, dtype, quick):
    assert main(["train", "vae", "digits", *quick, "--model.likelihood", likelihood, "--out", "run"]) == 0
    x = DataRun.load("run").data.x
    assert x.dtype == dtype
    assert (set(np.unique(x)) == {0.0, 1.0}) == (likelihood == "bernoulli")


def test_options_of_the_critic_come_from_the_metric(quick):
    options = ["--loss.steps", "2", "--loss.lr", "0.01", "--loss.hidden", "[8]", "--loss.weight", "3"]
    assert main(["train", "wgan", "moons", *quick, *options, "--out", "run"]) == 0
    metric = Run.load("run").fit.loss.terms[0].term.metric
    assert (metric.steps, metric.lr, metric.penalty.weight) == (2, 0.01, 3.0)


def test_adversarial_training_averages_its_weights_by_default(quick, tmp_path):
    assert main(["train", "gan", "moons", *quick, "--out", "run"]) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["fit"]["ema"] == 0.999


def test_a_run_of_another_kind_is_refused(quick):
    from ppgen.runs.energy import EnergyRun

    assert main(["train", "ae", "moons", *quick, "--out", "run"]) == 0
    with pytest.raises(TypeError, match="expected a EnergyRun, got a run of 'ae': DataRun"):
        EnergyRun.load("run")


def test_training_images_are_augmented(quick, tmp_path):
    """The first batch is that of `Augmented`; the split, the evaluation and the stored rows are those of the images."""
    augment = ["--augment.flip", "true", "--augment.shift", "1", "--conditional", "true", "--fit.batch_size", "32"]
    assert main(["train", "vae", "digits", *quick, *augment, "--out", "run"]) == 0
    assert (
        main(["train", "vae", "digits", *quick, "--conditional", "true", "--fit.batch_size", "32", "--out", "b"]) == 0
    )
    augmented, plain = Run.load("run"), Run.load("b")
    assert augmented.config["augment"] == {"flip": True, "shift": 1}
    assert np.array_equal(augmented.data.train.x, plain.data.train.x)
    assert (augmented.fit.history["loss"] != plain.fit.history["loss"]).all()


def test_only_images_are_augmented(quick, capsys):
    assert main(["train", "vae", "moons", *quick, "--augment.flip", "true"]) == 2
    assert "moons: flip and shift are of images" in capsys.readouterr().err


def test_a_run_splits_rows_by_group(quick):
    patient = np.arange(300) % 40
    visits = pd.DataFrame({"patient": [f"p{i}" for i in patient], "number": patient, "b": patient % 7})
    visits.to_csv("visits.csv", index=False)
    assert main(["train", "vae", "visits.csv", *quick, "--data.split", "group:patient", "--out", "run"]) == 0
    found = Run.load("run").data
    assert found.columns == ("number", "b")
    numbers = found.scaler.inverse(found.x)[:, 0].round()
    parts = [set(numbers[rows]) for rows in found.rows.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
