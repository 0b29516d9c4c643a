"""Run folders that others made: what their files hold is checked, and nothing outside of them is read or written."""

import json
import os

import h5py
import numpy as np
import pytest
import yaml
from hostile import MUTATIONS, hostile_bytes, outcome
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from ppgen.runs.cli import main
from ppgen.runs.metrics_log import MetricsLog
from ppgen.runs.run import NUMBER_OR_TEXT
from ppgen.runs.stages import read_stage_images
from ppgen.utils.arviz_versions import from_netcdf
from ppgen.utils.schema import read_json

NUMBERS = json.dumps({"held-out rows": 20, "loss": [1.5, 0.1], "note": "infinite", "p": float("nan")}).encode()
LINES = b'{"chain": 0, "step": 1, "loss": 2.5}\n{"chain": 0, "step": 2, "loss": 2.0}\n'
STAGES = save({"0/0": np.zeros((2, 1, 2, 2), np.float32), "0/1": np.ones((2, 1, 2, 2), np.float32)})


def netcdf(make):
    """The bytes of an HDF5 file."""
    with h5py.File("made.nc", "w") as file:
        make(file)
    with open("made.nc", "rb") as file:
        return file.read()


@MUTATIONS
@given(hostile_bytes(NUMBERS))
def test_any_numbers_are_read_or_refused(content):
    with open("numbers.json", "wb") as file:
        file.write(content)
    outcome(lambda: read_json("numbers.json", {str: NUMBER_OR_TEXT}), "numbers.json")


@MUTATIONS
@given(hostile_bytes(LINES), st.integers(0, 3))
def test_any_metrics_are_cut_or_refused(tmp_path_factory, content, step):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(content)
    outcome(lambda: MetricsLog(path)._truncate((0, step)), path)


@MUTATIONS
@given(hostile_bytes(STAGES))
def test_any_stages_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "stages.safetensors").write_bytes(content)
    outcome(lambda: read_stage_images(folder, 0), folder / "stages.safetensors")


@pytest.mark.filterwarnings("ignore")
@MUTATIONS
@given(st.data())
def test_any_posterior_is_read_or_refused(draw):
    valid = netcdf(lambda file: file.create_dataset("posterior/z", data=np.arange(6.0)))
    with open("any.nc", "wb") as file:
        file.write(draw.draw(hostile_bytes(valid)))
    outcome(lambda: from_netcdf("any.nc"), "any.nc")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.create_dataset("a", (9,), "u1", external=[("secret", 0, 9)]), "has its data in another file"),
        (lambda f: f.__setitem__("posterior", h5py.ExternalLink("other.nc", "posterior")), "is a link"),
        (lambda f: f.__setitem__("posterior", h5py.SoftLink("/")), "is a link"),
        (lambda f: f.__setitem__("itself", f["/"]), "at most 100 groups"),
        (lambda f: f.create_dataset("a", (10**6, 10**6), "f8", chunks=(10, 10)), "it claims 8 TB"),
    ],
    ids=["external data", "external link", "soft link", "cycle", "terabytes"],
)
def test_a_posterior_that_names_other_files_or_terabytes_is_refused(make, message, tmp_path):
    (tmp_path / "secret").write_bytes(b"topsecret")
    (tmp_path / "any.nc").write_bytes(netcdf(make))
    with pytest.raises(ValueError, match=rf"any\.nc: .*{message}"):
        from_netcdf("any.nc")


def test_a_stored_configuration_of_a_huge_or_of_no_model_ends_in_one_line(quick, tmp_path, capsys):
    assert main(["train", "vae", "moons", *quick, "--out", "run"]) == 0
    path = tmp_path / "run/config.yaml"
    config = yaml.safe_load(path.read_text())
    for model, message in [
        ({"hidden": [10**6, 10**6]}, "run/config.yaml: "),  # 4 TB, which torch refuses
        ({"hidden": [30_000, 30_000]}, r"run/config.yaml: the model, whose weights are in weights.safetensors, takes"),
        ({"hidden": [-1]}, "run/config.yaml: hidden: expected widths of at least 1"),
        ({"latent_dim": 10**18}, "run/config.yaml: "),
        ({"hidden": [8, 8]}, "run/weights.safetensors: not the weights of the model that config.yaml describes"),
    ]:
        path.write_text(yaml.safe_dump(config | {"model": config["model"] | model}))
        for command in ("sample", "report"):
            capsys.readouterr()
            assert main([command, "run"]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"ppgen: {message}"), error
            assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["resume", "report", "sample", "diagnose", "compare"])
@pytest.mark.parametrize("name", ["report.html", "numbers.json", "weights.safetensors", "samples.npy", "metrics.jsonl"])
def test_a_link_out_of_a_run_folder_is_not_followed(command, name, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (tmp_path / "run").mkdir()
    for file in ("weights.safetensors", "checkpoint.safetensors"):
        (tmp_path / "run" / file).touch()
    (tmp_path / "run/config.yaml").write_text("method: vae\nsource: moons\n")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(outside)
    assert main([command, "run"]) == 2
    assert f"{name} is a link out of the run folder" in capsys.readouterr().err
    assert outside.read_text() == "kept"


@pytest.mark.parametrize(
    "source", ["pipe.csv", "pipe.npy", "folder.csv", "binary.csv", "empty.csv", "a\nb.csv", "/dev/zero"]
)
def test_what_is_no_data_ends_in_one_line(source, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "a\nb.csv").write_bytes(b"\xff")
    assert main(["train", "vae", source]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ppgen: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
