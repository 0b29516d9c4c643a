"""Recorded functions without what they compute twice, or in every call though it depends on no argument."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ppgen.utils.torch_private import record_function, written_arguments

__all__ = ["record_simplified"]


def record_simplified(function: Callable, *examples: Tensor) -> Callable:
    """Records a function as `record_function` does, and simplifies the graph.

    Operations on constants are done once, equal operations on equal arguments too, and those without effect never. A
    graph that overwrites a tensor stays as it is recorded.

    Args:
        function: a function of tensors that does the same operations in every call, without random numbers.
        examples: arguments to record it at.
    """
    recorded = record_function(function, *examples)
    if not isinstance(recorded, fx.GraphModule):
        return recorded
    operations = [node for node in recorded.graph.nodes if node.op == "call_function"]
    if any(isinstance(node.target, torch._ops.OpOverload) and written_arguments(node.target) for node in operations):
        return recorded
    known: dict[fx.Node, Any] = {
        node: _attribute(recorded, node) for node in recorded.graph.nodes if node.op == "get_attr"
    }
    first: dict[tuple, fx.Node] = {}
    for node in operations:
        if all(part in known for part in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
            continue
        same = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
    for number, node in enumerate(operations):
        if node in known and isinstance(known[node], Tensor):
            recorded.register_buffer(f"_known_{number}", known[node])
            with recorded.graph.inserting_before(node):
                node.replace_all_uses_with(recorded.graph.get_attr(f"_known_{number}"))
    recorded.graph.eliminate_dead_code()
    for name in [name for name, _ in recorded.named_buffers() if name.startswith("_known_")]:
        if not any(node.target == name for node in recorded.graph.nodes):
            delattr(recorded, name)
    recorded.recompile()
    return recorded.forward  # calls of a module would count among those of a guide


def _attribute(module: fx.GraphModule, node: fx.Node) -> object:
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value
