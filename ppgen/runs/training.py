"""Trains a method on its data and leaves a run folder, or resumes an interrupted run."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from ppgen.fitting import fit
from ppgen.infer.distributed import Ranks
from ppgen.runs.defaults import with_defaults, with_earlier_defaults
from ppgen.runs.folder import (
    CHECKPOINT,
    CONFIG,
    LOCK,
    METRICS,
    NUMBERS,
    RECORD,
    REPORT,
    START,
    TUNING,
    WEIGHTS,
    clear_failed_start,
    new_folder,
    read_config,
    remove_failed_start,
)
from ppgen.runs.lock import FolderLock
from ppgen.runs.metrics_log import MetricsLog
from ppgen.runs.parser import complete_config
from ppgen.runs.plain_types import SCHEDULES, make_schedule
from ppgen.runs.record import Record
from ppgen.runs.run import Run, check_evaluation, load_weights, method_of
from ppgen.runs.stages import StageImages
from ppgen.training.checkpoint import read_position
from ppgen.training.checkpoint_files import CheckpointFiles
from ppgen.training.progressive import ProgressiveGrowing
from ppgen.utils.files import write_atomically
from ppgen.utils.user_warnings import warn_user

__all__ = ["continued", "resume", "train"]

CHECKED_ROWS = 1024  # of the training data, by the model before there is a run folder; `fit` checks all


def train(config: dict[str, Any], *, out: str | os.PathLike, progress: bool = True, start: Run | None = None) -> Run:
    """Trains a method on its data and leaves a run folder.

    Args:
        config: The contents of ``config.yaml``: "method"; the data, such as "source"; "data", "model", "loss" and
            "fit", which are keyword arguments of `ppgen.data.load`, the model's class, the recipe and `ppgen.fit`;
            "lr" and "betas" of Adam; "conditional", "draws" (of the stored posterior), "particles" (for the log
            evidence) and "evaluation_seconds". Some that are None get their defaults for the data
            (`ppgen.runs.defaults`).
        out: The run folder.
        progress: Whether to show a progress bar on a terminal.
        start: A run of the same model, from whose weights the training goes on.

    Returns:
        The run, evaluated and with its report.

    Raises:
        FileExistsError: If the folder exists and is not empty, other than by a start with the same options that ended
            before its first step.
        ppgen.runs.lock.FolderLockedError: If another process writes into the folder.
        ValueError: For options or data that the method does not accept.
    """
    check_evaluation(config)
    kind = method_of(config).run_class()
    data = kind.load_data(config) if start is None else start.data
    config = kind.with_data(with_defaults(config, method_of(config), *kind.size(data)), data)
    try:
        model = kind.make_model(config, data)
    except RuntimeError as error:  # torch's, for example of sizes below zero or beyond memory
        raise ValueError(f"these options (--model.NAME) do not make a model: {error}") from error
    rows = kind.rows(config, data, "train")
    kind.fitted_data(config, data)  # options that the data do not allow
    model.check(*map(some_rows, rows))  # before there is a folder
    folder = Path(out)
    first = Ranks().first
    with _held(folder) if first else nullcontext():
        record = Record.of(kind.parts(data), config["fit"]["seed"])
        tuning: Mapping[str, Any] = {}
        if start is None:
            config, tuning = kind.tuned(config, data, _fit_options(config) | {"progress": progress})
        if tuning:
            model = kind.make_model(config, data)
        if first:
            clear_failed_start(folder, config)
        try:
            if first:
                if start is not None:
                    start.fit.save(folder / START)
                record.write(folder)
                write_atomically(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))
                if tuning:
                    write_atomically(folder / TUNING, json.dumps(tuning, indent=1))
            Ranks().wait()
            log, checkpoint = MetricsLog(folder / METRICS), CheckpointFiles(folder / CHECKPOINT)
            return _fit_and_evaluate(kind, folder, config, record, data, model, log, checkpoint, progress)
        except Exception:
            if first:
                remove_failed_start(folder)
            raise


def some_rows(part: Any) -> torch.Tensor:
    """At least `CHECKED_ROWS` rows of data in memory, from first to last, or the first ones of a stream.

    Args:
        part: one argument of the programs for all rows (n, ...).
    """
    if isinstance(part, torch.Tensor):
        return part[:: max(1, len(part) // CHECKED_ROWS)]
    return torch.as_tensor(part[:CHECKED_ROWS])


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Makes a run folder and locks it; if nothing is in it in the end, it is removed."""
    made = not folder.exists()
    try:
        with FolderLock(_unlocked_folder(folder)):
            yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()


def _unlocked_folder(folder: Path) -> Path:
    """Makes a run folder; if another process writes into it, the error names that process."""
    try:
        return new_folder(folder)
    except FileExistsError:
        if (folder / LOCK).is_file():
            with FolderLock(folder):
                pass
        raise


