"""Forged records of run folders, with a right digest: each is refused by its name and that of the entry, or usable."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import FORGED, MUTATIONS, REMOVED, hostile_bytes, outcome, places, replaced
from hypothesis import given

from ppgen.data import load
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.runs.cli import main
from ppgen.runs.record import Record

STORED = Path(__file__).parent / "stored/run_folder_1.safetensors"
TENSORS, METADATA = read(STORED)
MAY_BE_NULL = ("columns", "label_names", "levels", "path")


def rewritten(folder: Path, tensors: dict, metadata: dict) -> Record:
    """What reading gives; it can be written again."""
    write(folder / "run.safetensors", tensors, metadata)
    record = Record.read(folder)
    record.write(folder)
    assert read(folder / "run.safetensors")[1].keys() == metadata.keys() | {"format"}
    return record


def refusal(folder: Path, tensors: dict, metadata: dict) -> str | None:
    """The message with which a record is refused, or None if it is read; any other error fails the test."""
    try:
        rewritten(folder, tensors, metadata)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("place", list(places(METADATA)), ids=str)
def test_each_entry_of_a_record_is_checked(place, tmp_path):
    found = METADATA
    for key in place:
        found = found[key]
    for by in FORGED:
        message = refusal(tmp_path, TENSORS, replaced(METADATA, place, by))
        if message is None:
            removable = place[0] == "versions" or place == ("parts", "data")  # a run without data has no parts
            assert (by is REMOVED and removable) or (by is None and place[-1] in MAY_BE_NULL) or type(by) is type(found)
        else:
            assert str(tmp_path / "run.safetensors") in message, by
            assert any(str(key) in message for key in place if isinstance(key, str)), (by, message)


@pytest.mark.parametrize("name", TENSORS)
def test_each_tensor_of_a_record_is_checked(name, tmp_path):
    found = TENSORS[name]
    others = {
        "another shape": torch.zeros(3, 2),
        "empty": torch.zeros(0),
        "a number": torch.zeros(()),
        "complex": torch.zeros(7, dtype=torch.complex64),
        "another dtype": found.to(torch.int8),
        "bfloat16": found.to(torch.bfloat16),
        "out of range": torch.full_like(found, torch.inf if found.is_floating_point() else 10**15),
        "below zero": torch.full_like(found, -torch.inf if found.is_floating_point() else -7),
    }
    accepted = []
    for kind, other in [("missing", None), *others.items()]:
        tensors = {key: tensor for key, tensor in (TENSORS | {name: other}).items() if tensor is not None}
        if (message := refusal(tmp_path, tensors, METADATA)) is None:
            accepted.append(kind)
        else:
            assert str(tmp_path / "run.safetensors") in message, kind
            assert name.rpartition("/")[2] in message, (kind, message)
    assert accepted == (["below zero"] if name == "data/y" else [])  # labels of a source may be negative


def forged(**changes) -> dict:
    """The metadata with other entries of its data set."""
    metadata = copy.deepcopy(METADATA)
    metadata["parts"]["data"] |= changes
    return metadata


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {"kept": [4, 1, 2]}, "x: expected 7 kept rows"),
        ({}, {"kept": [0, 1, 1]}, "kept: expected 3 numbers of rows, the first at least 1"),
        ({}, {"classes": 3}, "classes: expected at most 2, the number of label_names"),
        ({}, {"origins": []}, "origins: expected at least one"),
        ({}, {"classes": None}, "classes: expected the number of classes"),
        ({}, {"columns": ["height"]}, "columns: expected as many names"),
        ({}, {"form": "integer"}, "x: expected 6 kept rows of int64"),
        ({"splits/train": torch.tensor([1, 2, 5, 5])}, {}, "splits: expected each of 6 rows once"),
        ({"splits/train": torch.tensor([1, 2, 5, 6])}, {}, r"splits/train: expected row numbers 0 \.\. 5, got 1 to 6"),
        ({"scale": torch.tensor([1.0, 0.0], dtype=torch.float64)}, {}, "positive scale"),
        ({"x": torch.zeros(6, 2, 0)}, {}, "x: expected 6 kept rows"),
        ({"z": torch.zeros(6)}, {}, "z: the tensor belongs to nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_entries_that_contradict_each_other_are_refused(tensors, changes, message, tmp_path):
    with pytest.raises(CheckpointError, match=rf"run\.safetensors: .*{message}"):
        rewritten(tmp_path, TENSORS | {f"data/{name}": tensor for name, tensor in tensors.items()}, forged(**changes))


def test_records_of_all_forms_and_of_streamed_data_are_read_again(tmp_path):
    np.save("gray.npy", np.arange(160, dtype=np.uint8).reshape(10, 4, 4))
    for form in ("continuous", "integer", "binary", "unit"):
        for stream in (False, True):
            data = load("gray.npy", form=form, stream=stream, validation=0.0)
            Record.of({"data": data}, 2**60).write(tmp_path)
            record = Record.read(tmp_path)
            assert np.array_equal(record.kept["data"].train.x, data.train.x[:])
            assert record.seed == 2**60


@MUTATIONS
@given(hostile_bytes(STORED.read_bytes()))
def test_any_bytes_are_a_record_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "run.safetensors").write_bytes(content)
    outcome(lambda: Record.read(folder), folder / "run.safetensors")


def test_a_record_leads_only_to_the_source_that_the_configuration_names(tmp_path):
    """The path in the record is where a relative source was; another file is not read in its place."""
    for path in ("table.csv", "data/table.csv", "secret.csv"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    origin = METADATA["parts"]["data"]["origins"][0]

    def located(source: str, path: str) -> str | None:
        return rewritten(tmp_path, TENSORS, forged(origins=[origin | {"source": source, "path": path}])).locate(source)

    there = f"{tmp_path}/data/../table.csv"
    assert located("table.csv", there) == there
    assert located("../table.csv", there) == there
    assert located("data/table.csv", f"{tmp_path}/data/table.csv") == f"{tmp_path}/data/table.csv"
    for source, path in [
        ("table.csv", f"{tmp_path}/secret.csv"),
        ("data/table.csv", f"{tmp_path}/table.csv"),
        ("moons", f"{tmp_path}/secret.csv"),
        ("table.csv", "data/table.csv"),
        ("table.csv", f"{tmp_path}/nothing/table.csv"),
        ("table.csv", "\0/table.csv"),
        ("", f"{tmp_path}/secret.csv"),
    ]:
        assert located(source, path) == source


def test_the_record_of_another_kind_of_run_is_refused(quick, tmp_path, capsys):
    assert main(["train", "ae", "moons", *quick, "--out", "run"]) == 0
    path = tmp_path / "run/run.safetensors"
    tensors, metadata = read(path)
    (tmp_path / "run/numbers.json").unlink()
    capsys.readouterr()
    for parts in ({}, {"source": metadata["parts"]["data"]}):
        write(path, {k.replace("data/", "source/", 1): t for k, t in tensors.items()}, metadata | {"parts": parts})
        for command in ("sample", "resume"):
            assert main([command, "run"]) == 2
            error = capsys.readouterr().err
            assert "run/run.safetensors: not the record of a run of 'ae'" in error
            assert error.count("\n") == 1
