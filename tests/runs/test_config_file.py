"""Configuration files: plain values only, and whatever the bytes are, a mapping or a ValueError that names the file."""

import os
import sys
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin, is_typeddict

import pytest
import yaml
from hostile import MUTATIONS, hostile_bytes, outcome
from hypothesis import given
from hypothesis import strategies as st

from ppgen.runs.cli import main
from ppgen.runs.config_file import MOST_BYTES, parse_config
from ppgen.runs.methods import METHODS
from ppgen.runs.parser import _train_method, complete_config
from ppgen.runs.plain_types import ScheduleText

CONFIG = (
    "method: vae\nsource: moons\nfit: {steps: 5, seed: 0}\nloss: {beta: 'Ramp(1.0, steps=3)'}\nbetas: [0.9, 0.99]\n"
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The name of a module that can be imported and leaves a trace when it is; returns whether it was."""
    (tmp_path / "canary.py").write_text("class Thing: pass\ndef call(x): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    return lambda: "canary" in sys.modules


NAMED = [
    "loss: {beta: canary.Thing}",
    "loss: {beta: {class_path: canary.Thing, init_args: {end: 1}}}",
    "loss: {beta: 'canary.Thing(1)'}",
    "loss: {beta: 'Ramp(canary.Thing)'}",
    "loss: {beta: 'Ramp(__import__(\"canary\"))'}",
    "fit: {lr_scheduler: canary.call}",
    "fit: {lr_scheduler: {class_path: canary.Thing}}",
    "fit: {growth: canary.Thing}",
    "fit: {growth: {class_path: canary.Thing}}",
    "fit: {device: {class_path: canary.Thing}}",
    "fit: {compile: canary.Thing}",
    "fit: {steps: {class_path: canary.Thing}}",
    "fit: canary.Thing",
    "model: {class_path: canary.Thing}",
    "model: {hidden: {class_path: canary.Thing}}",
    "betas: {class_path: canary.Thing}",
    "fit: !!python/object/apply:canary.call [1]",
    "fit: {seed: !!python/name:canary.Thing }",
    "config: other.yaml",
    "loss: other.yaml",
    "loss: {beta: other.yaml}",
    "fit: {growth: other.yaml}",
    "class_path: canary.Thing",
    "__path__: other.yaml",
]


@pytest.mark.parametrize("entry", NAMED)
def test_a_configuration_imports_nothing(entry, canary, tmp_path, capsys):
    (tmp_path / "other.yaml").write_text("beta: canary.Thing\nclass_path: canary.Thing\n")
    (tmp_path / "c.yaml").write_text(f"method: vae\n{entry}\n")
    assert main(["train", "vae", "moons", "--config", "c.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ppgen: c.yaml: ")
    assert error.count("\n") == 1
    assert not canary()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume", "sample", "report", "diagnose", "compare"])
def test_the_configuration_of_a_folder_imports_nothing(command, canary, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        (tmp_path / "run" / name).touch()
    for entry in NAMED:
        (tmp_path / "run/config.yaml").write_text(f"method: vae\nsource: moons\n{entry}\n")
        assert main([command, "run"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("ppgen: run/config.yaml: "), entry
        assert error.count("\n") == 1
        assert not canary()


def test_a_device_is_a_name_that_torch_knows(canary, quick, capsys):
    assert main(["train", "vae", "moons", *quick, "--fit.device", "canary.Thing"]) == 2
    assert "device must be one of this machine" in capsys.readouterr().err
    assert not canary()


def test_options_of_flows_import_nothing(canary, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("method: maf\nmodel: {options: {solver: {class_path: canary.Thing}}}\n")
    assert main(["train", "maf", "moons", "--config", "c.yaml"]) == 2
    assert "model.options" in capsys.readouterr().err
    assert not canary()


@pytest.mark.parametrize("name", METHODS)
def test_each_default_configuration_is_plain_and_complete(name):
    """So that no value of a configuration is ever more than YAML can hold, and reading it back changes nothing."""
    required = {"flow": {"energy": "u1"}, "dann": {"source": "moons", "target": "moons"}}
    config = complete_config({"method": name, **required.get(name, {"source": "moons"})}, "c.yaml")
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert complete_config(config, "c.yaml") == config


def parts(annotation):
    """The types that an annotation consists of."""
    if is_typeddict(annotation):
        return [part for field in annotation.__annotations__.values() for part in parts(field)]
    if get_origin(annotation) is Literal:
        return []
    return [part for inner in get_args(annotation) for part in parts(inner)] or [annotation]


ALLOWED = {None, NoneType, bool, int, float, str, ScheduleText, Path, ...}


@pytest.mark.parametrize("name", METHODS)
def test_no_option_has_a_type_by_which_jsonargparse_imports(name):
    for action in _train_method(name, METHODS[name])._actions:
        assert not set(parts(getattr(action, "_typehint", None))) - ALLOWED, action.dest


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "source"),
        ("source: null", "'source' must have a value"),
        ("source: [1]", "source"),
        ("source: moons\nfit: {seed: null}", "'fit.seed' must have a value, got null"),
        ("source: moons\nmodel: {latent_dim: two}", "model.latent_dim"),
        ("source: moons\nmodel: {latent_dim: [2]}", "model.latent_dim"),
        ("source: moons\nmodel: []", "'model' must be a mapping"),
        ("source: moons\nmodel: null", "'model' must be a mapping"),
        ("source: moons\nlr: {a: 1}", "lr"),
        ("source: moons\nbetas: [1, 2, 3]", "betas"),
        ("source: moons\nfit: {nothing: 1}", "no option 'fit.nothing'"),
    ],
)
def test_an_option_that_is_missing_or_of_another_type_is_named(entry, message, tmp_path):
    (tmp_path / "c.yaml").write_text(f"method: vae\n{entry}\n")
    with pytest.raises(ValueError, match=r"c\.yaml: ") as raised:
        complete_config(parse_config(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert message in str(raised.value)


@pytest.mark.parametrize("method", [3, None, [1], {"a": 1}, "vea", True])
def test_a_method_that_does_not_exist_is_refused(method):
    with pytest.raises(ValueError, match="there is no method"):
        complete_config({"method": method}, "c.yaml")


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"method: \xff", "not text in UTF-8"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a: " + b"{b: " * 5000, "nested too deeply"),
        (LAUGHS.encode(), "aliases are not allowed"),
        (b"a: &a [*a]", "aliases are not allowed"),
        (b"a: !!int x", "tags, anchors and aliases are not allowed"),
        (b"a: 1\na: 2", "this key stands twice"),
        (b"a: {b: 1, b: 1}", "this key stands twice"),
        (b"1: 2", "expected the name of an option"),
        (b"[a]: 2", "not valid YAML"),
        (b"<<: {a: 1}", "expected the name of an option"),
        (b"a: 0x_", "not valid YAML"),
        (b"a: 2000-99-99", "not valid YAML"),
        (b"a: " + b"9" * 9000, "not valid YAML"),
        (b"a: 1\n---\nb: 2", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"#" * (MOST_BYTES + 1), "at most"),
        (b"", "expected a mapping"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_plain_mapping_is_refused(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        parse_config(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_pipes_folders_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="expected a file, found"):
            parse_config(path)
    with pytest.raises(FileNotFoundError):
        parse_config(tmp_path / "nothing")


@MUTATIONS
@given(hostile_bytes(CONFIG.encode()))
def test_any_bytes_are_a_mapping_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    outcome(lambda: complete_config(parse_config(path), path), path)


@MUTATIONS
@given(st.sampled_from(["fit", "loss", "model", "data", "betas", "method", "source", "lr"]), PLAIN)
def test_any_values_are_accepted_or_refused(key, value):
    config = yaml.safe_load(CONFIG) | {key: value}
    outcome(lambda: complete_config(config, "c.yaml"), "c.yaml")
