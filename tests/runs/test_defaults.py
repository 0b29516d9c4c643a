"""Defaults that follow from the data: config.yaml holds their values, and runs of earlier versions keep theirs."""

import pytest
import torch
import yaml

import ppgen
from ppgen import nets
from ppgen.nets import defaults_for
from ppgen.runs.cli import main
from ppgen.runs.defaults import with_defaults, with_earlier_defaults
from ppgen.runs.methods import METHODS
from ppgen.runs.parser import complete_config

SHORT = ["--fit.steps", "1", "--fit.compile", "false", "--draws", "0", "--particles", "2", "--progress", "false"]
DATA = {"flow": {"energy": "u1"}, "dann": {"source": "moons", "target": "moons"}}
IMAGES = (1, 16, 16)


def config_of(name, **sections):
    config = complete_config({"method": name, **DATA.get(name, {"source": "moons"})}, "c.yaml")
    return {key: value | sections.get(key, {}) if isinstance(value, dict) else value for key, value in config.items()}


# one method of each model, network and critic
DISTINCT = {(m.model, m.network, m.critic, str(m.defaults.get("model.network"))): name for name, m in METHODS.items()}


@pytest.mark.parametrize("name", DISTINCT.values())
def test_each_configuration_is_complete_once_the_data_are_known(name):
    """Nothing that a network or its training depends on is left to the defaults of a later version."""
    method, shape = METHODS[name], () if name == "flow" else IMAGES if name in ("progan", "glow") else (5,)
    config = with_defaults(config_of(name), method, shape, 400)
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert config["lr"] > 0
    assert len(config["betas"]) == 2
    assert config["fit"]["batch_size"] == (None if name == "flow" else config["fit"]["batch_size"])
    growing = config["model"].get("network") == "growing"  # which chooses widths by the sides of the images
    network = [("model", option) for option in ("network", "hidden", "norm")]
    for section, option in (*network, ("loss", "hidden"), ("loss", "lr")):
        value = config[section].get(option, "absent")
        assert value != "auto"
        assert value is not None or growing or option == "norm"
    assert with_defaults(config, method, shape, 40) == config  # what is given stays


def test_given_options_win_and_rows_matter():
    few, many = (with_defaults(config_of("vae"), METHODS["vae"], (5,), rows) for rows in (150, 50_000))
    assert few["model"]["hidden"] == list(defaults_for("autoencoder", (5,), 150).hidden) != many["model"]["hidden"]
    assert few["fit"]["batch_size"] < many["fit"]["batch_size"]
    given = config_of(
        "vae", model={"hidden": [7], "network": "dense", "norm": None, "dropout": 0.1}, fit={"batch_size": 9}
    ) | {"lr": 0.5}
    filled = with_defaults(given, METHODS["vae"], IMAGES, 150)
    assert filled["model"] == given["model"]
    assert (filled["lr"], filled["fit"]["batch_size"]) == (0.5, 9)


def test_the_weight_of_a_match_of_codes_grows_with_the_events():
    """At a weight of 10 an image's log density outweighs it, and codes stay far from the prior."""
    weights = [
        with_defaults(config_of("wae"), METHODS["wae"], shape, 400)["loss"]["weight"] for shape in ((5,), IMAGES)
    ]
    assert weights == [10.0, 256.0]
    given = config_of("wae", loss={"weight": 3.0})
    assert with_defaults(given, METHODS["wae"], IMAGES, 400)["loss"]["weight"] == 3.0
    assert with_defaults(config_of("progan"), METHODS["progan"], IMAGES, 400)["loss"]["weight"] is None


def test_a_critic_learns_at_the_rate_of_its_generator_which_images_need_lower():
    table, images = (with_defaults(config_of("gan"), METHODS["gan"], shape, 400) for shape in ((2,), IMAGES))
    assert table["loss"]["lr"] == table["lr"] > images["lr"] == images["loss"]["lr"]
    given = with_defaults(config_of("ali", loss={"lr": 0.5}), METHODS["ali"], (2,), 400)
    assert (given["loss"]["lr"], given["lr"]) == (0.5, table["lr"])
    assert with_earlier_defaults(config_of("gan"), METHODS["gan"], (2,))["loss"]["lr"] == 2e-4


