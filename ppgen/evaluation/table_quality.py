"""How good synthetic rows of a table are: marginals, associations, detection, usefulness, coverage and privacy.

Rows of three frames are compared: synthetic ones, the training rows that the model saw, and test rows that it did not
see. What synthetic rows can reach at best is what the training rows reach in their place, since these have the right
distribution; so each number is also computed for the training rows as far as that says something.

| number | what it is | best |
|---|---|---|
| marginal distance | of a column: Kolmogorov-Smirnov of numbers, total variation of categories | 0 |
| association error | the mean absolute difference of the associations of two columns | 0 |
| detection AUC | of gradient boosting that tells synthetic rows from test rows, five folds | 0.5 |
| detection score | 1 - (2 max(AUC, 1/2) - 1): 1 if nothing is detected, 0 if all is | 1 |
| usefulness | of gradient boosting for a target, trained on synthetic and tested on real rows | as real rows |
| rare categories | the share of categories with under 5 % of the rows that synthetic rows have | 1 |
| closer to training rows | the share of synthetic rows nearer to a training row than to as many test rows | 0.5 |
| copies | the share of synthetic rows that equal a training row, beside that of test rows | as test rows |
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.data.schema import Schema
from ppgen.evaluation.mixed_columns import MixedColumns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TableQuality", "associations", "detection_auc", "table_quality"]

FOLDS = 5
RARE = 0.05  # the share of rows below which a category is rare
MOST_ROWS = 10_000  # of each frame that classifiers and distances use
MOST_CATEGORIES = 250  # that gradient boosting takes as categories
REGRESSION, CLASSIFICATION = "R²", "balanced accuracy"


@dataclass(frozen=True)
class TableQuality:
    """The quality of synthetic rows: see `table_quality`.

    Attributes:
        marginals: a row for each column: "distance", that of training rows, the shares of missing cells, and for
            categories the number of rare ones and the share of these that synthetic rows have.
        associations: the associations of each two columns among test rows.
        synthetic_associations: those among synthetic rows.
        numbers: all that is one number, by name.
    """

    marginals: pd.DataFrame
    associations: pd.DataFrame
    synthetic_associations: pd.DataFrame
    numbers: dict[str, float]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value:.4g}" for name, value in self.numbers.items())


def table_quality(
    synthetic: pd.DataFrame,
    train: pd.DataFrame,
    test: pd.DataFrame,
    *,
    schema: Schema | None = None,
    target: str | None = None,
    seed: int = 0,
) -> TableQuality:
    """Compares synthetic rows with rows of data; the module's docstring says how.

    Args:
        synthetic: rows of a model.
        train: rows that the model was fitted to.
        test: rows that it was not fitted to, at least 20.
        schema: what the columns are; inferred from the training rows if left out. Columns that it omits are left out.
        target: the column whose prediction measures usefulness: a category (balanced accuracy) or a number (R²); None
            for no such measure.
        seed: the seed of folds, subsets of rows and classifiers.

    Raises:
        TypeError: for anything but frames.
        ValueError: for fewer than 20 rows, and a frame that lacks a column; the message names it.

    Example:
        >>> import numpy as np
        >>> import pandas as pd
        >>> from ppgen.evaluation import table_quality
        >>> rng = np.random.default_rng(0)
        >>> def rows(n):
        ...     age = rng.integers(20, 60, n)
        ...     return pd.DataFrame({"age": age, "plan": np.where(rng.random(n) < age / 90, "pro", "free")})
        >>> quality = table_quality(rows(300), rows(300), rows(300))
        >>> quality.numbers["detection score"] > 0.8
        True
    """
    frames, names = (synthetic, train, test), ("synthetic", "train", "test")
    schema = Schema.infer(train, name="train") if schema is None else schema
    columns = MixedColumns.of(frames, names, schema)
    if few := [f"{len(rows)} {name}" for rows, name in zip(columns.rows, names, strict=True) if len(rows) < 20]:
        raise ValueError(f"table_quality: expected at least 20 rows of each frame, got {' and '.join(few)} rows")
    rng = np.random.default_rng(seed)
    marginals = _marginals(columns, train)
    real, drawn = (associations(columns, number) for number in (2, 0))
    upper = np.triu_indices(len(real), 1)
    difference = np.abs(real.to_numpy() - drawn.to_numpy())[upper]
    of_train = np.abs(real.to_numpy() - associations(columns, 1).to_numpy())[upper]
    numbers = {
        "rows": float(len(columns.rows[0])),
        "mean marginal distance": float(marginals["distance"].mean()),
        "mean marginal distance of training rows": float(marginals["of training rows"].mean()),
        "association error": float(difference.mean()) if difference.size else 0.0,
        "association error of training rows": float(of_train.mean()) if of_train.size else 0.0,
    }
    subset = _subsets(columns, rng)
    numbers["detection AUC"] = detection_auc(subset, 0, 2, seed=seed)
    numbers["detection score"] = _detection_score(numbers["detection AUC"])
    numbers["detection score of training rows"] = _detection_score(detection_auc(subset, 1, 2, seed=seed))
    if target is not None:
        numbers |= _usefulness(subset, target, seed)
    rare = marginals["rare categories"].sum()
    if rare:
        numbers["rare categories covered"] = float((marginals["rare categories"] * marginals["covered"]).sum() / rare)
    return TableQuality(marginals, real, drawn, numbers | _privacy(columns, subset))


def _marginals(columns: MixedColumns, train: pd.DataFrame) -> pd.DataFrame:
    """A row for each column: distances to the test rows, missing cells, and rare categories of the training rows."""
    import pandas as pd

    synthetic, seen, test = columns.rows
    rows = {}
    for j, (name, categories) in enumerate(zip(columns.names, columns.categories, strict=True)):
        x, y, z = synthetic[:, j], seen[:, j], test[:, j]
        row = {"distance": _distance(x, z, categories), "of training rows": _distance(y, z, categories)}
        row |= {"missing": float(np.isnan(x).mean()), "missing in training rows": float(np.isnan(y).mean())}
        rare = np.zeros(0, np.int64)
        if categories is not None:
            shares = np.bincount(y[~np.isnan(y)].astype(np.int64), minlength=len(categories)) / max(1, len(y))
            rare = np.flatnonzero((shares > 0) & (shares < RARE))
        row["rare categories"] = len(rare)
        row["covered"] = float(np.isin(rare, x).mean()) if len(rare) else np.nan
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _distance(x: np.ndarray, y: np.ndarray, categories: Any) -> float:
    """Kolmogorov-Smirnov of numbers, total variation of categories, where a missing cell is one more value."""
    if categories is not None:
        counts = [
            np.bincount(np.where(np.isnan(v), len(categories), v).astype(int), minlength=len(categories) + 1)
            for v in (x, y)
        ]
        return float(np.abs(counts[0] / len(x) - counts[1] / len(y)).sum() / 2)
    gap = abs(np.isnan(x).mean() - np.isnan(y).mean())
    grid = np.unique(np.concatenate([x, y])[~np.isnan(np.concatenate([x, y]))])
    if not grid.size:
        return float(gap)
    below = [np.searchsorted(np.sort(v[~np.isnan(v)]), grid, side="right") / len(v) for v in (x, y)]
    return float(max(gap, np.abs(below[0] - below[1]).max()))


def associations(columns: MixedColumns, number: int) -> pd.DataFrame:
    """The association of each two columns of a frame.

    It is Spearman's rank correlation of two columns of numbers, from -1 to 1; the correlation ratio of ranks (the
    share of their variance that the means of categories explain, its square root) of a number and a category; and
    Cramér's V with Bergsma's correction for small samples (https://doi.org/10.1016/j.jkss.2012.10.002) of two
    categories. Rows in which either is missing are left out; 0 stands where there is nothing to compare.

    Args:
        columns: the columns.
        number: the number of the frame.
    """
    import pandas as pd

    x, coded = columns.rows[number], columns.is_category
    d = x.shape[1]
    table = np.eye(d)
    for i in range(d):
        for j in range(i):
            both = x[~np.isnan(x[:, [i, j]]).any(1)]
            a, b = both[:, i], both[:, j]
            if len(both) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
                continue
            kinds = coded[i], coded[j]
            if all(kinds):
                value = _cramers_v(a, b)
            elif any(kinds):
                value = _correlation_ratio(*((a, b) if coded[i] else (b, a)))
            else:
                value = float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])
            table[i, j] = table[j, i] = value
    return pd.DataFrame(table, index=list(columns.names), columns=list(columns.names))


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))


def _correlation_ratio(codes: np.ndarray, values: np.ndarray) -> float:
    ranks, groups = _ranks(values), np.unique(codes, return_inverse=True)[1]
    counts = np.bincount(groups)
    means = np.bincount(groups, ranks) / counts
    return float(np.sqrt((counts * (means - ranks.mean()) ** 2).sum() / ((ranks - ranks.mean()) ** 2).sum()))


def _cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    rows, columns = (np.unique(v, return_inverse=True)[1] for v in (a, b))
    r, c, n = rows.max() + 1, columns.max() + 1, len(a)
    counts = np.bincount(rows * c + columns, minlength=r * c).reshape(r, c)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / n
    phi = max(0.0, float(((counts - expected) ** 2 / expected).sum()) / n - (r - 1) * (c - 1) / (n - 1))
    least = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(phi / least))) if least > 0 else 0.0


def detection_auc(columns: MixedColumns, first: int, second: int, *, seed: int = 0) -> float:
    """The area under the ROC curve of gradient boosting that tells rows of two frames apart, over five folds.

    As many rows of each frame are used, at random. Missing cells are seen as missing, categories as categories.

    Args:
        columns: the columns.
        first: the number of one frame.
        second: the number of the other.
        seed: the seed of folds and rows.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(seed)
    n = min(len(columns.rows[first]), len(columns.rows[second]))
    x = np.concatenate([columns.rows[k][rng.permutation(len(columns.rows[k]))[:n]] for k in (first, second)])
    labels = np.repeat([0, 1], n)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(_boosting(columns, seed)[1], x, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def _detection_score(auc: float) -> float:
    return 1.0 - (2.0 * max(auc, 0.5) - 1.0)


def _boosting(columns: MixedColumns, seed: int, without: int | None = None) -> tuple[Any, Any]:
    """Gradient boosting for a number, and for a category, whose columns have categories."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    few = [found is not None and len(found) <= MOST_CATEGORIES for found in columns.categories]
    mask = [kind for j, kind in enumerate(few) if j != without]
    options: dict[str, Any] = {"categorical_features": mask, "random_state": seed}
    return HistGradientBoostingRegressor(**options), HistGradientBoostingClassifier(**options)


def _usefulness(columns: MixedColumns, target: str, seed: int) -> dict[str, float]:
    """How well a target is predicted on test rows by gradient boosting trained on synthetic rows, and on real ones."""
    from sklearn.metrics import balanced_accuracy_score, r2_score

    if target not in columns.names:
        raise ValueError(f"target: there is no column {target!r}; there are {', '.join(map(repr, columns.names))}")
    j = columns.names.index(target)
    is_category = columns.categories[j] is not None
    score: Callable[..., float] = balanced_accuracy_score if is_category else r2_score
    name, found = CLASSIFICATION if is_category else REGRESSION, {}
    test = columns.rows[2][~np.isnan(columns.rows[2][:, j])]
    for label, rows in zip(("synthetic", "training"), columns.rows, strict=False):
        rows = rows[~np.isnan(rows[:, j])]
        model = _boosting(columns, seed, without=j)[is_category]
        if len(rows) < 2 or (is_category and np.ptp(rows[:, j]) == 0):
            found[f"{name} of {target}, trained on {label} rows"] = np.nan
            continue
        model.fit(np.delete(rows, j, axis=1), rows[:, j])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            value = float(score(test[:, j], model.predict(np.delete(test, j, axis=1))))
        found[f"{name} of {target}, trained on {label} rows"] = value
    return found


def _privacy(columns: MixedColumns, few: MixedColumns) -> dict[str, float]:
    """Distances to the closest record, and copies."""
    from sklearn.neighbors import NearestNeighbors

    synthetic, train, test = few.embedded()
    n = min(len(train), len(test))
    to_train, to_test = (
        NearestNeighbors(n_neighbors=1).fit(rows[:n]).kneighbors(synthetic)[0] for rows in (train, test)
    )
    of_test = NearestNeighbors(n_neighbors=1).fit(train[:n]).kneighbors(test[:n])[0]
    copied, by_chance = (np.isin(_records(rows), _records(columns.rows[1])) for rows in columns.rows[::2])
    return {
        "closer to training rows": float((to_train < to_test).mean() + (to_train == to_test).mean() / 2),
        "distance to the closest training row, 5 % quantile": float(np.quantile(to_train, 0.05)),
        "the same of test rows": float(np.quantile(of_test, 0.05)),
        "copies of training rows": float(copied.mean()),
        "copies of training rows among test rows": float(by_chance.mean()),
    }


def _records(x: np.ndarray) -> np.ndarray:
    """Each row as one value that equals that of an equal row."""
    rows = np.ascontiguousarray(np.where(np.isnan(x), np.inf, x) + 0.0)
    return rows.view([("", rows.dtype)] * rows.shape[1])[:, 0]


def _subsets(columns: MixedColumns, rng: np.random.Generator) -> MixedColumns:
    """At most `MOST_ROWS` rows of each frame, at random."""
    rows = tuple(x[rng.permutation(len(x))[:MOST_ROWS]] for x in columns.rows)
    return MixedColumns(columns.names, columns.categories, rows)
