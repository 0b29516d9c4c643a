"""Plates that use all of their rows, whatever subsample a program asks for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyro.poutine.subsample_messenger import SubsampleMessenger

__all__ = ["all_rows"]

_OPEN: ContextVar[int] = ContextVar("open_all_rows", default=0)  # how many contexts this thread or task has open


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


class _Replacement:
    """The replaced ``SubsampleMessenger._subsample``: installed by the first user, removed by the last."""

    def __init__(self) -> None:
        self.lock, self.users, self.original = threading.Lock(), 0, SubsampleMessenger._subsample

    def install(self) -> None:
        """Adds a user."""
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.original = SubsampleMessenger._subsample
                SubsampleMessenger._subsample = staticmethod(self.subsample)

    def remove(self) -> None:
        """Takes a user away."""
        with self.lock:
            self.users -= 1
            if self.users == 0:
                SubsampleMessenger._subsample = staticmethod(self.original)

    def subsample(
        self, name: str, size: int | None = None, subsample_size: int | None = None, subsample: Any = None, *rest: Any
    ) -> Any:
        """The rows of a plate: (full size, number of rows, indices)."""
        if _OPEN.get() and size is not None and subsample is None:
            subsample_size = None
        return self.original(name, size, subsample_size, subsample, *rest)


_REPLACEMENT = _Replacement()
