"""Compares runs on the same data: every model under every metric, whatever it was trained with."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ppgen.data import Data
from ppgen.data.column import Column
from ppgen.data.schema import Schema
from ppgen.evaluation.table_quality import table_quality
from ppgen.report import figures, write_report
from ppgen.report.figures.images import MAX_IMAGES, value_range
from ppgen.report.page import Figure, Report, Section, Table
from ppgen.report.sections.table_quality import table_quality_section
from ppgen.runs.data_run import DataRun
from ppgen.runs.run import Run
from ppgen.utils.user_warnings import warn_user

__all__ = ["compare"]

TRAINING_DATA = "training data"
MIN_SAMPLES = 20
TABLE_ROWS = 10_000  # at most so many rows of a table are compared column by column

EXPLANATION = (
    "How close are the samples of each model to held-out data? Smaller distances are better; all distances are between "
    "data of unit scale. The column of the training data shows what samples of the true distribution would score. No "
    "model can be expected to do better."
)


def compare(
    folders: Sequence[str | os.PathLike], *, n: int = 1000, seed: int = 0, out: str | os.PathLike = "compare.html"
) -> tuple[Path, str]:
    """Compares the samples of several runs with held-out data.

    The table has a column for each run and one for rows of the training data, which are samples of the true
    distribution.

    Args:
        folders: The run folders.
        n: The number of samples of each model.
        seed: The random seed of samples, projections and critics.
        out: Where to write the report.

    Returns:
        The path of the report, and the table as text.

    Raises:
        FileNotFoundError: If one of the folders is not the folder of a finished run.
        ValueError: If n is below 20, a folder is given twice, or the runs are not on the same data.
    """
    if n < MIN_SAMPLES:
        raise ValueError(f"compare: expected n of at least {MIN_SAMPLES}, for meaningful metrics, got {n}")
    runs = dict(zip(_names(folders), map(_load, folders), strict=True))
    first, *others = runs.values()
    for run in others:
        if (run.kept.name, run.kept.event_shape) != (first.kept.name, first.kept.event_shape):
            raise ValueError(
                f"compare: {run.folder} is on {run.kept.name} {run.kept.event_shape}, {first.folder} on "
                f"{first.kept.name} {first.kept.event_shape}; compare runs on the same data"
            )
        if differences := first.record.changes(run.record.kept):
            warn_user(f"compare: the data of {run.folder} are not those of {first.folder}: {'; '.join(differences)}")
    samples = {name: _in_units_of(first.data, run.generate(n, seed=seed), run.data) for name, run in runs.items()}
    train = first.data.train.x
    chosen = np.random.default_rng(seed).permutation(len(train))[:n]
    samples[TRAINING_DATA] = first.data.scaler.inverse(train[chosen])
    columns = {}
    for name in (bar := tqdm(samples, desc="compare", unit="sample", disable=None)):
        bar.set_postfix_str(name)
        columns[name] = first.compare_with_data(samples[name], seed=seed)
    table = pd.DataFrame(columns)
    page = write_report(out, _page(runs, samples, table))
    return page, table.to_string(float_format=lambda value: f"{value:.4g}")


def _names(folders: Sequence[str | os.PathLike]) -> list[str]:
    """The names of the folders, or their paths if two have the same name.

    Raises:
        ValueError: If a folder is given twice.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"compare: expected different run folders, got {', '.join(map(str, folders))}")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _load(folder: str | os.PathLike) -> DataRun:
    """Loads a run whose samples can be compared with data."""
    run = Run.load(folder)
    if not isinstance(run, DataRun):
        raise ValueError(f"compare: {folder}: a run of {run.config['method']!r} does not generate data of a data set")
    return run


def _page(runs: dict[str, DataRun], samples: dict[str, np.ndarray], table: pd.DataFrame) -> Report:
    """The report: the table, and samples of each model next to training data."""
    data, train = next(iter(runs.values())).data, samples[TRAINING_DATA]
    style: dict[str, Any] = (
        {"limits": value_range(train[:MAX_IMAGES])} if train.ndim == 4 else {"columns": data.columns}
    )
    items = [Table(("measure", *table.columns), list(table.itertuples(name=None)))]
    sections = [Section("Every run under every metric", EXPLANATION, items)]
    frames = _frames(data)
    for name, run in runs.items():
        caption = f"Samples of {name} ({run.config['method']}), and rows of the training data."
        figure = figures.samples(samples[name], data=train, **style)
        sections.append(Section(name, str(run.fit.loss), [Figure(figure, caption, caption)]))
        if frames is not None:
            sections.append(_quality(samples[name], *frames, title=f"{name}: the table"))
    return Report(f"Runs on {data.name}", ", ".join(runs), sections)


def _frames(data: Data) -> tuple[pd.DataFrame, pd.DataFrame, Schema] | None:
    """Training rows and test rows of a table, and its columns; None for other data, and few test rows."""
    if data.columns is None or min(len(data.train.x), len(data.test.x)) < MIN_SAMPLES:
        return None
    train, test = (
        pd.DataFrame(data.scaler.inverse(part.x[:TABLE_ROWS]), columns=list(data.columns))
        for part in (data.train, data.test)
    )
    return train, test, Schema(tuple(Column(name=name, kind="continuous") for name in data.columns))


def _quality(samples: np.ndarray, train: pd.DataFrame, test: pd.DataFrame, schema: Schema, *, title: str) -> Section:
    """The quality of samples as rows of a table."""
    synthetic = pd.DataFrame(samples, columns=list(schema.names))
    quality = table_quality(synthetic, train, test, schema=schema)
    return table_quality_section(quality, synthetic, test, schema=schema, title=title)


def _in_units_of(target: Data, samples: np.ndarray, data: Data) -> np.ndarray:
    """Converts samples between gray levels and numbers from 0 to 1, if their data and the target's data differ."""
    levels = data.levels if data.form == "integer" else target.levels
    if (data.form == "integer") == (target.form == "integer") or levels is None:
        return samples
    return (samples + 0.5) / levels if data.form == "integer" else np.clip(np.floor(samples * levels), 0, levels - 1)
