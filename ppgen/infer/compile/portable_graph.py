"""A recorded graph without references to this process, so that another one can compile it."""

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

__all__ = ["Like", "NotPortable", "PortableGraph", "lift_constants"]

NAMESPACES = ("aten", "prims")  # whose operations every process has
INLINE = 8  # elements of a constant vector up to which the compiler writes them into the code


class NotPortable(Exception):
    """A graph has an operation or a value that another process does not know; the message names it."""


class Reference(int):
    """The number of an earlier node."""

    def __repr__(self) -> str:
        return f"%{int(self)}"


class Like(NamedTuple):
    """What an input looks like.

    Attributes:
        shape: its shape.
        stride: its strides.
        dtype: its type.
        device: where it is.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass
class PortableGraph:
    """The operations of a graph, its inputs and its small constants.

    Attributes:
        nodes: the operations, (kind, name, arguments, keyword arguments), with references to earlier ones.
        likes: what its inputs look like.
        constants: the constants that become part of the code, by name.
        draws: how many of the last inputs are random numbers.
    """

    nodes: list[tuple[str, str, Any, Any]]
    likes: list[Like]
    constants: dict[str, Tensor]
    draws: int

    @classmethod
    def of(cls, module: fx.GraphModule, draws: int) -> "PortableGraph":
        """Takes the graph of a module.

        Args:
            module: the module, whose placeholders have a "like" in their meta data.
            draws: how many of its last inputs are random numbers.

        Raises:
            NotPortable: for what another process does not know.
        """
        numbers: dict[fx.Node, Reference] = {}
        nodes, likes, constants = [], [], {}
        for node in module.graph.nodes:
            numbers[node] = Reference(len(numbers))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), numbers.__getitem__)
            if node.op == "placeholder":
                shape, stride, dtype, device = node.meta["like"]
                likes.append(Like(tuple(shape), tuple(stride), dtype, device))
            elif node.op == "get_attr":
                constants[str(node.target)] = module.get_buffer(str(node.target))
            name = _name(node.target) if node.op == "call_function" else str(node.target)
            nodes.append((node.op, name, _plain(args), _plain(kwargs)))
        return cls(nodes, likes, constants, draws)

    def module(self) -> fx.GraphModule:
        """The graph as a module."""
        root, graph = nn.Module(), fx.Graph()
        made: list[fx.Node] = []
        for name, value in self.constants.items():
            root.register_buffer(name, value)
        for op, name, args, kwargs in self.nodes:
            args, kwargs = _replaced((args, kwargs), made)
            target: Any = _operation(name) if op == "call_function" else name
            made.append(graph.create_node(op, target, args, kwargs))
        for like, node in zip(self.likes, made, strict=False):  # inputs come first
            node.meta["like"] = like
        return fx.GraphModule(root, graph)

    def text(self) -> str:
        """A text that is the same for equal graphs alone."""
        constants = {name: (value.dtype, tuple(value.shape), value.tolist()) for name, value in self.constants.items()}
        return repr((self.nodes, self.likes, constants, self.draws))


def lift_constants(module: fx.GraphModule, draws: int) -> list[Tensor]:
    """Makes inputs of the constants that are too large to be written into code.

    Args:
        module: a module, whose graph is changed.
        draws: how many of its last inputs are random numbers; the new inputs are before those.

    Returns:
        the values of the new inputs.
    """
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    last = placeholders[len(placeholders) - draws - 1]
    lifted: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        value = module.get_buffer(str(node.target))
        if value.dim() > 1 or value.numel() > INLINE:
            with graph.inserting_after(last):
                last = graph.placeholder(f"lifted_{len(lifted)}")
            last.meta["like"] = value.shape, value.stride(), value.dtype, value.device
            node.replace_all_uses_with(last)
            graph.erase_node(node)
            lifted.append(value)
    module.recompile()
    return lifted


def _name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if getattr(target, "namespace", None) not in NAMESPACES:
        raise NotPortable(f"the operation {target}")
    return str(target)


def _operation(name: str) -> Any:
    if name == "getitem":
        return operator.getitem
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _plain(tree: Any) -> Any:
    """Arguments in tuples, lists and dicts of Python's, in the place of torch's immutable ones."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(_plain, tree))
    if isinstance(tree, list):
        return list(map(_plain, tree))
    if isinstance(tree, slice):
        return slice(*map(_plain, (tree.start, tree.stop, tree.step)))
    known = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
    if tree is None or isinstance(tree, known):
        return tree
    raise NotPortable(f"an argument of type {type(tree).__name__}")


def _replaced(tree: Any, made: list[fx.Node]) -> Any:
    if isinstance(tree, Reference):
        return made[tree]
    if isinstance(tree, dict):
        return {key: _replaced(value, made) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_replaced(part, made) for part in tree)
    if isinstance(tree, slice):
        return slice(*(_replaced(part, made) for part in (tree.start, tree.stop, tree.step)))
    return tree
