"""Plates of other rows than a program asks for: all of them, or a share of a larger batch."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from pyro.poutine.subsample_messenger import SubsampleMessenger

from ppgen.utils.replacement import Replacement

__all__ = ["all_rows", "resized_plate", "sharded_plates"]

_OPEN: ContextVar[int] = ContextVar("open_all_rows", default=0)  # how many contexts this thread or task has open
_RESIZED: ContextVar[tuple[str, int] | None] = ContextVar("resized", default=None)
_SHARE: ContextVar["_Share | None"] = ContextVar("share", default=None)


class _Share(NamedTuple):
    plates: Collection[str]
    rows: int
    whole: int


@contextmanager
def all_rows() -> Iterator[None]:
    """A context in which plates that would draw a subsample use all of their rows, in order, at scale 1.

    A plate that is given its rows, ``subsample=x``, keeps them. Only plates of the thread (or asyncio task) that opens
    the context are affected. Contexts may be nested and may close in any order.

    A Pyro handler cannot do this. A plate sends a message for its row indices but not for their number: it keeps its
    own ``subsample_size``, raises if a handler sets a value of another length, and takes the scale and the size of its
    frame from it. Therefore this context replaces the function in which a plate chooses its rows
    (``SubsampleMessenger._subsample``) while at least one context is open, in any thread.
    """
    _REPLACEMENT.install()
    _OPEN.set(_OPEN.get() + 1)
    try:
        yield
    finally:
        _OPEN.set(_OPEN.get() - 1)
        _REPLACEMENT.remove()


@contextmanager
def sharded_plates(plates: Collection[str], rows: int, whole: int) -> Iterator[None]:
    """A context for programs that run on a share of a batch: their plates have the size of the whole batch.

    ``pyro.plate("data", len(x))`` then is a plate of `whole` rows of which the program sees `rows`, so that the
    log densities inside it are scaled by whole / rows, and those of global latents are not. A plate whose size is
    that of all data, ``pyro.plate("data", N, subsample=x)``, keeps it.

    Args:
        plates: the names of the plates that have a row for each row of the batch.
        rows: the rows of the share.
        whole: the rows of the batch.
    """
    _REPLACEMENT.install()
    token = _SHARE.set(_Share(plates, rows, whole))
    try:
        yield
    finally:
        _SHARE.reset(token)
        _REPLACEMENT.remove()


@contextmanager
def resized_plate(name: str, size: int) -> Iterator[None]:
    """A context in which a plate has another number of rows than its program gives it.

    Args:
        name: the name of the plate.
        size: the number of rows.
    """
    _REPLACEMENT.install()
    token = _RESIZED.set((name, size))
    try:
        yield
    finally:
        _RESIZED.reset(token)
        _REPLACEMENT.remove()


def _replaced(original: Any) -> Any:
    """``SubsampleMessenger._subsample``, (full size, number of rows, indices) of a plate, under the open contexts."""

    def subsample(
        name: str, size: int | None = None, subsample_size: int | None = None, subsample: Any = None, *rest: Any
    ) -> Any:
        resized = _RESIZED.get()
        if resized is not None and name == resized[0] and subsample is None:
            size, subsample_size = resized[1], None
        if _OPEN.get() and size is not None and subsample is None:
            subsample_size = None
        share = _SHARE.get()
        size, subsample_size, subsample = original.__func__(name, size, subsample_size, subsample, *rest)
        if share is not None and name in share.plates and size == share.rows:
            size = share.whole
        return size, subsample_size, subsample

    return staticmethod(subsample)


_REPLACEMENT = Replacement(SubsampleMessenger, "_subsample", _replaced)
