"""The forms of data that likelihoods score.

k in {0, .., L - 1} is a gray level, and L the number of levels. Images of 8 bits have L = 256; tables and toy data sets
have no levels (L is None). Each form maps (x, L, generator) to an array of the same shape, and raises ValueError for
data that do not have this form, with the number of the values that do not. `FORMS` lists the forms; "auto" and "levels"
are resolved to one of them by `resolve_form`.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from ppgen.data.checks import describe_invalid

__all__ = ["DEFERRED", "FORMS", "binary", "continuous", "integer", "resolve_form", "unit"]


def continuous(x: np.ndarray, levels: int | None, rng: Generator) -> np.ndarray:
    """Levels become (k + u)/L with u ~ U[0, 1), float32 in [0, 1); other data are kept.

    A density p of the dequantized data bounds the probability P of the levels (Theis et al.,
    https://arxiv.org/abs/1511.01844, section 3.1): with D values per datum, log P(k) >= E_u log p((k + u)/L) - D log L
    nats.
    """
    if levels is None:
        return x if x.dtype.kind == "f" else x.astype(np.float64)
    noisy = (x + rng.random(x.shape, dtype=np.float32)) / np.float32(levels)
    ends = ((np.arange(levels) + 1) / levels).astype(np.float32)
    return np.minimum(noisy, np.nextafter(ends, np.float32(0))[x])  # rounding must not reach the next level


def integer(x: np.ndarray, levels: int | None, rng: Generator) -> np.ndarray:
    """The levels or integers themselves, int64."""
    _require((x == np.round(x)) & (np.abs(x) < 2.0**63), "an integer", "integer")
    return x.astype(np.int64)


def binary(x: np.ndarray, levels: int | None, rng: Generator) -> np.ndarray:
    """1 for a level in the upper half, 2k >= L, else 0; data of 0 and 1 are kept. float32."""
    if levels is not None:
        return (2 * x.astype(np.int64) >= levels).astype(np.float32)
    _require((x == 0) | (x == 1), "0 or 1", "binary")
    return x.astype(np.float32)


def unit(x: np.ndarray, levels: int | None, rng: Generator) -> np.ndarray:
    """Levels become k/(L - 1); data in [0, 1] are kept. float32."""
    if levels is not None:
        return x.astype(np.float32) / np.float32(levels - 1)
    _require((x >= 0) & (x <= 1), "in [0, 1]", "unit")
    return x.astype(np.float32)


def resolve_form(form: str, levels: int | None) -> str:
    """The row of `FORMS` that a user's form means for data with that number of levels.

    "auto" is "continuous"; "levels" is "integer" for data with levels, else "continuous".
    """
    return {"auto": "continuous", "levels": "continuous" if levels is None else "integer"}.get(form, form)


def _require(ok: np.ndarray, what: str, form: str) -> None:
    if not ok.all():
        raise ValueError(f"form={form!r} expects every value to be {what}; {describe_invalid(~ok)}, are not")


FORMS: dict[str, Callable[[np.ndarray, int | None, Generator], np.ndarray]] = {
    f.__name__: f for f in (continuous, integer, binary, unit)
}
DEFERRED = ("auto", "levels")  # forms that depend on the data
