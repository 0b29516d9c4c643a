"""Tensors and facts in one safetensors file, written whole or not at all, and checked when read. No pickle."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppgen.utils.files import write_whole

__all__ = ["CheckpointError", "read", "under", "write"]

T = TypeVar("T")


class CheckpointError(ValueError):
    """A stored file is damaged, or not one of ours."""


def write(path: str | os.PathLike, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors, and facts as JSON, to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = json.dumps(facts)
    header = {"facts": described, "digest": _digest(tensors, described)}
    write_whole(path, safetensors.torch.save(tensors, metadata=header))


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `write` made.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is cut short, altered, or of another make.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    if "facts" not in header or "digest" not in header:
        raise CheckpointError(f"{path}: a safetensors file, but not one that ppgen wrote")
    if _digest(tensors, header["facts"]) != header["digest"]:
        raise CheckpointError(f"{path}: its content does not match its digest; it was altered or damaged")
    return tensors, json.loads(header["facts"])


def under(entries: dict[str, T], name: str) -> dict[str, T]:
    """The entries whose keys begin with ``name/``, by what follows."""
    return {key.removeprefix(f"{name}/"): value for key, value in entries.items() if key.startswith(f"{name}/")}


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # an empty one may have strides that no view takes
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
