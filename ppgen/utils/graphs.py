"""Recorded functions without what they compute twice, or in every call though it depends on no argument."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ppgen.utils.torch_private import record_function, shares_memory, written_arguments

__all__ = ["record_simplified"]

OPERATION = type(torch.ops.aten.add.Tensor)


def record_simplified(function: Callable, *examples: Tensor) -> Callable:
    """Records a function as `record_function` does, and simplifies the graph.

    Operations on constants are done once, equal operations on equal arguments too, and those without effect never.
    Those on tensors that the graph overwrites stay as they are.

    Args:
        function: a function of tensors that does the same operations in every call, without random numbers.
        examples: arguments to record it at.
    """
    recorded = record_function(function, *examples)
    if not isinstance(recorded, fx.GraphModule):
        return recorded
    overwritten = _overwritten(recorded.graph)
    known: dict[fx.Node, Any] = {}
    first: dict[tuple, fx.Node] = {}
    for node in list(recorded.graph.nodes):
        if node in overwritten or any(part in overwritten for part in node.all_input_nodes):
            continue
        if node.op == "get_attr":
            known[node] = _attribute(recorded, node)
        elif node.op == "call_function" and all(part in known for part in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
        elif node.op == "call_function":
            same = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
            if same is not node:
                node.replace_all_uses_with(same)
    for number, (node, value) in enumerate(known.items()):
        if node.op == "call_function" and isinstance(value, Tensor):
            recorded.register_buffer(f"_known_{number}", value)
            with recorded.graph.inserting_before(node):
                node.replace_all_uses_with(recorded.graph.get_attr(f"_known_{number}"))
    recorded.graph.eliminate_dead_code()
    used = {node.target for node in recorded.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in recorded.named_buffers() if name.startswith("_known_") and name not in used]:
        delattr(recorded, name)
    recorded.recompile()
    return recorded.forward  # calls of a module would count among those of a guide


def _overwritten(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory an operation of the graph overwrites, or belongs to it."""
    owner: dict[fx.Node, fx.Node] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        owner[node] = owner[inputs[0]] if inputs and shares_memory(node.target) else node
        if isinstance(node.target, OPERATION):
            for position, name in written_arguments(node.target):
                part = node.args[position] if position < len(node.args) else node.kwargs[name]
                written |= {owner[part], owner[node]}
    return {node for node, of in owner.items() if of in written}


def _attribute(module: fx.GraphModule, node: fx.Node) -> object:
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value
