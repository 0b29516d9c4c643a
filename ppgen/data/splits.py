"""Splits of rows into train, validation and test: at random, by group, or by time.

A random split is right for rows that are independent of each other. Where rows of one customer, patient or place
resemble each other, a model that has seen some of them predicts the others too well: ``group:customer`` keeps all rows
of a customer in one split. Where a model is to predict what comes later, ``time:date`` tests it on the latest rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from numpy.random import Generator

from ppgen.data.labels import row_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SplitBy", "SplitKeys", "split_rows"]

Kind = Literal["group", "time"]
PARTS = ("train", "validation", "test")


class SplitKeys(NamedTuple):
    """The group or the time of each row.

    Attributes:
        kind: "group" or "time".
        codes: integers (n,); equal ones belong together, and those of times are in their order.
    """

    kind: Kind
    codes: np.ndarray


@dataclass(frozen=True)
class SplitBy:
    """A column of a table by which its rows are split.

    Attributes:
        kind: "group", whose rows stay together, or "time", whose latest rows are the test rows.
        column: the name of the column.
    """

    kind: Kind
    column: str

    @classmethod
    def parse(cls, split: str) -> SplitBy | None:
        """Reads "random", which is None, "group:COLUMN" or "time:COLUMN".

        Raises:
            ValueError: for anything else.
        """
        if split == "random":
            return None
        kind, _, column = split.partition(":")
        if kind not in get_args(Kind) or not column:
            raise ValueError(f"expected split to be random, group:COLUMN or time:COLUMN, got {split!r}")
        return cls(kind, column)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}:{self.column}"

    def keys(self, column: pd.Series, *, name: str, location: Callable[[int], str] = row_number) -> SplitKeys:
        """The group or the time of each row.

        Args:
            column: the column; times are numbers, dates, or text as 2024-12-31 or 2024-12-31 23:59.
            name: the source, for errors.
            location: describes where a row is in the source, for errors.

        Raises:
            ValueError: for missing cells, and times that are none.
        """
        import pandas as pd

        where = f"{name}, column {self.column!r}"
        missing = np.flatnonzero(column.isna() | (column.astype(object) == ""))
        if missing.size:
            raise ValueError(
                f"{where}, {location(missing[0])}: split={str(self)!r} needs the {self.kind} of each row, and "
                f"{missing.size} of {len(column)} are missing; fill them or drop those rows"
            )
        values = column if self.kind == "group" else _times(column, where, location)
        codes, _ = pd.factorize(values.reset_index(drop=True), sort=self.kind == "time")
        return SplitKeys(self.kind, codes.astype(np.int64))


def _times(column: pd.Series, where: str, location: Callable[[int], str]) -> pd.Series:
    """Times that can be sorted."""
    import pandas as pd

    kinds = (pd.api.types.is_numeric_dtype, pd.api.types.is_datetime64_any_dtype, pd.api.types.is_timedelta64_dtype)
    if any(is_kind(column.dtype) for is_kind in kinds):
        return column
    text = column.astype(str)
    numbers = pd.to_numeric(text, errors="coerce")
    if numbers.notna().all():
        return numbers
    times = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    invalid = np.flatnonzero(times.isna())
    if invalid.size:
        raise ValueError(
            f"{where}, {location(invalid[0])}: expected a time to split by, a number or a date such as 2024-12-31, got "
            f"{text.iloc[invalid[0]]!r} ({invalid.size} of {len(text)} cells); write dates with the year first"
        )
    return times


def split_rows(
    n: int,
    y: np.ndarray | None,
    *,
    validation: float,
    test: float,
    rng: Generator,
    keys: SplitKeys | None = None,
) -> dict[str, np.ndarray]:
    """Splits the row numbers 0 .. n - 1.

    **At random**, each class by its share. The r-th of the c rows of a class, in random order, has the quantile
    (r + 1/2)/c in that class. The rows are sorted by quantile, with ties in random order, so that every interval of
    them has each class in its proportion. The first round(test n) rows are the test rows, the next
    round(validation n) the validation rows. For classes of equal size every share is correct to within two rows.
    Without labels all rows are one class.

    **By group**, groups come in random order, and each goes to the split that lacks most rows. Shares are as close as
    the sizes of groups allow; labels are not looked at.

    **By time**, the test rows are the latest, and the validation rows those before them. Rows of one time stay
    together, in the later split, so that a share may be larger than asked for.

    Args:
        n: the number of rows.
        y: the labels (n,), or None.
        validation: the fraction of validation rows.
        test: the fraction of test rows.
        rng: the random generator.
        keys: the group or time of each row; None for a random split.

    Returns:
        The row numbers of "train", "validation" and "test", disjoint and together all rows, in random order.

    Raises:
        ValueError: for fractions outside [0, 1), or that leave no training row; for groups or times of which a split
            that is asked for has none.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(
            f"expected fractions validation and test, each at least 0 and together below 1, got {validation} and {test}"
        )
    shuffled = rng.permutation(n)
    if keys is None:
        rows = _at_random(shuffled, y, validation, test, rng)
    elif keys.kind == "group":
        rows = _by_group(shuffled, keys.codes[shuffled], validation, test, rng)
    else:
        rows = _by_time(shuffled, keys.codes[shuffled], validation, test)
    _check(rows, n, validation, test, keys)
    return rows


