"""Forged files of fits and checkpoints, with a right digest: each is refused by name, or read as what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import FORGED, MANY_MUTATIONS, MUTATIONS, hostile_bytes, outcome, places, replaced
from hypothesis import given
from stored_run import STORED, fit, guide, model

import ppgen
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.training.checkpoint import read_position

FILES = {"fit": STORED / "fit_2.safetensors", "run": STORED / "run_3.safetensors"}


def load(path: Path) -> Any:
    """Reads a file and does what a user would do with it."""
    return ppgen.Fit.load(path, model, guide) if "fit" in path.name else (read_position(path), fit(path))


def refusal(path: Path) -> str | None:
    """The message with which a file is refused, or None if it is read; any other error fails the test."""
    for other in path.parent.glob(f"{path.name}.*"):  # earlier checkpoints, from which the run would continue
        other.unlink()
    try:
        load(path)
    except (ValueError, LookupError) as error:
        return str(error)
    return None


PLACES = [(kind, place) for kind, file in FILES.items() for place in places(read(file)[1])]


@pytest.mark.parametrize(("kind", "place"), PLACES, ids=str)
def test_each_entry_of_the_metadata_is_checked(kind, place, tmp_path):
    check_entry(
        kind, place, FORGED[PLACES.index((kind, place)) % 3 :: 3], tmp_path
    )  # the next entry has the next third


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(NaN|skipped|goes back|weights are those):UserWarning")  # at a rate of 1e15
@pytest.mark.parametrize("kind", FILES)
def test_each_entry_of_the_metadata_is_checked_by_all_values(kind, tmp_path):
    for place in (place for of, place in PLACES if of == kind):
        check_entry(kind, place, FORGED, tmp_path)


def check_entry(kind: str, place: tuple, values: list, tmp_path: Path) -> None:
    """Replaces an entry by each value: the file is refused with its name and that of the entry, or read."""
    tensors, metadata = read(FILES[kind])
    accepted = 0
    for by in values:
        path = tmp_path / f"{kind}.safetensors"
        write(path, tensors, replaced(metadata, place, by))
        message = refusal(path)
        accepted += message is None
        if message is not None and not ("groups" in place and isinstance(by, int | float)):  # such as lr=1e15
            assert path.name in message or message.startswith("checkpoint: "), (by, message)
            named = (place[0] == "example" and "batch" in message) or "Dimension" in message  # the programs refuse it
            assert named or any(part.split()[-1] in message for part in place if isinstance(part, str)), (by, message)
    assert accepted <= 5


@pytest.mark.parametrize(
    "tensor",
    [(kind, name) for kind, file in FILES.items() for name in read(file)[0]],
    ids="-".join,
)
def test_each_tensor_is_checked(tensor, tmp_path):
    kind, name = tensor
    tensors, metadata = read(FILES[kind])
    path = tmp_path / f"{kind}.safetensors"
    found = tensors[name]
    others = [None, torch.zeros(3, 2), torch.zeros(0), torch.zeros(7, dtype=torch.complex64), found.to(torch.int8)]
    for other in [*others, torch.zeros_like(found)]:
        write(path, {k: v for k, v in (tensors | {name: other}).items() if v is not None}, metadata)
        message = refusal(path)
        assert message is None or name.rpartition("/")[2] in message or path.name in message, (other, message)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["x", "0/x", "0/weights", "9/weights/a", "-1/weights/a", "chains/3/weights/a", "\n"])
def test_tensors_that_belong_to_nothing_are_refused_or_ignored(kind, name, tmp_path):
    tensors, metadata = read(FILES[kind])
    path = tmp_path / f"{kind}.safetensors"
    write(path, tensors | {name: torch.zeros(2)}, metadata)
    outcome(lambda: load(path), path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[]", "its metadata are list"),
        ("3", "its metadata are int"),
        ("{", "its metadata are not JSON"),
        ("[" * 100_000, "its metadata are not JSON"),
        ('{"format": ' + "9" * 5000 + "}", "its metadata are not JSON"),
        ("{}", "format None"),
        ('{"format": [2]}', r"format \[2\]"),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("kind", FILES)
def test_metadata_that_are_no_mapping_of_this_version_are_refused(kind, metadata, message, tmp_path, monkeypatch):
    path = tmp_path / f"{kind}.safetensors"
    monkeypatch.setattr(json, "dumps", lambda _: metadata)
    write(path, {"a": torch.zeros(1)}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_batch_that_does_not_fit_into_memory_is_refused(tmp_path):
    tensors, metadata = read(FILES["fit"])
    write(tmp_path / "fit.safetensors", tensors, metadata | {"example": [[[10**6, 10**6], "float64"]]})
    with pytest.raises(CheckpointError, match=r"example: it claims 8 TB of data, and this process can have"):
        load(tmp_path / "fit.safetensors")


def test_a_file_larger_than_memory_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("ppgen.utils.regular_files.memory", lambda: 900)
    with pytest.raises(ValueError, match=r"fit_2.safetensors: it claims 920 bytes of data, .* can have 900 bytes"):
        load(FILES["fit"])


@MUTATIONS
@given(hostile_bytes(*(file.read_bytes() for file in FILES.values())))
def test_any_bytes_are_refused_or_read(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    outcome(lambda: read(path), path)


@pytest.mark.slow
@MANY_MUTATIONS
@given(hostile_bytes(*(file.read_bytes() for file in FILES.values())))
def test_many_bytes_are_refused_or_read(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "many.safetensors"
    path.write_bytes(content)
    outcome(lambda: read(path), path)
