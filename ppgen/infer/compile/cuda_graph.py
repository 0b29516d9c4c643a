"""A compiled step on a GPU as one CUDA graph: a single launch in place of one for every kernel."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Replay"]

logger = logging.getLogger("ppgen")


class Replay:
    """A compiled function of tensors, run once as it is, then captured as a CUDA graph and replayed.

    A graph reads and writes fixed addresses. So tensors that come anew with every call are copied to where it reads,
    and its results are copied out before the next replay overwrites them. A function with inputs off the GPU, or one
    that CUDA cannot capture, runs as it is.

    Args:
        run: the function.
        stay: its inputs that are the same tensors in every call, as a range of positions.
    """

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]], stay: range):
        self.run, self.stay = run, stay
        self._warm = self._plain = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._addresses: list[int] = []

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        if not self._warm or self._plain or not all(tensor.is_cuda for tensor in tensors):
            self._warm = True
            return self.run(tensors)
        addresses = [tensors[i].data_ptr() for i in self.stay]
        if self._graph is None or addresses != self._addresses:
            try:
                self._capture(tensors, addresses)
            except RuntimeError as error:
                logger.info("no CUDA graph: %s", error)
                self._plain = True
                return self.run(tensors)
        with torch.no_grad():
            for i, tensor in enumerate(tensors):
                if i not in self.stay:
                    self._inputs[i].copy_(tensor)
        assert self._graph is not None
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _capture(self, tensors: list[Tensor], addresses: list[int]) -> None:
        """Captures the function; nothing runs yet."""
        self._inputs = [t if i in self.stay else t.detach().clone() for i, t in enumerate(tensors)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs = self.run(list(self._inputs))
        self._graph, self._addresses = graph, addresses