def _at_random(
    shuffled: np.ndarray, y: np.ndarray | None, validation: float, test: float, rng: Generator
) -> dict[str, np.ndarray]:
    n = len(shuffled)
    classes = np.zeros(n, np.int64) if y is None else y[shuffled]
    by_class = shuffled[np.argsort(classes, kind="stable")]
    counts = np.unique(classes, return_counts=True)[1]
    quantile = np.concatenate([(np.arange(c) + 0.5) / c for c in counts])
    order = by_class[np.lexsort((rng.random(n), quantile))]
    cut = round(test * n)
    test_rows, validation_rows, train_rows = np.split(order, [cut, cut + round(validation * n)])
    return {"train": train_rows, "validation": validation_rows, "test": test_rows}


def _by_group(
    shuffled: np.ndarray, codes: np.ndarray, validation: float, test: float, rng: Generator
) -> dict[str, np.ndarray]:
    _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    lacking = np.array([1 - validation - test, validation, test]) * len(shuffled)
    part_of = np.empty(len(sizes), np.int64)
    for group in rng.permutation(len(sizes)):
        part_of[group] = part = int(lacking.argmax())
        lacking[part] -= sizes[group]
    return {part: shuffled[part_of[codes] == number] for number, part in enumerate(PARTS)}


def _by_time(shuffled: np.ndarray, times: np.ndarray, validation: float, test: float) -> dict[str, np.ndarray]:
    n = len(shuffled)
    in_order = np.sort(times)
    latest = round(test * n)
    starts = [n - latest - round(validation * n), n - latest]
    # each split begins with the first row of its earliest time
    begin = [np.searchsorted(in_order, in_order[start]) if start < n else n for start in starts]
    part_of = np.searchsorted(begin, np.searchsorted(in_order, times), side="right")
    return {part: shuffled[part_of == number] for number, part in enumerate(PARTS)}


def _check(rows: dict[str, np.ndarray], n: int, validation: float, test: float, keys: SplitKeys | None) -> None:
    """Checks that no split is empty that should not be."""
    if keys is not None:
        asked = {"validation": validation, "test": test}
        empty = [part for part, share in asked.items() if round(share * n) and not len(rows[part])]
        if empty or not len(rows["train"]):
            kinds, which = len(np.unique(keys.codes)), empty[0] if empty else "train"
            advice = f"{which}=0, " if empty else ""
            raise ValueError(
                f"split by {keys.kind}: validation={validation} and test={test} leave none of {kinds} {keys.kind}s of "
                f"{n} rows for {which}; choose {advice}other shares, or another column"
            )
    if not len(rows["train"]):
        raise ValueError(f"validation={validation} and test={test} leave none of {n} rows to train on")
