"""A compiled step on a GPU as one CUDA graph: a single launch in place of one for every kernel."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CudaGraphRunner"]

logger = logging.getLogger("ppgen")


class CudaGraphRunner:
    """Runs a compiled function of tensors once, then captures it as a CUDA graph and replays that.

    A CUDA graph reads and writes fixed addresses. Tensors that differ from call to call are therefore copied to the
    addresses that it reads, and its results are copied before the next replay overwrites them. A function with inputs
    off the GPU, or one that CUDA cannot capture, runs without a graph.

    Args:
        run: the compiled function.
        fixed: the positions of those inputs that are the same tensors in every call.
    """

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]], fixed: range) -> None:
        self.run, self.fixed = run, fixed
        self._warmed_up = self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._addresses: list[int] = []

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Runs the function or replays its graph; returns the function's results."""
        if not self._warmed_up or self._failed or not all(tensor.is_cuda for tensor in tensors):
            self._warmed_up = True
            return self.run(tensors)
        addresses = [tensors[i].data_ptr() for i in self.fixed]
        if self._graph is None or addresses != self._addresses:
            try:
                self._capture(tensors, addresses)
            except RuntimeError as error:
                logger.info("no CUDA graph: %s", error)
                self._failed = True
                return self.run(tensors)
        with torch.no_grad():
            for i, tensor in enumerate(tensors):
                if i not in self.fixed:
                    self._inputs[i].copy_(tensor)
        assert self._graph is not None
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _capture(self, tensors: list[Tensor], addresses: list[int]) -> None:
        """Captures the function without running it."""
        self._inputs = [t if i in self.fixed else t.detach().clone() for i, t in enumerate(tensors)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs = self.run(list(self._inputs))
        self._graph, self._addresses = graph, addresses
