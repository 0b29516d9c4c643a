"""The files of a run folder.

config.yaml             all options of the run; ``ppgen train METHOD --config`` repeats it
run.safetensors         scaler, splits, names, digests and some rows of the data, versions; see `ppgen.runs.record`
start.safetensors       the weights from which a run began that continues another one
tuning.json             the scores by which options were chosen (``--tune``)
metrics.jsonl           one line for each step: chain, step, epoch, the loss and its terms, and the critics' statistics;
                        chains that other ranks trained follow at the end of a run, without epochs
checkpoint.safetensors  the state of an unfinished run; ``ppgen resume`` continues from it
weights.safetensors     the `ppgen.Fit`
posterior.nc            the posterior of held-out data, for ArviZ
numbers.json            results on held-out data
stages.safetensors      images that a progressively grown model drew at the end of each stage
report.html             the report
"""

import os
import re
from pathlib import Path
from typing import Any

from ppgen.runs.config_file import parse_config

__all__ = ["check_version", "clear_failed_start", "new_folder", "read_config", "remove_failed_start", "unused_folder"]

CONFIG = "config.yaml"
RECORD = "run.safetensors"
START = "start.safetensors"
TUNING = "tuning.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
POSTERIOR = "posterior.nc"
NUMBERS = "numbers.json"
STAGES = "stages.safetensors"
REPORT = "report.html"
LOCK = ".lock"

BEFORE_FIRST_STEP = {CONFIG, RECORD, START, TUNING, METRICS}  # the files of a run that has no checkpoint yet
LEFTOVER = re.compile(r"\.lock|\.[\w.]+\.[0-9a-f]{8}")  # what a killed process may leave: its lock, half a file


def read_config(folder: Path, *, finished: bool = True) -> dict[str, Any]:
    """Reads the configuration of a run.

    Args:
        folder: The run folder.
        finished: Whether the run must be finished, so that the folder holds its weights.

    Returns:
        The contents of ``config.yaml``.

    Raises:
        FileNotFoundError: If the folder is not a run folder, or the run is not finished.
        ValueError: As `parse_config` does, if an earlier version of ppgen wrote the folder, and if a file is a link
            that leads out of it.
    """
    for name in (CONFIG, WEIGHTS) if finished else (CONFIG,):
        if not (folder / name).is_file():
            interrupted = (folder / CHECKPOINT).is_file()
            what = "the folder of a finished run" if interrupted else "a run folder"
            remedy = f"resume it with `ppgen resume {folder}`" if interrupted else "train a run with `ppgen train`"
            raise FileNotFoundError(f"{folder}: not {what}: it has no {name}; {remedy}")
    _check_links(folder)
    config = parse_config(folder / CONFIG)
    check_version(config, folder)
    return config


def _check_links(folder: Path) -> None:
    """Checks that no file of a run folder is a link that leads out of it: writing follows links.

    Raises:
        ValueError: If one is.
    """
    inside = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise ValueError(f"{path} is a link out of the run folder, to {path.resolve()}; put a file in its place")


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
    """Makes a run folder, or accepts an empty one and one that a failed start has left.

    Args:
        path: Where to make it.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is a file, or a folder with other files. A run is never overwritten.
    """
    folder = Path(path)
    if folder.exists():
        files = {file.name for file in folder.iterdir()} if folder.is_dir() else {"."}
        files = {name for name in files if not LEFTOVER.fullmatch(name)}
        if CHECKPOINT in files and CONFIG in files and WEIGHTS not in files:
            raise FileExistsError(f"{folder} holds an unfinished run: continue it with `ppgen resume {folder}`")
        if not files <= BEFORE_FIRST_STEP:
            raise FileExistsError(f"{folder} exists and is not empty; runs are never overwritten: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear_failed_start(folder: Path, config: dict[str, Any]) -> None:
    """Deletes what a run with the same configuration left that ended before its first step.

    Args:
        folder: A folder that `new_folder` accepted.
        config: The configuration of the run that is to begin.

    Raises:
        FileExistsError: If the run had another configuration; the message names the options.
    """
    if (folder / CONFIG).is_file():
        then, now = (_flat(options) for options in (parse_config(folder / CONFIG), config))
        if changed := [name for name in {**then, **now} if then.get(name) != now.get(name)]:
            raise FileExistsError(
                f"{folder} holds the start of a run with other options ({', '.join(changed)}), which ended before its "
                f"first step: continue it with `ppgen resume {folder}`, delete it, or choose another --out"
            )
    _clear(folder)


def remove_failed_start(folder: Path) -> None:
    """Deletes what a run has written that failed before its first step, for example for a device that there is not.

    After Ctrl-C or a kill the files stay, and ``ppgen resume`` begins again.

    Args:
        folder: The run folder, whose lock is held.
    """
    files, metrics = {file.name for file in folder.iterdir()}, folder / METRICS
    begun = metrics.is_file() and metrics.stat().st_size
    if not begun and all(name in BEFORE_FIRST_STEP or LEFTOVER.fullmatch(name) for name in files):
        _clear(folder)


def _clear(folder: Path) -> None:
    """Deletes the files of a run that has no checkpoint, but not the lock."""
    for file in folder.iterdir():
        if file.name in BEFORE_FIRST_STEP or (file.name != LOCK and LEFTOVER.fullmatch(file.name)):
            file.unlink()


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names as on the command line; tuples are lists, as in YAML."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, part in inner.items():
            flat[f"{name}.{key}".rstrip(".")] = list(part) if isinstance(part, tuple) else part
    return flat


def unused_folder(folder: Path) -> Path:
    """Returns the folder if it does not exist, or else the first of folder-2, folder-3, ... that does not."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate
