"""Trains a method on its data and leaves a run folder, or resumes an interrupted run."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from ppgen.fitting import fit
from ppgen.infer.distributed import Ranks
from ppgen.runs.folder import CHECKPOINT, CONFIG, METRICS, WEIGHTS, new_folder, read_config
from ppgen.runs.metrics_log import MetricsLog
from ppgen.runs.parser import complete_config
from ppgen.runs.run import Run, method_of
from ppgen.runs.stages import StageImages
from ppgen.training.checkpoint import read_position
from ppgen.training.progressive import ProgressiveGrowing
from ppgen.utils.files import write_atomically

__all__ = ["resume", "train"]

CHECKED_ROWS = 1024  # of the training data, by the model before there is a run folder; `fit` checks all


def train(config: dict[str, Any], *, out: str | os.PathLike, progress: bool = True) -> Run:
    """Trains a method on its data and leaves a run folder.

    Args:
        config: The contents of ``config.yaml``: "method"; the data, such as "source"; "data", "model", "loss" and
            "fit", which are keyword arguments of `ppgen.data.load`, the model's class, the recipe and `ppgen.fit`;
            "lr" and "betas" of Adam; "conditional", "draws" (of the stored posterior) and "particles" (for the log
            evidence).
        out: The run folder.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The run, evaluated and with its report.

    Raises:
        FileExistsError: If the folder exists and is not empty.
        ValueError: For options or data that the method does not accept.
    """
    kind = method_of(config).run_class()
    data = kind.load_data(config)
    model = kind.make_model(config, data)
    rows = kind.rows(config, data, "train")
    model.check(*(torch.as_tensor(part[:CHECKED_ROWS]) for part in rows))  # before there is a folder
    folder = Path(out)
    if Ranks().first:
        write_atomically(new_folder(out) / CONFIG, yaml.safe_dump(config, sort_keys=False))
    Ranks().wait()
    return _fit_and_evaluate(kind, folder, config, data, model, MetricsLog(folder / METRICS), progress)


def resume(folder: str | os.PathLike, *, progress: bool = True) -> Run:
    """Resumes an interrupted run from its checkpoint. The result is that of an uninterrupted run.

    Args:
        folder: The run folder.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The run, evaluated and with its report.

    Raises:
        FileNotFoundError: If this is not a run folder, or the run was not interrupted.
        ppgen.infer.checkpoint_file.CheckpointError: If the checkpoint is damaged.
        ValueError: If the data or the installed programs have changed since.
    """
    folder = Path(folder)
    config = complete_config(read_config(folder, finished=False), folder / CONFIG)
    if not (folder / CHECKPOINT).is_file():
        finished = (folder / WEIGHTS).is_file()
        again = f"it has no {CHECKPOINT}; train again with `ppgen train METHOD --config {folder / CONFIG}`"
        raise FileNotFoundError(f"{folder}: nothing to resume: {'the run is complete' if finished else again}")
    log = MetricsLog(folder / METRICS, after=read_position(folder / CHECKPOINT))
    kind = method_of(config, folder).run_class()
    data = kind.load_data(config)
    return _fit_and_evaluate(kind, folder, config, data, kind.make_model(config, data), log, progress)


def _fit_and_evaluate(
    kind: type[Run], folder: Path, config: dict[str, Any], data: Any, model: Any, log: MetricsLog, progress: bool
) -> Run:
    """Trains until the end or an interruption, then stores weights, results and report, all of which rank 0 does."""
    first = Ranks().first
    rows, validation = kind.rows(config, data, "train"), kind.rows(config, data, "validation")
    options = _fit_options(config)
    stages = [] if options.get("growth") is None else [StageImages(folder, model, *rows[1:])]
    try:
        fitted = fit(
            model.model,
            model.guide,
            rows or None,
            loss=kind.make_loss(config),
            optim=partial(torch.optim.Adam, lr=config["lr"], betas=tuple(config.get("betas", (0.9, 0.999)))),
            validation=validation if validation and len(validation[0]) else None,
            callbacks=[log, *stages] if first else [],
            progress=progress,
            checkpoint=folder / CHECKPOINT,
            **options,
        )
    finally:
        if first:
            log.flush()
    run = kind(folder, config, data, model, fitted)
    if not first:
        return run
    fitted.save(folder / WEIGHTS)
    run.numbers = run.evaluate()
    run.store_posterior()
    run.report()
    return run


def _fit_options(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `ppgen.fit` in a configuration."""
    growth = config["fit"].get("growth")
    return config["fit"] | ({} if growth is None else {"growth": ProgressiveGrowing(**growth)})
