"""Runs side by side: every model under every metric, whatever it was trained on, in one table and one page."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ppgen.data import Data
from ppgen.report import figures, write_report
from ppgen.report.figures.images import GRID, span
from ppgen.report.page import Figure, Report, Section, Table
from ppgen.runs.run import Run

__all__ = ["compare"]

DATA = "training data"


def compare(
    folders: Sequence[str | os.PathLike], *, n: int = 1000, seed: int = 0, out: str | os.PathLike = "compare.html"
) -> tuple[Path, str]:
    """Lays the draws of several runs beside held-out data; returns the page's path and the table as text.

    A column a run, and one for rows of the training data, which is what draws of the law itself would score.

    Args:
        folders: of runs on the same source of data.
        n: draws of each model.
        seed: of draws, directions and critics.

    Raises:
        FileNotFoundError: if one is no run folder. ValueError: for n below 20, or runs on different data.
    """
    if n < 20:
        raise ValueError(f"compare: n is at least 20, for metrics to say something, got {n}")
    runs = {Path(folder).name: Run.load(folder) for folder in folders}
    first, *others = runs.values()
    for run in others:
        if (run.data.name, run.data.event_shape) != (first.data.name, first.data.event_shape):
            raise ValueError(
                f"compare: {run.folder} is on {run.data.name} {run.data.event_shape}, {first.folder} on "
                f"{first.data.name} {first.data.event_shape}; compare runs on the same data"
            )
    drawn = {name: _alike(run.draws(n, seed=seed), run.data, first.data) for name, run in runs.items()}
    rows = first.data.train.x
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    drawn[DATA] = first.data.scaler.inverse(rows[chosen])
    measured = {}
    for name in (bar := tqdm(drawn, desc="compare", unit="sample", disable=None)):
        bar.set_postfix_str(name)
        measured[name] = first.measure(drawn[name], seed=seed)
    table = pd.DataFrame(measured)
    items = [Table(("measure", *table.columns), list(table.itertuples(name=None)))]
    sections = [Section("Every run under every metric", QUESTION, items)]
    look = {"limits": span(drawn[DATA][:GRID])} if drawn[DATA].ndim == 4 else {"columns": first.data.columns}
    for name in runs:
        caption = f"Draws of {name} ({runs[name].config['system']}), and rows of the data."
        picture = figures.samples(drawn[name], data=drawn[DATA], **look)
        sections.append(Section(name, str(runs[name].fit.loss), [Figure(picture, caption, caption)]))
    page = write_report(out, Report(f"Runs on {first.data.name}", ", ".join(runs), sections))
    return page, table.to_string(float_format=lambda value: f"{value:.4g}")


def _alike(rows: np.ndarray, data: Data, other: Data) -> np.ndarray:
    """Draws in the units of another run's data: of levels and of numbers from 0 to 1, one is made the other."""
    levels = data.levels if data.form == "integer" else other.levels
    if (data.form == "integer") == (other.form == "integer") or levels is None:
        return rows
    return (rows + 0.5) / levels if data.form == "integer" else np.clip(np.floor(rows * levels), 0, levels - 1)


QUESTION = (
    "How near do draws of each model come to held-out data? Distances are better small, on data of unit scale. The "
    "column of the training data is what draws of the law itself would score: no model can be expected to do better."
)
