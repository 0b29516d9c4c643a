"""Dates and times of day that are written as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["recognize_date_format"]

# of two that fit, the first is taken
DATES = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d-%m-%Y",
    "%d.%m.%y",
    "%m/%d/%y",
    "%d %b %Y",
    "%Y-%m",
)
TIMES = ("%H:%M:%S", "%H:%M", "%H:%M:%S.%f")
FORMATS = (*DATES, *TIMES, *(f"{day}{between}{time}" for day in DATES[:-1] for between in " T" for time in TIMES))
LOOKS_LIKE_DATE = re.compile(r"\s*(\d{1,4}[-/.:]\d{1,2}([-/.:T ]|$)|\d{1,2} [A-Za-z]{3} \d{4})")
TRIED, FITTING = 200, 0.95


def recognize_date_format(cells: pd.Series) -> tuple[str | None, pd.Series | None, str | None]:
    """The format in which at least 95 % of texts are dates or times of day.

    Args:
        cells: texts, none missing.

    Returns:
        The format, the dates (NaT for a text that is none), and another format that fits as well; None where there is
        none. Times of day are on 1 January 1900.
    """
    import pandas as pd

    some = cells.iloc[:: max(1, len(cells) // TRIED)].astype(object)
    if sum(bool(LOOKS_LIKE_DATE.match(text)) for text in some) < FITTING * len(some):
        return None, None, None
    fitting = []
    for candidate in FORMATS:
        if pd.to_datetime(some, format=candidate, errors="coerce").notna().mean() < FITTING:
            continue
        parsed = pd.to_datetime(cells, format=candidate, errors="coerce")
        if parsed.notna().mean() >= FITTING:
            fitting.append((float(parsed.notna().mean()), candidate, parsed))
    if not fitting:
        return None, None, None
    best = max(fitting, key=lambda fit: fit[0])
    other = next((name for share, name, _ in fitting if share == best[0] and name != best[1]), None)
    return best[1], best[2], other
