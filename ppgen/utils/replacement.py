"""Attributes of classes of other libraries that are replaced for a while."""

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Replacement"]


class Replacement:
    """An attribute of a class that has another value while at least one user needs it, in any thread.

    Args:
        owner: the class.
        name: the attribute.
        replace: the new value, from the old one as it stands in the class: a function, a staticmethod or a classmethod.
    """

    def __init__(self, owner: type, name: str, replace: Callable[[Any], Any]) -> None:
        self.owner, self.name, self.replace = owner, name, replace
        self.lock, self.users = threading.Lock(), 0
        self.original: Any = None

    def install(self) -> None:
        """Adds a user; the first one replaces the attribute."""
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.original = vars(self.owner)[self.name]
                setattr(self.owner, self.name, self.replace(self.original))

    def remove(self) -> None:
        """Takes a user away; the last one restores the attribute."""
        with self.lock:
            self.users -= 1
            if self.users == 0:
                setattr(self.owner, self.name, self.original)
