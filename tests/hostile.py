"""Bytes that no writer of ppgen wrote, and what may happen when they are read: a result, or a refusal with the name."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# a fixed set of examples, quick enough for every test run; -m slow tries more of them
_ANY = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
MUTATIONS = settings(max_examples=60, **_ANY)
MANY_MUTATIONS = settings(max_examples=200, **_ANY)


@st.composite
def hostile_bytes(draw: Any, *valid: bytes) -> bytes:
    """Random bytes, or a valid file that was cut, spliced or altered in a few places."""
    how = draw(st.sampled_from(["random", "cut", "spliced", "altered", "altered", "inserted"]))
    content = draw(st.sampled_from(valid))
    if how == "random":
        return draw(st.binary(max_size=200))
    at = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:at]
    if how == "spliced":
        other = draw(st.sampled_from(valid))
        return content[:at] + other[draw(st.integers(0, len(other))) :]
    if how == "inserted":
        return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
    altered = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # half of the places are in the first bytes, where headers are
        place = draw(st.integers(0, min(len(content), 200) - 1) | st.integers(0, len(content) - 1))
        altered[place] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    return bytes(altered)


def outcome(read: Callable[[], Any], name: Any) -> Any:
    """What reading gives, or None if it is refused with the name of the file in one line or a few.

    Any other exception fails the test.
    """
    try:
        return read()
    except (ValueError, TypeError, FileNotFoundError) as error:
        refusal = error
    assert str(name) in str(refusal), f"{type(refusal).__name__} without the name of the file: {refusal}"
    return None


REMOVED = object()
# what stands in the place of each entry of the metadata of a forged file
FORGED = [REMOVED, None, "text", -1, 10**15, 10**400, 1.5, True, [], [[1], 2], {"a": {"b": [None]}}]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The keys of each entry of JSON values, the outer ones first."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def replaced(value: Any, path: tuple, by: Any) -> Any:
    """A copy with one entry removed or replaced."""
    value = copy.deepcopy(value)
    *outer, last = path
    inner = value
    for key in outer:
        inner = inner[key]
    if by is REMOVED:
        del inner[last]
    else:
        inner[last] = by
    return value
