"""The places where Python values stand, and whether they still hold the same objects.

`Places` keeps, for each place, what stood there, and tells in words what has changed. A `Comparison` answers whether
anything has, in few calls from Python, since it is asked before each compiled step.
"""

import inspect
import operator
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from enum import Enum
from itertools import chain
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["ATOMS", "CONTAINERS", "LARGEST_CONTAINER", "MISSING", "Comparison", "Contents", "Place", "bases"]
__all__ += ["class_attribute", "held", "parts", "same"]

ATOMS = (bool, int, float, complex, str, bytes, type(None), Enum, np.generic, torch.dtype, torch.device, torch.Size)
CONTAINERS = (list, tuple, dict, set, frozenset, deque, bytearray, array)
LARGEST_CONTAINER = 1024  # entries that are compared before each step; of a larger container, the length alone
MISSING = object()


class Place(NamedTuple):
    """Where a value stands: a key of a namespace, a cell of a closure, or an attribute of an object or a class.

    Attributes:
        owner: the namespace, the cell, the object or the class.
        key: the name of the value there.
        label: the place in words, for messages.
        of_library: whether only functions of libraries were seen to read it; they may keep things there by themselves.
    """

    owner: Any
    key: str
    label: str
    of_library: bool

    def read(self) -> Any:
        """The value that stands there now; `MISSING` if there is none."""
        if isinstance(self.owner, Mapping):
            return self.owner.get(self.key, MISSING)
        if isinstance(self.owner, type):
            return class_attribute(self.owner, self.key)
        return getattr(self.owner, self.key, MISSING)


class Contents(NamedTuple):
    """A container or an array, with what it holds.

    Attributes:
        owner: the container or array.
        label: where it stands, in words.
        of_library: as for a `Place`.
        held: its contents, comparable by ``==``.
    """

    owner: Any
    label: str
    of_library: bool
    held: Any


class Comparison:
    """Compares what stands in many places with the objects that stand there now.

    Lists are compared by ``==``, which takes identical objects for equal without asking them. Of a user's objects that
    can equal another one, such as lists, tensors of one element, or 1 and 1.0, the identity is compared too: an equal
    list in the place of another one is a change, since it may change later. Numbers that are computed
    again are found to be the `same`.

    Args:
        places: the places.
        contents: containers and NumPy arrays.
    """

    def __init__(self, places: Iterable[Place], contents: Iterable[Contents]) -> None:
        by_owner: dict[int, tuple[Any, list[Any]]] = {}
        exact: dict[int, tuple[Any, list[Any]]] = {}
        grown: dict[int, Any] = {}
        self._remade: list[tuple[Place, Any]] = []  # methods of classes, for example, which each read binds again
        for place in places:
            owner = place.owner
            if (value := place.read()) is MISSING:  # such a name can only be added
                grown[id(owner)] = vars(owner) if isinstance(owner, type) else owner
            elif isinstance(owner, Mapping) or _is_stable(place):
                by_owner.setdefault(id(owner), (owner, []))[1].append(place.key)
                if _can_equal_another(value, place.of_library):
                    exact.setdefault(id(owner), (owner, []))[1].append(place.key)
            else:
                self._remade.append((place, value))
        self._containers: list[Any] = []
        self._empty: list[Any] = []
        self._arrays: list[np.ndarray] = []
        self._sized = [owner for owner in grown.values() if isinstance(owner, Mapping)]
        self._ordered: list[dict] = []
        for container, _, of_library, _ in contents:
            if isinstance(container, np.ndarray):
                self._arrays.append(container)
            elif len(container) > LARGEST_CONTAINER:
                self._sized.append(container)
            elif not container:
                self._empty.append(container)
            else:
                self._containers.append(container)
                if isinstance(container, dict | list | deque):
                    keys = [key for key, part in parts(container) if _can_equal_another(part, of_library)]
                    exact.setdefault(id(container), (container, []))[1].extend(keys)
                if isinstance(container, dict) and not of_library:
                    self._ordered.append(container)
        self._getters = [_getter(owner, keys) for owner, keys in by_owner.values()]
        self._exact_getters = [_getter(owner, keys) for owner, keys in exact.values() if keys]
        self._values, self._exact = self._read_values(), list(self._read_exact())
        self._contents = [dict(c) if isinstance(c, OrderedDict) else copy(c) for c in self._containers]
        self._sizes, self._keys = list(map(len, self._sized)), list(chain.from_iterable(self._ordered))
        self._held = list(map(held, self._arrays))

    def holds(self) -> bool:
        """Whether the same objects stand in all places."""
        try:
            return (
                self._read_values() == self._values
                and not any(self._empty)
                and self._containers == self._contents
                and all(map(operator.is_, self._read_exact(), self._exact))
                and list(map(len, self._sized)) == self._sizes
                and (not self._ordered or list(chain.from_iterable(self._ordered)) == self._keys)
                and (not self._remade or all(same(value, place.read()) for place, value in self._remade))
                and (not self._arrays or list(map(held, self._arrays)) == self._held)
            )
        except Exception:  # a name is gone, tensors have no bool(==), or code of the user's fails
            return False

    def _read_values(self) -> list[tuple]:
        return [get(owner) for get, owner in self._getters]

    def _read_exact(self) -> Iterator[Any]:
        return chain.from_iterable([get(owner) for get, owner in self._exact_getters])


