"""The section on coverage: which data and which labels a generator does not produce."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppgen.evaluation import UncoveredData, coverage, uncovered_data
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.images import MAX_IMAGES
from ppgen.report.page import Figure, Section, Table

__all__ = ["coverage_section", "data_coverage"]

LEVEL = 0.05
LABELS = ("all data", "not covered")
MAX_ROWS, MIN_ROWS = 1000, 50  # data that are compared with samples
MAX_NUMBERS = 2**22  # that these data consist of
TEXT = (
    "Samples may look right and still miss part of the data. This section judges each datum by the share of samples "
    f"among its nearest neighbors. A permutation test decides which data are not covered, at the level {LEVEL:g} for "
    "all data together: if samples and data had the same distribution, one report in twenty would find any."
)

PIXELS = (
    "Images are compared pixel by pixel, so that noise, blur and shifts by a pixel count for more than what is shown: "
    "ppgen.evaluation.train_image_features gives features in which `coverage` says more about that."
)


def data_coverage(context: RunContext) -> Section | None:
    """Which held-out data (training data if there are few) samples do not cover; None for too few data or draws."""
    name = context.split if len(context.held_out.x) >= MAX_ROWS else "train"
    split = getattr(context.data, name)
    tensors = context.tensors(split, MAX_ROWS)
    if len(tensors[0]) < MIN_ROWS:
        return None
    count = min(len(tensors[0]), max(MIN_ROWS, MAX_NUMBERS // tensors[0][0].numel()))
    budget = context.budget.part(0.7, "coverage of the data")
    generated = context.draw(count, tensors[1:], budget.part(0.5))
    if (count := len(generated)) < MIN_ROWS:
        return None
    data = context.in_source_units(tensors[0][:count])
    names, figure_options = context.data.label_names, context.figure_options

    def section(n: int) -> Section:
        y = None if split.y is None else split.y[:n]
        of = "training" if name == "train" else name
        options: dict[str, Any] = {"figure_options": figure_options, "seed": context.seed, "split": of}
        return coverage_section(data[:n], generated[:n], y, label_names=names, **options)

    return budget.at_size(section, count, least=MIN_ROWS, power=2.0)


def coverage_section(
    data: np.ndarray,
    generated: np.ndarray,
    y: np.ndarray | None,
    *,
    label_names: Sequence[str] | None = None,
    figure_options: Mapping[str, Any] | None = None,
    split: str = "",
    seed: int = 0,
) -> Section:
    """Measures of fidelity and coverage, the data that samples do not cover, and the labels that they miss.

    Args:
        data: the data (n, *event).
        generated: the samples (m, *event).
        y: the labels (n,) of the data; None if there are none.
        label_names: the names of the labels, which index them.
        figure_options: options of `figures.samples`.
        split: the name of the split that the data are from.
        seed: the seed of the permutations.
    """
    flat = data.reshape(len(data), -1)
    scale = flat.std(0) if data.ndim == 2 else flat.std()
    scale = np.where(scale > 0, scale, 1.0)
    rows, samples = flat / scale, generated.reshape(len(generated), -1) / scale
    uncovered = uncovered_data(rows, samples, level=LEVEL, seed=seed)
    measures = coverage(rows, samples)
    results = [
        ("precision: the share of samples that are among data", measures.precision),
        ("recall: the share of data that are among samples", measures.recall),
        ("density: how dense the data are around samples (1 if both have the same distribution)", measures.density),
        ("coverage: the share of data with a sample near them", measures.coverage),
        ("data not covered", f"{len(uncovered.flagged)} of {len(data)}"),
    ]
    of = f"rows of the {split} data" if split else "data"
    caption = f"{len(generated)} samples and {len(data)} {of}. With other numbers of rows these measures are others."
    items: list[Any] = [Table(("measure", "value"), results, f"{caption} {PIXELS if data.ndim == 4 else ''}".strip())]
    if len(uncovered.flagged):
        items.append(_uncovered_figure(data, uncovered, figure_options or {}))
    if y is not None and len(np.unique(y)) > 1:
        items.append(_table_of_labels(uncovered, y, label_names))
    return Section("Coverage of the data", TEXT, items)


def _uncovered_figure(data: np.ndarray, uncovered: UncoveredData, options: Mapping[str, Any]) -> Figure:
    worst = data[uncovered.flagged]
    if data.ndim == 4:
        count = f"{min(len(worst), MAX_IMAGES)} of {len(worst)}"
        caption = f"Data that the samples do not cover: {count}, the worst first."
        return Figure(figures.samples(worst, labels=LABELS, **options), caption, caption)
    caption = "Data that the samples do not cover, over all data."
    picture = figures.samples(worst, data=data, labels=LABELS, **options)
    return Figure(picture, caption, f"Scatter plot. {caption}")


def _table_of_labels(uncovered: UncoveredData, y: np.ndarray, names: Sequence[str] | None) -> Table:
    rows = []
    for row in uncovered.by_label(y):
        name = str(row.label) if names is None else str(names[int(row.label)])  # type: ignore[call-overload]
        remark = "never generated" if row.generated == 0 else "generated too rarely"
        remark = remark if row.p_value <= LEVEL else ""
        rows.append((name, row.expected, row.generated, row.flagged, row.p_value, remark))
    header = ("label", "share of data", "share of samples", "data not covered", "p-value", "remark")
    caption = "Samples by the label of the nearest datum. The p-values are corrected for the number of labels."
    return Table(header, rows, caption)
