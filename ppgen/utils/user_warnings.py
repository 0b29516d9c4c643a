"""Warnings that point to the user's statement."""

import sys
import warnings

__all__ = ["warn_user", "warn_user_once"]

LIBRARIES = ("ppgen", "pyro", "torch", "contextlib", "functools")  # the latter call what a decorator has wrapped
_warned: set[str] = set()


def warn_user(message: str) -> None:
    """Warns at the innermost statement outside of ppgen, Pyro and torch, however deep in the package the cause is.

    Args:
        message: the text of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def warn_user_once(message: str) -> None:
    """Warns as `warn_user` does, but not if this process has warned with the same text before.

    Args:
        message: the text of the warning.
    """
    if message not in _warned:
        _warned.add(message)
        warn_user(message)
