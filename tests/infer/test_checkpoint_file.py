"""Checkpoint files: content is restored bit for bit, whole or not at all, and without pickle."""

import json
import os
import random
import stat
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.utils import files

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(1.5, dtype=torch.float64),
    "empty": torch.zeros(0, 2),
    "empty of NumPy": torch.as_tensor(np.asarray([], dtype=float)),
    "half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor([2**40, -1]),
    "flag": torch.tensor([True, False]),
    "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    "trained": torch.ones(2, requires_grad=True),
}
METADATA: dict[str, Any] = {"format": 1, "names": ["a", "ü"], "number": 0.1, "none": None, "deep": {"x": [1, 2]}}


def header(content: bytes) -> dict[str, Any]:
    """A safetensors file's own header, read by its definition: a length of 8 bytes, then JSON."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).tolist()


@pytest.fixture
def stored(tmp_path) -> Path:
    path = tmp_path / "stored.safetensors"
    write(path, TENSORS, METADATA)
    return path


def test_tensors_and_metadata_are_restored_bit_for_bit(stored):
    tensors, metadata = read(stored)
    assert metadata == METADATA
    assert set(tensors) == set(TENSORS)
    for name, tensor in tensors.items():
        expected = TENSORS[name].detach()
        assert tensor.dtype == expected.dtype
        assert tensor.shape == expected.shape
        assert bits(tensor) == bits(expected)
        assert not tensor.requires_grad


def test_file_is_safetensors_without_other_bytes(stored):
    """A header of JSON and the tensors' own bytes after it: there is no room for a pickle."""
    content = stored.read_bytes()
    described = header(content)
    described.pop("__metadata__")
    start = 8 + struct.unpack("<Q", content[:8])[0]
    ends = sorted(tuple(entry["data_offsets"]) for entry in described.values())
    assert ends[0][0] == 0
    assert ends[-1][1] == len(content) - start
    assert all(end == begin for (_, end), (begin, _) in pairwise(ends))
    assert set(safetensors.torch.load(content)) == set(TENSORS)


def test_truncated_file_is_an_error(stored):
    content = stored.read_bytes()
    for length in range(0, len(content), 3):
        stored.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read(stored)


def test_file_with_one_flipped_bit_is_an_error(stored):
    content = stored.read_bytes()
    generator = random.Random(0)
    for position in range(0, len(content), 3):
        altered = bytearray(content)
        altered[position] ^= 1 << generator.randrange(8)
        stored.write_bytes(bytes(altered))
        with pytest.raises(CheckpointError):
            read(stored)
    stored.write_bytes(content + b"more")
    with pytest.raises(CheckpointError):
        read(stored)


def test_altered_tensor_is_reported(stored):
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"stored\.safetensors: .*altered or damaged"):
        read(stored)


def test_file_that_ppgen_did_not_write_is_an_error(tmp_path):
    foreign = tmp_path / "foreign"
    safetensors.torch.save_file({"a": torch.ones(2)}, foreign)
    with pytest.raises(CheckpointError, match="ppgen did not write it"):
        read(foreign)
    torch.save({"a": torch.ones(2)}, foreign)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read(foreign)


def test_missing_file_is_reported_as_such(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(path)


def test_write_replaces_the_old_file_and_leaves_no_other(stored):
    write(stored, {"a": torch.ones(1)}, {})
    assert set(read(stored)[0]) == {"a"}
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_folder_is_created_and_others_may_read_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write(path, TENSORS, METADATA)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(stored, monkeypatch, failing, error):
    before = stored.read_bytes()

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(files.os, failing, fail)
    with pytest.raises(error):
        write(stored, {"a": torch.ones(1)}, {})
    assert stored.read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_metadata_that_json_cannot_hold_is_an_error_and_nothing_is_written(stored):
    before = stored.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(stored, TENSORS, {"a": object()})
    assert stored.read_bytes() == before
