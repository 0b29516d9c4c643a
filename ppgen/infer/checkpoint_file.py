"""Tensors and metadata in one safetensors file, which is written whole or not at all and checked when read.

No pickle is involved: reading a file cannot run code.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppgen.utils.files import write_atomically
from ppgen.utils.regular_files import check_size

__all__ = ["CheckpointError", "read", "read_tensors", "with_prefix", "write"]

T = TypeVar("T")

# the dtypes of parameters, buffers and states of optimizers; others have elements of parts of a byte
PLAIN = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}


class CheckpointError(ValueError):
    """A file is damaged, or ppgen did not write it."""


def write(
    path: str | os.PathLike,
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    previous: Sequence[Path] = (),
) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        tensors: by name.
        metadata: anything that JSON can hold.
        previous: files that take the content of an existing file before it is replaced, as for `write_atomically`.

    Raises:
        TypeError: if JSON cannot hold the metadata.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata)
    header = {"metadata": text, "digest": _digest(tensors, text)}
    write_atomically(path, safetensors.torch.save(tensors, metadata=header), previous=previous)


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file that `write` wrote.

    Args:
        path: of the file.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is truncated, altered, from an earlier development version, or not written by ppgen.
    """
    tensors, header = read_tensors(path)
    if "facts" in header and "digest" in header:  # the header before the first release
        raise CheckpointError(
            f"{path}: an earlier development version of ppgen wrote this file, which this version cannot read; train "
            "again (delete the file if it is a checkpoint), or read it with the version that wrote it"
        )
    if "metadata" not in header or "digest" not in header:
        raise CheckpointError(f"{path}: a safetensors file, but ppgen did not write it")
    if _digest(tensors, header["metadata"]) != header["digest"]:
        raise CheckpointError(f"{path}: its content does not match its digest; the file was altered or damaged")
    try:
        metadata = json.loads(header["metadata"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata are not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata are {type(metadata).__name__}, not a mapping")
    return tensors, metadata


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors of a safetensors file, and its header's texts.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no whole safetensors file, does not fit into memory, or has other dtypes than torch's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    check_size(path, os.path.getsize(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in PLAIN]:
        raise CheckpointError(
            f"{path}: {strange[0]!r} has dtype {tensors[strange[0]].dtype}, which ppgen does not write"
        )
    return tensors, header


def with_prefix(entries: dict[str, T], prefix: str) -> dict[str, T]:
    """The entries whose keys begin with ``prefix/``, by the rest of the key."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in entries.items() if key.startswith(f"{prefix}/")}


def _digest(tensors: dict[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # the strides of an empty tensor may not allow a view
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
