"""Whether a compiled step is still valid.

A compiled step reads the values of tensors in every call, but all else is fixed when it is recorded: which tensors it
reads and their shapes, the Python values that decided what it did, the optimizer's state, and the settings of torch and
Pyro. A `Guard` keeps those values and compares them before each step, at little cost.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from itertools import chain
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.python_values import LARGEST_CONTAINER, MISSING, PythonValues, held
from ppgen.infer.compile.recording import Recording, Untraceable
from ppgen.utils.torch_private import hooks, num_dispatch_modes, num_function_modes, tensor_guard

__all__ = ["Guard", "check_environment"]


def environment() -> tuple:
    """The settings of torch and Pyro that decide what a step does."""
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_anomaly_enabled(),
        num_function_modes(),
        num_dispatch_modes(),
        len(_PYRO_STACK),
    )


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
        parameters: dict[int, Tensor] = {id(p): p for optimizer in optimizers for p in optimizer.parameters.values()}
        parameters |= {id(tensor): tensor for tensor in inputs if isinstance(tensor, nn.Parameter)}
        self._parameters = list(parameters.values())
        self._hooks = hooks(self._parameters)
        assert recording.python_values is not None
        self._python_values = recording.python_values
        _add_optimizers(self._python_values, optimizers)
        _add_parameter_store(self._python_values, inputs)
        self._python_values.read()
        self._comparison = Comparison(self._python_values)
        self._static_values, self._static = static_values, static_values()

    def change(self) -> str | None:
        """What is not as it was, in words; None if a compiled step is still valid."""
        if environment() != self._environment:
            return "a setting of torch, or a handler around the step"
        if not self._tensors_fit():
            return "the type, shape or gradient flag of a tensor, or autocast"
        if hooks(self._parameters) != self._hooks:
            return "a hook of a parameter"
        if not self._comparison.holds():
            if (label := self._python_values.changed()) is not None:
                return label
            self._comparison = Comparison(self._python_values)  # other objects with equal values
        return None if self._static_values() == self._static else "an option of the loss"


class Comparison:
    """Compares many Python values with the current ones, in few calls from Python.

    Values are compared by ``==``, which takes objects that are the same for equal without asking them, and tells other
    tensors of one element by their value: parameters of one element are therefore compared by identity as well.

    Args:
        values: the places and containers to compare.
    """

    def __init__(self, values: PythonValues) -> None:
        by_owner: dict[int, tuple[Any, dict[str, Any]]] = {}
        for place in values.places.values():
            by_owner.setdefault(id(place.owner), (place.owner, {}))[1][place.key] = place.read()
        self._getters: list[tuple[Callable, Any]] = []
        self._sized: list[Any] = []
        for owner, entries in by_owner.values():
            present = [key for key, value in entries.items() if value is not MISSING]
            if present:
                self._getters.append((_getter(owner)(*present), owner))
            if len(present) < len(entries) and isinstance(owner, Mapping):
                self._sized.append(owner)  # a name that is absent can only be added
        containers = [content.owner for content in values.containers.values()]
        self._arrays = [c for c in containers if isinstance(c, np.ndarray)]
        self._containers = [c for c in containers if not isinstance(c, np.ndarray) and len(c) <= LARGEST_CONTAINER]
        self._sized += [c for c in containers if not isinstance(c, np.ndarray) and len(c) > LARGEST_CONTAINER]
        self._scalars = [
            (operator.itemgetter(*keys, keys[0]), c)
            for c in self._containers
            if isinstance(c, dict) and (keys := [key for key, part in c.items() if _is_scalar_parameter(part)])
        ]
        self._values = [get(owner) for get, owner in self._getters]
        self._contents = list(map(copy, self._containers))
        self._sizes = list(map(len, self._sized))
        self._parameters = [part for get, owner in self._scalars for part in get(owner)]
        self._held = list(map(held, self._arrays))

    def holds(self) -> bool:
        """Whether all values are as they were, or equal: then a value of another type counts as equal."""
        try:
            return (
                [get(owner) for get, owner in self._getters] == self._values
                and self._containers == self._contents
                and list(map(len, self._sized)) == self._sizes
                and all(map(operator.is_, chain(*[get(owner) for get, owner in self._scalars]), self._parameters))
                and (not self._arrays or list(map(held, self._arrays)) == self._held)
            )
        except (LookupError, AttributeError, ValueError, RuntimeError):  # a name is gone; tensors have no bool(==)
            return False


def _is_scalar_parameter(part: Any) -> bool:
    return isinstance(part, nn.Parameter) and part.numel() == 1


def _getter(owner: Any) -> Callable:
    return operator.itemgetter if isinstance(owner, Mapping) else operator.attrgetter


def _add_optimizers(values: PythonValues, optimizers: Sequence[RecordableOptimizer]) -> None:
    """Adds the state of the optimizers, which `load_state_dict` replaces, and their options."""
    for optimizer in optimizers:
        torch_optimizer = optimizer.torch_optimizer
        assert torch_optimizer is not None
        values.add_place(vars(torch_optimizer), "state", "the optimizer's state")
        values.add_container(torch_optimizer.param_groups, "the parameter groups of the optimizer")
        for container in (torch_optimizer.state, *torch_optimizer.state.values()):
            values.add_container(container, "the optimizer's state")
        for group, key, _ in optimizer.learning_rates.settings():
            values.add_place(group, key, f"{key} of the optimizer")


def _add_parameter_store(values: PythonValues, inputs: Sequence[Tensor]) -> None:
    """Adds the parameters in the store that the step reads; clearing the store replaces its dictionary."""
    store, ids = pyro.get_param_store(), set(map(id, inputs))
    for name, value in store._params.items():
        if id(value) in ids:
            values.add_place(vars(store), "_params", "the parameter store")
            values.add_place(store._params, name, f"the parameter {name}")
