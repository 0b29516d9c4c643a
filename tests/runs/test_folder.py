"""Run folders: unfinished, foreign and old ones are refused with the reason."""

import pytest
import yaml

from ppgen.runs.cli import main
from ppgen.runs.folder import new_folder, read_config, unused_folder


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of a finished run, whose configuration a test may change."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("method: vae\n")
    (path / "weights.safetensors").touch()
    return path


def test_the_configuration_is_read(folder):
    assert read_config(folder) == {"method": "vae"}


def test_an_unfinished_run_is_read_only_on_request(folder):
    (folder / "weights.safetensors").unlink()
    assert read_config(folder, finished=False) == {"method": "vae"}
    with pytest.raises(FileNotFoundError, match="not a run folder: it has no weights"):
        read_config(folder)
    (folder / "checkpoint.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"not the folder of a finished run: .* resume it with `ppgen resume"):
        read_config(folder)


@pytest.mark.parametrize(
    "command", [["sample"], ["diagnose"], ["report"], ["resume"], ["compare"]], ids=lambda command: command[0]
)
def test_a_run_of_an_earlier_version_is_refused_by_name(command, folder, capsys):
    (folder / "config.yaml").write_text(yaml.safe_dump({"system": "vae", "source": "moons"}))
    assert main([*command, str(folder)]) == 2
    message = capsys.readouterr().err
    assert "run: this run of 'vae' was written by an earlier development version of ppgen" in message
    assert "train it again" in message


def test_a_configuration_file_of_an_earlier_version_is_refused(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"system": "vae", "source": "moons"}))
    assert main(["train", "vae", "--config", "old.yaml"]) == 2
    assert "old.yaml: this run of 'vae' was written by an earlier development version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source: moons\n", "config.yaml does not name a method"),
        ("method: vea\n", "there is no method 'vea'"),
        ("method: [", "config.yaml: the file is not valid YAML"),
        ("", "config.yaml: expected a mapping from options to values, got NoneType"),
    ],
)
def test_a_configuration_without_a_known_method_is_refused(content, message, folder, capsys):
    (folder / "config.yaml").write_text(content)
    assert main(["report", str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_is_never_overwritten(tmp_path):
    path = tmp_path / "a" / "b"
    assert new_folder(path) == path
    assert new_folder(path) == path  # it is empty
    (path / "file").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty; runs are never overwritten"):
        new_folder(path)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        new_folder(path / "file")


def test_an_unused_folder_has_the_first_free_number(tmp_path):
    path = tmp_path / "run"
    assert unused_folder(path) == path
    path.mkdir()
    (tmp_path / "run-2").mkdir()
    assert unused_folder(path) == tmp_path / "run-3"
