"""Whether a compiled step is still valid.

A compiled step reads the values of tensors in every call, but all else is fixed when it is recorded: which parameters
require gradients, which tensors the modules hold, training modes, the options of the optimizers. A `Guard` stores those
values and compares them before each step, at little cost.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.recording import Recording
from ppgen.utils.torch_private import own_parts

__all__ = ["Guard"]


class Guard:
    """Compares what a recorded step depends on, other than values of tensors, with the values when it was recorded.

    Args:
        recording: the recorded step.
        optimizers: whose parameters it updates.
        static_values: returns all else, not a tensor, that the step depends on; compared by ``==``.
    """

    def __init__(
        self, recording: Recording, optimizers: Sequence[RecordableOptimizer], static_values: Callable[[], Any]
    ) -> None:
        inputs = set(map(id, recording.inputs))
        self._store = pyro.get_param_store()  # clearing it replaces its dictionary
        self._named = [(name, value) for name, value in self._store._params.items() if id(value) in inputs]
        parameters: dict[int, Tensor] = {id(p): p for optimizer in optimizers for p in optimizer.parameters.values()}
        parameters |= {id(tensor): tensor for tensor in recording.inputs if isinstance(tensor, nn.Parameter)}
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
        parts = {id(part): part for module in recording.modules.values() for part in module.modules()}
        used = [part for key, part in parts.items() if key in recording.modules or inputs & set(own_parts(part))]
        self._modules = [(module, module.training, own_parts(module)) for module in used]
        self._structures: list[tuple[Any, Any]] = [
            (module, module.structure) for module in recording.modules.values() if hasattr(module, "structure")
        ]
        self._learning_rates = [(optimizer, optimizer.learning_rates) for optimizer in optimizers]
        self._settings = [setting for optimizer in optimizers for setting in optimizer.learning_rates.settings()]
        self._static_values, self._static = static_values, static_values()

    def holds(self) -> bool:
        """Whether all is as it was. The loops cost less than all() of a generator, and run before every step."""
        for parameter, flag in self._requires_grad:
            if parameter.requires_grad is not flag:
                return False
        for name, value in self._named:
            if self._store._params.get(name) is not value:
                return False
        for module, training, parts in self._modules:
            if module.training is not training or own_parts(module) != parts:
                return False
        for module, structure in self._structures:
            if module.structure != structure:
                return False
        for optimizer, learning_rates in self._learning_rates:
            if optimizer.learning_rates is not learning_rates:
                return False
        for group, key, setting in self._settings:
            if group.get(key) != setting:
                return False
        return self._static_values() == self._static