def resume(folder: str | os.PathLike, *, progress: bool = True) -> Run:
    """Resumes an interrupted run from its checkpoint. The result is that of an uninterrupted run.

    A run that ended before its first checkpoint begins again. One that ended after its weights were written is
    evaluated, and its report is written.

    Args:
        folder: The run folder.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The run, evaluated and with its report.

    Raises:
        KeyboardInterrupt: If Ctrl-C or a signal ended it; the message says how it is resumed.
        FileNotFoundError: If this is not a run folder, or the run is complete.
        ppgen.runs.lock.FolderLockedError: If another process writes into the folder.
        ppgen.runs.run.DataMissingError: If the data cannot be read.
        ppgen.runs.run.DataChangedError: If they have changed.
        ppgen.infer.checkpoint_file.CheckpointError: If the checkpoint is damaged.
        ValueError: If the installed programs have changed since.
    """
    folder = Path(folder)
    config = complete_config(read_config(folder, finished=False), folder / CONFIG)
    kind: type[Run] = method_of(config, folder).run_class()
    first = Ranks().first
    with FolderLock(folder) if first else nullcontext():
        stopped, trained = (folder / CHECKPOINT).is_file(), (folder / WEIGHTS).is_file()
        complete = trained and (folder / NUMBERS).is_file() and (folder / REPORT).is_file()
        recorded = (folder / RECORD).is_file()
        Ranks().wait()  # until all ranks have looked at the files, which rank 0 changes
        if trained and not stopped:
            return _finish(kind, folder, config, complete, progress)
        record = kind.read_record(folder, config)
        data = kind.read_data(folder, config, record)
        if first and not stopped:
            warn_user(f"{folder}: the run ended before its first checkpoint, so that it begins again")
            (folder / METRICS).unlink(missing_ok=True)
        if first and not recorded:  # the folder of an earlier version
            record.write(folder)
        checkpoint = CheckpointFiles(folder / CHECKPOINT)
        log = MetricsLog(folder / METRICS, after=read_position(checkpoint) if stopped else None)
        config = with_earlier_defaults(config, method_of(config), kind.size(data)[0])
        model = kind.make_model(config, data)
        return _fit_and_evaluate(kind, folder, config, record, data, model, log, checkpoint, progress)


def continued(run: Run, *, epochs: int | None = None, steps: int | None = None) -> dict[str, Any]:
    """The configuration of a run that goes on from another one's weights.

    It has one chain with the next seed, keeps the level of a growing network, and the last weights of a loss whose
    weights followed a schedule.

    Args:
        run: The other run.
        epochs: The number of passes over the data.
        steps: The number of steps instead.

    Raises:
        ValueError: Unless one of epochs and steps is given.
    """
    if (epochs is None) == (steps is None):
        raise ValueError(f"train: give one of epochs and steps, got epochs={epochs} and steps={steps}")
    options = run.config["fit"]
    length = {"epochs": epochs, "steps": steps, "restarts": None, "growth": None, "seed": options["seed"] + 1}
    length["device"] = None if run.device.type == "cpu" else str(run.device)  # where it is now, on whatever machine
    loss = dict(run.config["loss"])
    for name, value in loss.items():
        if isinstance(value, str) and value.partition("(")[0] in SCHEDULES:
            now = make_schedule(value)(run.fit.loss.step, run.fit.loss.total)  # type: ignore[union-attr]
            loss[name] = float(now)
    return run.config | {"fit": options | length, "loss": loss}


def _finish(kind: type[Run], folder: Path, config: dict[str, Any], complete: bool, progress: bool) -> Run:
    """Computes the results of a run that ended after its weights were written."""
    if complete:
        raise FileNotFoundError(f"{folder}: nothing to resume: the run is complete")
    run = kind.restore(folder, config)
    if Ranks().first:
        written = ", ".join(run.finish(progress=progress))
        warn_user(f"{folder}: the training was complete, and its results were not: {written} were written")
    return run


def _fit_and_evaluate(
    kind: type[Run],
    folder: Path,
    config: dict[str, Any],
    record: Record,
    data: Any,
    model: Any,
    log: MetricsLog,
    checkpoint: CheckpointFiles,
    progress: bool,
) -> Run:
    """Trains until the end or an interruption, then stores weights, results and report, all of which rank 0 does."""
    first = Ranks().first
    rows, validation = kind.rows(config, data, "train"), kind.rows(config, data, "validation")
    options = _fit_options(config)
    loss = kind.make_loss(config)
    if (folder / START).is_file():
        load_weights(folder / START, model, loss, None)
    stages = [] if options.get("growth") is None else [StageImages(folder, model, *rows[1:])]
    resume_it = f"resume it with: ppgen resume {folder}"
    try:
        fitted = fit(
            model.model,
            model.guide,
            kind.fitted_data(config, data),
            loss=loss,
            optim=partial(torch.optim.Adam, lr=config["lr"], betas=tuple(config["betas"])),
            **kind.checks(config, model, validation),
            callbacks=[log, *stages] if first else [],
            progress=progress,
            checkpoint=checkpoint,
            **options,
        )
    except KeyboardInterrupt as stop:
        stop.args = (f"{folder}: {stop}; {resume_it}",)
        raise
    finally:
        if first:
            log.flush()
    run = kind(folder, config, record, model, fitted)
    run.data = data
    if first:
        fitted.save(folder / WEIGHTS)
    if stopped := [chain for chain in fitted.chains if chain.interrupted]:
        raise KeyboardInterrupt(f"{folder}: {stopped[0].stop_reason}; {resume_it}")
    if first and options.get("distribute") == "chains" and len(fitted.chains) == options.get("restarts"):
        for number, chain in enumerate(fitted.chains):
            if number % Ranks().size:  # another rank trained it
                log.add_chain(number, chain)
    try:
        if first:
            run.finish(again=True, progress=progress)
    except KeyboardInterrupt as stop:
        stop.args = (
            f"{folder}: {str(stop) or 'interrupted'} while the run was evaluated; its weights are in {WEIGHTS}, and "
            f"ppgen resume {folder} writes the results",
        )
        raise
    return run


def _fit_options(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `ppgen.fit` in a configuration."""
    growth = config["fit"].get("growth")
    return config["fit"] | ({} if growth is None else {"growth": ProgressiveGrowing(**growth)})
