"""A compiled step that is not taken: where its loss or a gradient is not finite, what it would overwrite stays.

An eager step decides by an ``if``. A graph cannot, but each of its writes can choose,

    input <- where(finite, new value, old value),

which inductor computes in the loop that writes the new value anyway.
"""

import torch
from torch import fx

from ppgen.infer.compile.recording import Recording

__all__ = ["FINITE", "guard_writes"]

FINITE = "the step is finite"  # the key of the flag, a boolean scalar, among the values that a step returns

aten = torch.ops.aten


def guard_writes(recording: Recording, finite: fx.Node) -> None:
    """Lets a recorded step overwrite its inputs only where it is finite.

    Args:
        recording: the step, after other operations were taken out of its graph, which is changed.
        finite: the node of the flag.
    """
    graph, present = recording.graph, set(recording.graph.nodes)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = dict(zip(map(id, recording.inputs), placeholders, strict=False))  # random numbers follow the inputs
    written = [id(tensor) for tensor, _ in recording.overwritten]
    guarded = [inputs[key] for key in written if not present.isdisjoint(recording.writers[key])]
    with graph.inserting_after(placeholders[-1]):
        old = [graph.call_function(aten.clone.default, (tensor,)) for tensor in guarded]
    for tensor, value in zip(guarded, old, strict=True):
        new = graph.call_function(aten.where.self, (finite, tensor, value))
        graph.call_function(aten.copy_.default, (tensor, new))
