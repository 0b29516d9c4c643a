"""The section about the quality of synthetic rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ppgen.data.schema import Schema
from ppgen.evaluation.mixed_columns import MixedColumns
from ppgen.evaluation.table_quality import TableQuality
from ppgen.report import figures
from ppgen.report.page import Figure, Section, Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["table_quality_section"]

SHOWN_ROWS = 8
TEXT = (
    "Synthetic rows beside test rows, which the model did not see. Numbers of training rows are what rows of the right "
    "distribution would reach. A detection score of 1 means that gradient boosting cannot tell synthetic rows from "
    "test rows; 0.5 of the synthetic rows are closer to a training row than to as many test rows if nothing is copied."
)


def table_quality_section(
    quality: TableQuality, synthetic: pd.DataFrame, test: pd.DataFrame, *, schema: Schema, title: str
) -> Section:
    """Numbers, marginals side by side, matrices of associations, and a few synthetic rows.

    Args:
        quality: the quality.
        synthetic: the synthetic rows.
        test: the rows that they were compared with.
        schema: what the columns are.
        title: the title of the section.
    """
    columns = MixedColumns.of((test, synthetic), ("test", "synthetic"), schema)
    names, real, drawn = list(columns.names), quality.associations, quality.synthetic_associations
    numbers = Table(("measure", "value"), list(quality.numbers.items()))
    by_column = [(name, *map(float, row)) for name, row in quality.marginals.iterrows()]
    header = ("column", *map(str, quality.marginals.columns))
    distributions = "The distribution of each column in test rows and in synthetic rows."
    pairs = "Associations of two columns: rank correlations, correlation ratios, and Cramér's V of two categories."
    rows = [tuple(map(_cell, row)) for row in synthetic[names].head(SHOWN_ROWS).itertuples(index=False)]
    picture = figures.marginals(columns.rows[0], columns.rows[1], names, columns.categories)
    matrices = figures.associations(np.asarray(real), np.asarray(drawn), names)
    return Section(
        title,
        TEXT,
        [
            numbers,
            Figure(picture, distributions, distributions),
            Figure(matrices, pairs, pairs),
            Table(header, by_column, "Distances of each column, missing cells, and rare categories."),
            Table(tuple(names), rows, "Synthetic rows."),
        ],
    )


def _cell(value: object) -> object:
    return float(value) if isinstance(value, float | np.floating) else str(value)
