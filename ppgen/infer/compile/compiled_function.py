"""From a recording to a function that repeats the step: random draws, the compiled graph, then fused optimizers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ppgen.infer.compile.building import Build, CompiledGraph
from ppgen.infer.compile.cuda_graph import CudaGraphRunner
from ppgen.infer.compile.fused_optimizer import FusedUpdate, extract_fused_updates
from ppgen.infer.compile.guarded_writes import FINITE, guard_writes
from ppgen.infer.compile.portable_graph import lift_constants
from ppgen.infer.compile.random_inputs import extract_draws
from ppgen.infer.compile.recording import Recording

__all__ = ["CompiledFunction", "FinishedStep", "finish_recording"]


@dataclass
class FinishedStep:
    """A recorded step, to be compiled.

    Attributes:
        build: compiles its graph.
        inputs: the tensors that the step reads besides its arguments.
        draws: make its random numbers, which are inputs of the graph.
        fused_updates: the fused optimizers, which run on the results of the graph.
        names: the names of its outputs.
        finite: the position among them of the flag without which nothing is overwritten, if there is one. Only fused
            optimizers wait for it, which run on a CPU.
    """

    build: Build
    inputs: list[Tensor]
    draws: list[Callable[[], Tensor]]
    fused_updates: list[FusedUpdate]
    names: list[str]
    finite: int | None


class CompiledFunction:
    """A compiled step.

    Args:
        step: what was compiled.
        graph: the compiled function of all inputs.
        arguments: how many of them are arguments, which differ from call to call.
        cuda_graph: whether to replay the graph as a CUDA graph, which has not been tried on a GPU.
    """

    def __init__(self, step: FinishedStep, graph: CompiledGraph, arguments: int, *, cuda_graph: bool = False) -> None:
        self.step = step
        self.inputs, self.draws, self.names = step.inputs, step.draws, step.names
        if cuda_graph:
            graph = CudaGraphRunner(graph, range(arguments, arguments + len(self.inputs)))
        self.graph = graph

    def __call__(self, arguments: list[Tensor]) -> dict[str, Tensor]:
        """Takes one step and returns its outputs by name."""
        results = self.graph([*arguments, *self.inputs, *[draw() for draw in self.draws]])
        step = self.step
        if step.fused_updates and (step.finite is None or results[step.finite]):
            with torch.no_grad():
                for update in step.fused_updates:
                    update(results[len(self.names) :])
        return dict(zip(self.names, results, strict=not step.fused_updates))


def finish_recording(recording: Recording, values: dict[str, Tensor]) -> FinishedStep:
    """Turns a recorded step into a graph to compile, with all that runs outside of it.

    Args:
        recording: the step. Its graph is changed.
        values: the outputs of the recorded run, by name.
    """
    outputs = [recording.node(value) for value in values.values()]
    gradients, fused_updates = extract_fused_updates(recording)
    outputs += gradients
    draws = extract_draws(recording)
    finite = list(values).index(FINITE) if FINITE in values else None
    if finite is not None:
        guard_writes(recording, outputs[finite])
    recording.graph.output(outputs)
    module = fx.GraphModule(recording.root, recording.graph)
    inputs = [*recording.inputs[recording.num_arguments :], *lift_constants(module, len(draws))]
    signature = "\n".join([*recording.signature, *(node.name for node in outputs), str(finite)])
    build = Build(module, len(draws), signature)
    return FinishedStep(build, inputs, draws, fused_updates, list(values), finite)
