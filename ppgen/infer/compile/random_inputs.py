"""Random numbers drawn before a graph runs, in the eager step's order: what is left is arithmetic, free to fuse."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tag, Tensor, fx

from ppgen.infer.compile.recording import Recording

__all__ = ["draw_outside"]


def draw_outside(recording: Recording) -> list[Callable[[], Tensor]]:
    """Turns a recording's random numbers into further inputs of its graph; returns what draws them.

    As many as come before the first from a law that is computed, such as Gamma(a) with a learned a: numbers must come
    off the generator in their old order.
    """
    graph = recording.graph
    draws: list[Callable[[], Tensor]] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or Tag.nondeterministic_seeded not in node.target.tags:
            continue
        if node not in recording.drawable:
            break
        args, kwargs = _arguments(node, recording)
        in_place = node.target._schema.is_mutable
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{len(draws)}")
        held: Any = node.args[0] if in_place else node  # empty(...).normal_() is known by what it fills
        last.meta["like"] = held.meta["like"]
        held.replace_all_uses_with(last, delete_user_cb=lambda user, node=node: user is not node)
        graph.erase_node(node)
        if in_place:  # every time into the same place
            buffer, *rest = args
            draws.append(partial(getattr(buffer, node.target.overloadpacket.__name__), *rest, **kwargs))
        else:
            draws.append(partial(node.target, *args, **kwargs))
    return draws


def _arguments(node: fx.Node, recording: Recording) -> tuple[tuple, dict]:
    return fx.node.map_arg((node.args, node.kwargs), lambda source: _value(source, recording))


def _value(node: fx.Node, recording: Recording) -> Tensor:
    """The value of a node that comes from constants alone; of another, which only lends its shape, an empty tensor."""
    if node.op == "get_attr":
        return recording.root.get_buffer(str(node.target))
    if node in recording.constants:
        args, kwargs = _arguments(node, recording)
        return node.target(*args, **kwargs)  # type: ignore[operator]
    shape, stride, dtype, device = node.meta["like"]
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)
