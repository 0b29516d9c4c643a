"""The files of a run folder.

config.yaml             all options of the run; ``ppgen train METHOD --config`` repeats it
metrics.jsonl           one line for each step: chain, step, epoch, the loss and its terms, and the critics' statistics
checkpoint.safetensors  the state of an unfinished run; ``ppgen resume`` continues from it
weights.safetensors     the `ppgen.Fit`
posterior.nc            the posterior of held-out data, for ArviZ
numbers.json            results on held-out data
stages.safetensors      images that a progressively grown model drew at the end of each stage
report.html             the report
"""

import os
from pathlib import Path
from typing import Any

from ppgen.runs.config_file import parse_config

__all__ = ["check_version", "new_folder", "read_config", "unused_folder"]

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
POSTERIOR = "posterior.nc"
NUMBERS = "numbers.json"
STAGES = "stages.safetensors"
REPORT = "report.html"


def read_config(folder: Path, *, finished: bool = True) -> dict[str, Any]:
    """Reads the configuration of a run.

    Args:
        folder: The run folder.
        finished: Whether the run must be finished, so that the folder holds its weights.

    Returns:
        The contents of ``config.yaml``.

    Raises:
        FileNotFoundError: If the folder is not a run folder, or the run is not finished.
        ValueError: As `parse_config` does, and if an earlier version of ppgen wrote the folder.
    """
    for name in (CONFIG, WEIGHTS) if finished else (CONFIG,):
        if not (folder / name).is_file():
            interrupted = (folder / CHECKPOINT).is_file()
            what = "the folder of a finished run" if interrupted else "a run folder"
            remedy = f"resume it with `ppgen resume {folder}`" if interrupted else "train a run with `ppgen train`"
            raise FileNotFoundError(f"{folder}: not {what}: it has no {name}; {remedy}")
    config = parse_config(folder / CONFIG)
    check_version(config, folder)
    return config


def check_version(config: dict[str, Any], path: str | os.PathLike) -> None:
    """Checks that this version of ppgen can read a configuration.

    Args:
        config: The contents of a ``config.yaml``.
        path: The file or its folder, for the error.

    Raises:
        ValueError: If an earlier version wrote it, or it does not name a method.
    """
    if "method" in config:
        return
    if "system" in config:
        raise ValueError(
            f"{path}: this run of {config['system']!r} was written by an earlier development version of ppgen, which "
            "this version cannot read; train it again"
        )
    raise ValueError(f"{path}: {CONFIG} does not name a method; train it again with `ppgen train METHOD`")


def new_folder(path: str | os.PathLike) -> Path:
    """Makes a run folder.

    Args:
        path: Where to make it.

    Returns:
        The path.

    Raises:
        FileExistsError: If the folder exists and is not empty. A run is never overwritten.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; runs are never overwritten: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unused_folder(folder: Path) -> Path:
    """Returns the folder if it does not exist, or else the first of folder-2, folder-3, ... that does not."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate
