"""The section of a report on what a generator reaches: which data it never draws, and by how much."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppgen.evaluation import UncoveredData, coverage, uncovered_data
from ppgen.report import figures
from ppgen.report.figures.images import GRID
from ppgen.report.page import Figure, Section, Table

__all__ = ["reach"]

LEVEL = 0.05
LABELS = ("all data", "not reached")
TEXT = (
    "A generator may draw well and still leave part of the data out. Each datum is judged by the share of draws among "
    f"its neighbors; what is called unreached is so at the level {LEVEL:g} for all data together, by permutation: if "
    "draws and data had one law, anything would be called so in one report of twenty."
)


def reach(
    data: np.ndarray,
    draws: np.ndarray,
    y: np.ndarray | None,
    *,
    names: Sequence[str] | None,
    look: Mapping[str, Any],
    seed: int,
) -> Section:
    """What of data (n, *event) is not among draws (m, *event), in figures and by the labels y (n,).

    Args:
        names: of the labels, which index them.
        look: options of `figures.samples`.
        seed: of the permutations.
    """
    flat = data.reshape(len(data), -1)
    scale = flat.std(0) if data.ndim == 2 else flat.std()
    scale = np.where(scale > 0, scale, 1.0)
    rows, generated = flat / scale, draws.reshape(len(draws), -1) / scale
    found = uncovered_data(rows, generated, level=LEVEL, seed=seed)
    four = coverage(rows, generated)
    items: list[Any] = [
        Table(
            ("measure", "value"),
            [
                ("precision: draws that are like data", four.precision),
                ("recall: data that are like draws", four.recall),
                ("density: how much like data draws are (1 for the law itself)", four.density),
                ("coverage: data with a draw near by", four.coverage),
                ("data unreached", f"{len(found.flagged)} of {len(data)}"),
            ],
        )
    ]
    if len(found.flagged):
        items.append(_picture(data, found, look))
    if y is not None and len(np.unique(y)) > 1:
        items.append(_labels(found, y, names))
    return Section("What is missing", TEXT, items)


def _picture(data: np.ndarray, found: UncoveredData, look: Mapping[str, Any]) -> Figure:
    worst = data[found.flagged]
    if data.ndim == 4:
        caption = f"Data that the model does not reach, worst first: {min(len(worst), GRID)} of {len(worst)}."
        return Figure(figures.samples(worst, labels=LABELS, **look), caption, caption)
    caption = "Data that the model does not reach, over all data."
    picture = figures.samples(worst, data=data, labels=LABELS, **look)
    return Figure(picture, caption, f"Scatter plot. {caption}")


def _labels(found: UncoveredData, y: np.ndarray, names: Sequence[str] | None) -> Table:
    rows = []
    for row in found.by_label(y):
        name = str(row.label) if names is None else str(names[int(row.label)])  # type: ignore[call-overload]
        word = "never drawn" if row.generated == 0 else "drawn too seldom"
        rows.append((name, row.expected, row.generated, row.flagged, row.p_value, word if row.p_value <= LEVEL else ""))
    header = ("label", "share of data", "share of draws", "data unreached", "p-value", "")
    caption = "Draws by the label of the nearest datum, p-values corrected for the number of labels."
    return Table(header, rows, caption)
