"""From a recording to a function that repeats the step: random draws, the compiled graph, then fused optimizers."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from ppgen.infer.compile.cuda_graph import CudaGraphRunner
from ppgen.infer.compile.fused_optimizer import FusedUpdate, extract_fused_updates
from ppgen.infer.compile.guarded_writes import FINITE, guard_writes
from ppgen.infer.compile.random_inputs import extract_draws
from ppgen.infer.compile.recording import Recording
from ppgen.utils.torch_private import MissingTorchInterface

__all__ = ["CompiledFunction", "compile_recording"]

CACHE_SIZE = 64  # compiled graphs that one process keeps

_cache: OrderedDict[str, Callable] = OrderedDict()


@dataclass
class CompiledFunction:
    """A compiled step.

    Attributes:
        graph: the compiled function of all inputs.
        inputs: the tensors that the step reads besides its arguments.
        draws: make its random numbers, which are inputs of the graph.
        fused_updates: the fused optimizers, which run on the results of the graph.
        names: the names of its outputs.
        finite: the position among them of the flag without which nothing is overwritten, if there is one. Only fused
            optimizers wait for it, which run on a CPU.
    """

    graph: Callable[[list[Tensor]], Any]
    inputs: list[Tensor]
    draws: list[Callable[[], Tensor]]
    fused_updates: list[FusedUpdate]
    names: list[str]
    finite: int | None = None

    def __call__(self, arguments: list[Tensor]) -> dict[str, Tensor]:
        """Takes one step and returns its outputs by name."""
        results = self.graph([*arguments, *self.inputs, *[draw() for draw in self.draws]])
        if self.fused_updates and (self.finite is None or results[self.finite]):
            with torch.no_grad():
                for update in self.fused_updates:
                    update(results[len(self.names) :])
        return dict(zip(self.names, results, strict=not self.fused_updates))


def compile_recording(
    recording: Recording, values: dict[str, Tensor], num_arguments: int, cuda_graph: bool = False
) -> CompiledFunction:
    """Compiles a recorded step; a graph that this process has compiled before is used again.

    Args:
        recording: the step. Its graph is changed.
        values: the outputs of the recorded run, by name.
        num_arguments: how many of the inputs are arguments, which differ from call to call.
        cuda_graph: whether to replay the graph as a CUDA graph, which has not been tried on a GPU.

    Raises:
        MissingTorchInterface: if torch lacks a private interface of its compiler.
    """
    try:
        from ppgen.infer.compile.inductor import compile_graph  # late: it takes a second to import
    except (ImportError, AttributeError) as error:
        raise MissingTorchInterface(f"an interface of its compiler ({error})") from error

    outputs = [recording.node(value) for value in values.values()]
    gradients, fused_updates = extract_fused_updates(recording)
    outputs += gradients
    draws = extract_draws(recording)
    finite = list(values).index(FINITE) if FINITE in values else None
    if finite is not None:
        guard_writes(recording, outputs[finite])
    options = str(finite), str(torch.get_num_threads())
    signature = "\n".join([*recording.signature, *(node.name for node in outputs), *options])
    key = sha256(signature.encode()).hexdigest()
    graph = _cache.pop(key, None) or compile_graph(recording, outputs, len(draws))
    _cache[key] = graph
    while len(_cache) > CACHE_SIZE:
        _cache.popitem(last=False)
    if cuda_graph:
        graph = CudaGraphRunner(graph, range(num_arguments, len(recording.inputs)))
    return CompiledFunction(graph, recording.inputs[num_arguments:], draws, fused_updates, list(values), finite)
