"""The optimizer's own kernel after a graph has run: one call for all parameters, in place of code for each of them.

Torch's fused optimizers are single operations on lists of tensors. Recorded as the last thing that a step does, such an
operation leaves the graph, which then gives out the gradients: there is less to compile.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ppgen.infer.compile.recording import Recording

__all__ = ["step_outside"]

aten = torch.ops.aten
FUSED = (aten._fused_adam_, aten._fused_adamw_, aten._fused_sgd_, aten._fused_adagrad_)

Tail = Callable[[Sequence[Tensor]], None]


def step_outside(recording: Recording) -> tuple[list[fx.Node], list[Tail]]:
    """Takes the fused operations that nothing comes after out of a recording's graph.

    Returns:
        the nodes whose values they need from the graph, and what runs them on these values.
    """
    inputs = dict(zip((n for n in recording.graph.nodes if n.op == "placeholder"), recording.inputs, strict=True))
    needed: list[fx.Node] = []
    tails: list[Tail] = []
    later: set[fx.Node] = set()  # what the operations after this one read
    for node in reversed(recording.graph.nodes):
        fused = isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in FUSED
        if fused and later.isdisjoint(node.all_input_nodes):
            of_graph = [source for source in node.all_input_nodes if source not in inputs]
            places = {source: len(needed) + i for i, source in enumerate(of_graph)}
            needed += of_graph
            known = inputs | {source: _Result(place) for source, place in places.items()}
            tails.append(_tail(node, known))
            recording.graph.erase_node(node)
        else:
            later.update(node.all_input_nodes)
    return needed, tails


class _Result(int):
    """The place of a tensor among the graph's results."""


def _tail(node: fx.Node, known: dict[fx.Node, Any]) -> Tail:
    func: Any = node.target
    mapped: Any = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    args, kwargs = mapped
    lists = [isinstance(arg, list | tuple) and any(isinstance(part, _Result) for part in arg) for arg in args]

    def run(results: Sequence[Tensor]) -> None:
        given = [
            [results[part] if isinstance(part, _Result) else part for part in arg] if of_results else arg
            for arg, of_results in zip(args, lists, strict=True)
        ]
        func(*given, **kwargs)

    return run