# by method: options that an earlier version stored without a value, the shape of an event, and today's explicit options
EARLIER = {
    "vae": ({"network": "dense"}, IMAGES, {"network": "dense", "hidden": (256, 256), "norm": None}),
    "wae": ({"network": "convolutional"}, IMAGES, {"network": "convolutional", "hidden": (32, 64), "norm": None}),
    "ddpm": ({"network": None}, IMAGES, {"hidden": (32, 64)}),
    "fm": ({"network": None}, (5,), {"hidden": (128, 128, 128)}),
    "maf": ({"hidden": [64, 64], "whiten": None}, (5,), {"hidden": (64, 64), "whiten": False}),
}


@pytest.mark.parametrize("name", EARLIER)
def test_a_configuration_of_an_earlier_version_describes_the_networks_of_its_time(name):
    stored, shape, explicit = EARLIER[name]
    config = config_of(name, model={"norm": None, "hidden": None} | stored if name in ("vae", "wae") else stored)
    method = METHODS[name]
    options = with_earlier_defaults(config, method, shape)["model"]
    build = method.model_class()
    other = {key: value for key, value in config["model"].items() if key not in explicit}
    then, now = (build(shape, **given).state_dict() for given in (options, other | explicit))
    assert {key: value.shape for key, value in then.items()} == {key: value.shape for key, value in now.items()}


def test_a_spline_flow_of_an_earlier_version_has_the_activation_of_its_time():
    config = config_of("nsf", model={"activation": None})
    assert with_defaults(config, METHODS["nsf"], (2,), 400)["model"]["activation"] == "relu"
    assert with_defaults(config, METHODS["nsf"], (5,), 400)["model"]["activation"] == "silu"
    assert with_earlier_defaults(config, METHODS["nsf"], (2,))["model"]["activation"] == "silu"
    assert with_earlier_defaults(config, METHODS["nsf"], (5,))["model"]["activation"] == "silu"
    assert with_earlier_defaults(config_of("maf"), METHODS["maf"], (5,))["model"]["activation"] is None


def test_a_flow_of_images_of_an_earlier_version_has_couplings_at_full_resolution():
    config, shape = config_of("glow", model={"full_resolution": None}), (1, 28, 28)
    assert with_defaults(config, METHODS["glow"], shape, 400)["model"]["full_resolution"] is False
    assert with_earlier_defaults(config, METHODS["glow"], shape)["model"]["full_resolution"] is True
    assert with_defaults(config_of("nsf"), METHODS["nsf"], (5,), 400)["model"]["full_resolution"] is None


def test_the_penalty_of_a_wasserstein_critic_is_that_of_the_paper_for_images_and_small_for_tables():
    for name in ("wgan", "wgan_gp"):
        weights = [
            with_defaults(config_of(name), METHODS[name], shape, 400)["loss"]["weight"] for shape in (IMAGES, (2,))
        ]
        assert weights == [10.0, 0.1]
    given = config_of("wgan_gp", loss={"weight": 3.0})
    assert with_defaults(given, METHODS["wgan_gp"], (2,), 400)["loss"]["weight"] == 3.0


def test_a_run_folder_of_an_earlier_version_loads(tmp_path):
    """Its configuration has no widths of generator and critic: they were (256, 256), and (32, 64) for images."""
    out = tmp_path / "run"
    given = ["--model.network", "dense", "--model.hidden", "[256, 256]", "--model.norm", "null"]
    words = ["train", "r1_gan", "digits", "--data.size", "60", *SHORT, *given, "--loss.hidden", "[32, 64]"]
    assert main([*words, "--out", str(out)]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["model"]["hidden"] = config["loss"]["hidden"] = None
    x = ppgen.load(out).sample(3, seed=1)
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    torch.testing.assert_close(ppgen.load(out).sample(3, seed=1), x)


def test_a_run_stores_its_values_and_does_not_depend_on_later_defaults(tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert main(["train", "nsf", "moons", "--data.size", "100", *SHORT, "--out", str(out)]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    chosen = defaults_for("flow", (2,), 80)
    assert config["model"]["hidden"] == list(chosen.hidden)
    assert (config["model"]["whiten"], config["lr"]) == (True, chosen.lr)
    assert config["fit"]["batch_size"] == chosen.batch_size
    x = ppgen.load(out).sample(3, seed=1)
    for kind in nets.KINDS:
        monkeypatch.setitem(nets.KINDS, kind, nets.defaults.Kind(widths=((5,),) * 3))
    monkeypatch.setattr("ppgen.models.flow.default_activation", lambda *_: "tanh")
    torch.testing.assert_close(ppgen.load(out).sample(3, seed=1), x)
