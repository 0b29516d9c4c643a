"""Settings with a name: their options exist, later options override them, and the configuration holds the result."""

import pytest

from ppgen.runs.cli import main
from ppgen.runs.methods import METHODS
from ppgen.runs.parser import make_parser, without_run_options
from ppgen.runs.presets import PRESETS, preset, presets_of
from ppgen.runs.run import Run


def config(method, *words):
    words = ["train", method, "digits", *words]
    return without_run_options(make_parser(words).parse_args(words).train[method].as_dict())


def test_every_row_names_methods():
    named = {method for rows in PRESETS.values() for methods, _ in rows for method in methods}
    assert named < set(METHODS)
    assert presets_of("nsf") == ()


@pytest.mark.parametrize("method", ["ae", "vae", "r3_gan", "progan", "ali", "glow", "ddpm", "edm", "fm"])
def test_the_options_of_a_setting_are_options_of_the_method(method):
    """One method of each model and recipe; the values pass the checks of the command line."""
    for name in presets_of(method):
        found = config(method, "--preset", name)
        for option, value in preset(name, method).items():
            section, _, key = option.rpartition(".")
            assert (found[section] if section else found)[key] == value, option
        assert "preset" not in found


def test_later_options_override_a_setting_and_it_overrides_earlier_ones():
    found = config("vae", "--model.latent_dim", "5", "--preset", "images", "--fit.steps", "20")
    assert found["model"]["latent_dim"] == preset("images", "vae")["model.latent_dim"]
    assert found["fit"]["steps"] == 20


def test_a_run_stores_the_options_of_its_setting(quick):
    assert main(["train", "vae", "digits", "--preset", "images", *quick, "--out", "run"]) == 0
    assert Run.load("run").config["model"]["latent_dim"] == 32


def test_an_unknown_setting_is_refused_with_the_known_ones(capsys):
    assert main(["train", "vae", "digits", "--preset", "cpu"]) == 2
    assert "invalid choice: 'cpu' (choose from 'images', 'gpu')" in capsys.readouterr().err
    assert main(["train", "nsf", "moons", "--preset", "images"]) == 2
