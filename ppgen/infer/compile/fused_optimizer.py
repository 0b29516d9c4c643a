"""Fused optimizers run after the graph: one kernel for all parameters, in place of compiled code for each of them.

Torch's fused optimizers are single operations on lists of tensors. If such an operation is the last thing that a step
does, it is removed from the graph, which then returns the gradients. There is less to compile.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from ppgen.infer.compile.recording import Recording
from ppgen.utils.torch_private import FUSED_OPTIMIZERS

__all__ = ["FusedUpdate", "extract_fused_updates"]

FusedUpdate = Callable[[Sequence[Tensor]], None]


def extract_fused_updates(recording: Recording) -> tuple[list[fx.Node], list[FusedUpdate]]:
    """Removes the fused operations that no other operation follows from a recording's graph.

    Args:
        recording: the step; its graph is changed.

    Returns:
        The nodes whose values the fused operations need, and functions that run them on these values.
    """
    inputs = dict(zip((n for n in recording.graph.nodes if n.op == "placeholder"), recording.inputs, strict=True))
    needed: list[fx.Node] = []
    updates: list[FusedUpdate] = []
    read_later: set[fx.Node] = set()
    for node in reversed(recording.graph.nodes):
        fused = getattr(node.target, "overloadpacket", None) in FUSED_OPTIMIZERS
        if fused and read_later.isdisjoint(node.all_input_nodes):
            computed = [source for source in node.all_input_nodes if source not in inputs]
            positions = {source: _Result(len(needed) + i) for i, source in enumerate(computed)}
            needed += computed
            updates.append(_update(node, inputs | positions))
            recording.graph.erase_node(node)
        else:
            read_later.update(node.all_input_nodes)
    return needed, updates


class _Result(int):
    """The position of a tensor among the graph's results."""


def _update(node: fx.Node, values: dict[fx.Node, Any]) -> FusedUpdate:
    func: Any = node.target
    mapped: Any = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    args, kwargs = mapped
    lists = [isinstance(arg, list | tuple) and any(isinstance(part, _Result) for part in arg) for arg in args]

    def run(results: Sequence[Tensor]) -> None:
        filled = [
            [results[part] if isinstance(part, _Result) else part for part in arg] if has_results else arg
            for arg, has_results in zip(args, lists, strict=True)
        ]
        func(*filled, **kwargs)

    return run
