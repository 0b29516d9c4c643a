"""Checks of the options that metrics are constructed with."""

import math
from numbers import Integral

__all__ = ["check_integer", "check_positive"]


def check_integer(name: str, value: object, least: int = 1) -> None:
    """Checks that an option is an integer and not too small.

    Args:
        name: The option's name, for the error message.
        value: Its value.
        least: The smallest value allowed.

    Raises:
        ValueError: If the value is not an integer, or is smaller than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


def check_positive(name: str, value: object, expected: str = "a positive number") -> None:
    """Checks that an option is a positive, finite number.

    Args:
        name: The option's name, for the error message.
        value: Its value.
        expected: What the option may be, for the error message.

    Raises:
        ValueError: If the value is not a positive, finite number.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
