"""Whether a compiled step is still valid.

A compiled step reads the values of tensors in every call, but all else is fixed when it is recorded: which tensors it
reads and their shapes, the Python values that decided what it did, the optimizer's state, and the settings of torch and
Pyro. A `Guard` keeps those values and compares them before each step, at little cost.
"""

import sys
from collections.abc import Callable, Sequence
from functools import reduce
from types import ModuleType
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from ppgen.infer.compile.memory import Memory
from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.python_values import PythonValues
from ppgen.infer.compile.recording import Recording, Untraceable
from ppgen.utils.torch_private import (
    GLOBAL_HOOKS,
    function_modes,
    hooks,
    num_dispatch_modes,
    num_function_modes,
    tensor_guard,
)

__all__ = ["Guard", "check_environment"]


def environment() -> tuple:
    """The settings of torch and Pyro that decide what a step does."""
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_anomaly_enabled(),
        num_function_modes() and list(map(_mode, function_modes())),
        num_dispatch_modes(),
        len(_PYRO_STACK),
    )


def _mode(mode: Any) -> Any:
    """A function mode of torch; of torch's own, such as the default device, the type and the device tell them apart."""
    return (type(mode), getattr(mode, "device", None)) if type(mode).__module__.startswith("torch.") else id(mode)


def check_environment() -> None:
    """Checks that nothing outside of the step takes part in it.

    Raises:
        Untraceable: if a handler of Pyro's or torch's is active, which a compiled step would bypass.
    """
    if _PYRO_STACK:
        handler = type(_PYRO_STACK[-1]).__name__
        raise Untraceable(f"the handler {handler} is active around the step; put it around the model or the guide")
    if num_dispatch_modes():
        raise Untraceable("a dispatch mode of torch is active around the step, which would miss its operations")
    if torch.is_anomaly_enabled():
        raise Untraceable("torch.autograd.set_detect_anomaly is on")


class Guard:
    """Compares what a recorded step depends on, other than values of tensors, with the values when it was recorded.

    Args:
        recording: the recorded step.
        optimizers: whose parameters it updates.
        static_values: returns all else, not a tensor, that the step depends on; compared by ``==``.
    """

    def __init__(
        self,
        recording: Recording,
        optimizers: Sequence[RecordableOptimizer],
        static_values: Callable[[], Any],
    ) -> None:
        inputs = recording.inputs[recording.num_arguments :]
        self._environment = environment()
        self._tensors_fit = tensor_guard(inputs)
        self._memory = Memory(recording, {id(t) for optimizer in optimizers for _, t in optimizer.state_tensors()})
        parameters: dict[int, Tensor] = {id(p): p for optimizer in optimizers for p in optimizer.parameters.values()}
        parameters |= {id(tensor): tensor for tensor in inputs if isinstance(tensor, nn.Parameter)}
        self._parameters = list(parameters.values())
        self._hooks = hooks(self._parameters)
        assert recording.python_values is not None
        self._python_values = recording.python_values
        self._python_values.of_library = True
        _add_optimizers(self._python_values, optimizers)
        _add_parameter_store(self._python_values, inputs)
        _add_settings(self._python_values)
        self._python_values.read()
        self._comparison = self._python_values.comparison()
        self._static_values, self._static = static_values, static_values()

    def change(self, arguments: Sequence[Tensor]) -> str | None:
        """What is not as it was, in words; None if a compiled step is still valid.

        Args:
            arguments: the tensors that the step is called with, whose types and shapes are as they were.
        """
        if environment() != self._environment:
            return "a setting of torch, or a handler around the step"
        if not self._tensors_fit():
            return "the type, shape or gradient flag of a tensor, or autocast"
        if hooks(self._parameters) != self._hooks:
            return "a hook of a parameter"
        if not self._memory.separate(arguments):
            return "the memory of a tensor or an argument, which another tensor shares,"
        if not self._comparison.holds():
            if (label := self._python_values.changed()) is not None:
                return label
            self._comparison = self._python_values.comparison()  # other objects with equal values
        return None if self._static_values() == self._static else "an option of the loss"


def _add_optimizers(values: PythonValues, optimizers: Sequence[RecordableOptimizer]) -> None:
    """Adds the state of the optimizers, which `load_state_dict` replaces, their options and their hooks."""
    for optimizer in optimizers:
        torch_optimizer = optimizer.torch_optimizer
        assert torch_optimizer is not None
        own = vars(torch_optimizer)
        values.add_place(vars(optimizer), "torch_optimizer", "the optimizer")
        if isinstance(clip_args := getattr(optimizer.optim, "pt_clip_args", None), dict):
            values.add_container(clip_args, "a bound on gradients")
        values.add_container(own, "an attribute or a method of the optimizer")
        for name, value in own.items():
            if isinstance(value, dict) and name.endswith("_hooks"):
                values.add_container(value, "a hook of the optimizer")
        for container in (torch_optimizer.state, *torch_optimizer.state.values()):
            values.add_container(container, "the optimizer's state")
        values.add_container(torch_optimizer.param_groups, "the parameter groups of the optimizer")
        for group in torch_optimizer.param_groups:
            values.add_container(group["params"], "the parameters of the optimizer")
        for group, key, _ in optimizer.learning_rates.settings():
            values.add_place(group, key, f"{key} of the optimizer")


def _add_parameter_store(values: PythonValues, inputs: Sequence[Tensor]) -> None:
    """Adds the parameters in the store that the step reads; clearing the store replaces its dictionary."""
    store, ids = pyro.get_param_store(), set(map(id, inputs))
    for name, value in store._params.items():
        if id(value) in ids:
            values.add_place(vars(store), "_params", "the parameter store")
            values.add_place(store._params, name, f"the parameter {name}")
            values.add_place(store._constraints, name, f"the constraint of the parameter {name}")


def _add_settings(values: PythonValues) -> None:
    """Adds the settings of Pyro, and the hooks of all modules and optimizers."""
    for container in GLOBAL_HOOKS:
        values.add_container(container, "a hook of all modules or optimizers")
    for alias, (module, name, _) in pyro.settings._REGISTRY.items():
        if not alias.startswith("validate"):  # a step does not validate while it is recorded
            *path, key = name.split(".")
            owner = reduce(getattr, path, sys.modules[module])
            values.add_place(vars(owner) if isinstance(owner, ModuleType) else owner, key, f"Pyro's setting {alias}")
