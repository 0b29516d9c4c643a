"""Random numbers are drawn before the graph runs, in the order of the eager step; the rest is arithmetic to fuse."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tag, Tensor, fx

from ppgen.infer.compile.recording import Recording
from ppgen.utils.torch_private import written_arguments

__all__ = ["extract_draws"]


def extract_draws(recording: Recording) -> list[Callable[[], Tensor]]:
    """Turns the random numbers of a recording into further inputs of its graph.

    This stops at the first draw from a distribution whose parameters are computed, such as Gamma(a) with a learned a,
    since random numbers must leave the generator in their original order.

    Args:
        recording: the step; its graph is changed.

    Returns:
        Functions that draw the new inputs.
    """
    graph = recording.graph
    draws: list[Callable[[], Tensor]] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        if node not in recording.constant_draws:
            break
        args, kwargs = _arguments(node, recording)
        in_place = bool(written_arguments(node.target))
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{len(draws)}")
        drawn: Any = node.args[0] if in_place else node  # empty(...).normal_() is known by the tensor that it fills
        last.meta["like"] = drawn.meta["like"]
        drawn.replace_all_uses_with(last, delete_user_cb=lambda user, node=node: user is not node)
        graph.erase_node(node)
        if in_place:  # every draw fills the same buffer
            buffer, *rest = args
            draws.append(partial(getattr(buffer, node.target.overloadpacket.__name__), *rest, **kwargs))
        else:
            draws.append(partial(node.target, *args, **kwargs))
    return draws


def _arguments(node: fx.Node, recording: Recording) -> tuple[tuple, dict]:
    return fx.node.map_arg((node.args, node.kwargs), lambda source: _value(source, recording))


def _value(node: fx.Node, recording: Recording) -> Tensor:
    """The value of a node computed from constants; for any other, which only gives its shape, an empty tensor."""
    if node.op == "get_attr":
        return recording.root.get_buffer(str(node.target))
    if node in recording.constants:
        args, kwargs = _arguments(node, recording)
        return node.target(*args, **kwargs)  # type: ignore[operator]
    shape, stride, dtype, device = node.meta["like"]
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)
