"""Nested arguments: the tensors in them, and a key that is equal for calls that can share one compiled function."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator
from copy import copy
from typing import Any

from torch import Tensor

from ppgen.infer.compile.places import ATOMS

__all__ = ["argument_key", "leaves", "map_tensors", "new_view"]

CONTAINERS = (tuple, list, dict, OrderedDict, defaultdict)


def leaves(tree: Any) -> Iterator[Any]:
    """Yields everything in nested tuples, lists and dicts that is not such a container, in order."""
    if not _is_container(tree):
        yield tree
        return
    for part in tree.values() if isinstance(tree, dict) else tree:
        yield from leaves(part)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Copies nested tuples, lists and dicts, with a function applied to each tensor in them."""
    if isinstance(tree, Tensor):
        return function(tree)
    if not _is_container(tree):
        return tree
    if isinstance(tree, dict):
        mapped = copy(tree)
        mapped.update({key: map_tensors(function, part) for key, part in tree.items()})
        return mapped
    parts = [map_tensors(function, part) for part in tree]
    return tree._make(parts) if hasattr(tree, "_make") else type(tree)(parts)


def argument_key(args: tuple, kwargs: dict) -> tuple[list[Tensor], Hashable]:
    """Flattens the arguments of a step.

    Returns:
        The tensors in order; and a key of all else that a compiled step depends on: the containers, the tensors'
        shapes, strides, types, devices and gradient flags, and all other values. The key is None if a value cannot be
        hashed.
    """
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return list(args), tuple([_properties(arg) for arg in args])
    parts = list(leaves((args, kwargs)))
    tensors = [part for part in parts if isinstance(part, Tensor)]
    values = tuple(_properties(part) if isinstance(part, Tensor) else _value(part) for part in parts)
    key = (_structure((args, kwargs)), values)
    try:
        hash(key)
    except TypeError:  # a NumPy array, for example, whose values may change
        return tensors, None
    return tensors, key


def new_view(tensor: Tensor) -> Tensor:
    """Returns a tensor as a new object, since Pyro's transforms cache results by the identity of their argument."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach()


def _is_container(tree: Any) -> bool:
    return type(tree) in CONTAINERS or (isinstance(tree, tuple) and hasattr(tree, "_make"))


def _structure(tree: Any) -> Hashable:
    """The containers of a tree, without its leaves."""
    if not _is_container(tree):
        return None
    keys = tuple((type(key), key) for key in tree) if isinstance(tree, dict) else None  # 1 == True == 1.0
    return type(tree), keys, tuple(map(_structure, tree.values() if isinstance(tree, dict) else tree))


def _properties(tensor: Tensor) -> tuple:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _value(part: Any) -> Hashable:
    """A value, comparable by ``==``: objects of the user's that equal each other may differ in what a step reads."""
    frozen = getattr(type(part), "__dataclass_params__", None)
    by_value = isinstance(part, ATOMS) or (frozen is not None and frozen.frozen and frozen.eq)
    return type(part), part if by_value else Same(part)


class Same:
    """An object that equals itself alone.

    Args:
        value: the object.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return hash(self.value) and id(self.value)  # what cannot be hashed may change