def _getter(owner: Any, keys: list[Any]) -> tuple[Callable, Any]:
    """A function that reads places of one owner, as a tuple."""
    getter = operator.itemgetter if isinstance(owner, Mapping | list | deque) else operator.attrgetter
    return getter(*keys, keys[0]), owner


def _can_equal_another(value: Any, of_library: bool) -> bool:
    """Whether an object can equal another one that is not the `same`, or that may change by itself."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.requires_grad or not of_library)
    fixed = isinstance(value, (bool, str, bytes, type(None), type, FunctionType, MethodType, CodeType))
    return not of_library and not fixed and type(value).__eq__ is not object.__eq__


def _is_stable(place: Place) -> bool:
    """Whether reading an attribute gives the object that stands there, in each read."""
    try:
        read: Callable = operator.attrgetter(place.key)
        return read(place.owner) is read(place.owner)
    except Exception:
        return False


def class_attribute(kind: type, name: str) -> Any:
    """What stands in a class under a name, as in ``vars``, also in its bases and its metaclass; else `MISSING`."""
    return next((vars(base)[name] for base in bases(kind) if name in vars(base)), MISSING)


def bases(kind: type) -> tuple[type, ...]:
    """The classes in which an attribute of a class may stand, in order."""
    return (*inspect.getmro(kind), *inspect.getmro(type(kind)))


def same(value: Any, other: Any) -> bool:
    """Whether a step does the same with two values: they are one object, or equal numbers, strings or methods."""
    if value is other:
        return True
    if type(value) is not type(other) or not isinstance(value, (*ATOMS, MethodType)):
        return False
    return bool(value == other)


def held(container: Any) -> Any:
    """What a container or an array holds, comparable by ``==``: numbers and strings by value, others by identity."""
    if isinstance(container, np.ndarray):
        return container.dtype.str, container.shape, container.tobytes()
    if len(container) > LARGEST_CONTAINER:
        return len(container)
    if isinstance(container, set | frozenset):
        return {_token(part) for part in container}
    return [(_token(key), _token(part)) for key, part in parts(container)]


def parts(container: Any) -> Iterator[tuple[Any, Any]]:
    """The entries of a container with their keys; none of a large one."""
    if len(container) > LARGEST_CONTAINER:
        return iter(())
    return iter(list(container.items()) if isinstance(container, dict) else list(enumerate(container)))


def _token(part: Any) -> Any:
    return (type(part), part) if isinstance(part, ATOMS) else id(part)
