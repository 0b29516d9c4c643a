"""Schemas of stored metadata: what each entry has to be, as data, so that one function can check a file that is read.

A schema is one of

    Kind(text, test)    values for which a test holds, such as `NATURAL`
    optional(schema)    null, or what the schema describes; in a mapping perhaps absent
    [schema]            a list, each entry of which the schema describes
    {str: schema}       a mapping from any text, each value of which the schema describes
    {"a": schema, ...}  a mapping with these keys; further ones are allowed, so that later versions can add them
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ppgen.utils.regular_files import read_bytes

__all__ = [
    "FLAG",
    "NATURAL",
    "NUMBER",
    "NUMBERS",
    "SCALAR",
    "SCALARS",
    "TEXT",
    "Kind",
    "check_entries",
    "optional",
    "read_json",
]

MOST_BYTES = 10_000_000  # of a file of JSON
LARGEST = 2**53  # up to which floating point numbers hold all whole numbers


class Kind(NamedTuple):
    """Values for which a test holds.

    Attributes:
        text: what they are, for errors.
        test: whether a value is one of them.
    """

    text: str
    test: Callable[[Any], bool]


class _Optional(NamedTuple):
    schema: Any
    absent: bool


def optional(schema: Any, *, absent: bool = False) -> Any:
    """Null, or what a schema describes.

    Args:
        schema: the schema.
        absent: whether the entry may be missing, because earlier versions did not write it.
    """
    return _Optional(schema, absent)


def _is_number(value: Any) -> bool:
    """A number that fits into double precision."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**300)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_array(value: Any) -> bool:
    """Whether nested lists of numbers have one shape."""
    if not isinstance(value, list):
        return _is_number(value)
    return all(_is_array(part) and _shape(part) == _shape(value[0]) for part in value)


def _shape(value: Any) -> tuple[int, ...]:
    return (len(value), *(_shape(value[0]) if value else ())) if isinstance(value, list) else ()


NATURAL = Kind(f"a whole number from 0 to {LARGEST}", lambda v: type(v) is int and 0 <= v <= LARGEST)
NUMBER = Kind("a number", _is_number)
NUMBERS = Kind("a number, or nested lists of numbers of one shape", _is_array)
TEXT = Kind("a text", lambda v: isinstance(v, str))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
SCALAR = Kind("a number, a text, true, false or null", _is_scalar)
SCALARS = Kind(
    "a number, a text, true, false, null or a list of them",
    lambda v: _is_scalar(v) or (isinstance(v, list) and all(map(_is_scalar, v))),
)


def check_entries(value: Any, schema: Any, name: str = "the metadata") -> None:
    """Checks a value that was read from a file.

    Args:
        value: the value, as JSON gives it.
        schema: what it has to be.
        name: the entry, for errors.

    Raises:
        ValueError: if it is something else, or lacks an entry; the message names the entry.
    """
    if isinstance(schema, _Optional):
        if value is not None:
            check_entries(value, schema.schema, name)
    elif isinstance(schema, Kind):
        if not schema.test(value):
            raise ValueError(f"{name}: expected {schema.text}, got {_short(value)}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{name}: expected a list, got {_short(value)}")
        for i, part in enumerate(value):
            check_entries(part, schema[0], f"{name}[{i}]")
    elif not isinstance(value, dict):
        raise ValueError(f"{name}: expected a mapping, got {_short(value)}")
    elif str in schema:
        for key, part in value.items():
            check_entries(part, schema[str], f"{name}[{key!r}]")
    else:
        for key, inner in schema.items():
            if key not in value:
                if isinstance(inner, _Optional) and inner.absent:
                    continue
                raise ValueError(f"{name}: the entry {key!r} is missing")
            check_entries(value[key], inner, key if name == "the metadata" else f"{name}.{key}")


def read_json(path: Path, schema: Any, *, most: int = MOST_BYTES) -> Any:
    """Reads a file of JSON, and checks what it holds.

    Args:
        path: the file.
        schema: what it has to hold.
        most: the largest size of the file in bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is larger, is no JSON, or holds something else; the message names the file.
    """
    try:
        value = json.loads(read_bytes(path, most=most))
        check_entries(value, schema, "its content")
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return value


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
