"""The tensors that Pyro programs own: parameters that train, buffers that move with them.

Pyro hands out a parameter by name, so that two modules of one name share a value and a frozen one is thawed. Here a
parameter is the leaf tensor itself: all leaves that a program uses are found by running it, and frozen ones stay.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppgen.draws import Program

Message = dict[str, Any]


class Parameters(Messenger):
    """Collects the trainable leaves of the programs that run inside: `leaves`, name to unconstrained tensor.

    Two leaves of one name get the names ``w`` and ``w#2``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[str, Tensor] = {}
        self._seen: set[int] = set()

    def _pyro_param(self, msg: Message) -> None:
        initial = _initial(msg)
        if initial is not None and not initial.requires_grad:
            msg["value"], msg["done"] = initial, True  # Pyro's store would set requires_grad

    def _pyro_post_param(self, msg: Message) -> None:
        value = msg["value"]
        self._add(msg["name"], value.unconstrained() if hasattr(value, "unconstrained") else value)
        initial = _initial(msg)
        if initial is not None:  # the module computes with its own tensor, whatever the store holds under its name
            self._add(msg["name"], initial)

    def _add(self, name: str, leaf: Tensor) -> None:
        if not leaf.requires_grad or not leaf.is_leaf or id(leaf) in self._seen:
            return
        self._seen.add(id(leaf))
        unique, count = name, 2
        while unique in self.leaves:
            unique, count = f"{name}#{count}", count + 1
        self.leaves[unique] = leaf


def _initial(msg: Message) -> nn.Parameter | None:
    given = msg["args"][1] if len(msg["args"]) > 1 else None
    return given if isinstance(given, nn.Parameter) else None


def tell_apart(model: Program, guide: Program) -> None:
    """Frees PyroModules from what Pyro's store holds under their names for other modules.

    Pyro's store rules by name: a module takes over the tensor that an earlier one left there, and of a model and a
    guide with one attribute name the second takes over the first's. Leftovers are forgotten; a guide whose names the
    model has too becomes "guide", which sets them apart.
    """
    modules = [m for m in map(owner, (model, guide)) if isinstance(m, PyroModule)]
    if len(modules) == 2 and modules[0] is not modules[1]:
        names = [{name for name, _ in m.named_parameters() if not m._pyro_name} for m in modules]
        if names[0] & names[1]:
            root = PyroModule()
            root.guide = modules[1]
    store = pyro.get_param_store()
    for module in modules:
        if isinstance(module, AutoGuide) and module.prototype_trace is None:
            prefix = f"{module._pyro_name}."
            own = {}
        else:
            prefix = None
            own = {_full_name(module, name): p for name, p in module.named_parameters()}
        for name in list(store.keys()):
            stale = name.startswith(prefix) if prefix else name in own and store[name].unconstrained() is not own[name]
            if stale:
                del store[name]


def set_up(guide: Program, args: tuple, kwargs: dict) -> None:
    """Lets a lazy autoguide make its parameters, which Pyro would replace once more during the first step."""
    module = owner(guide)
    if isinstance(module, AutoGuide) and module.prototype_trace is None:
        with poutine.block():
            module._setup_prototype(*args, **kwargs)


def _full_name(module: PyroModule, name: str) -> str:
    name = name.removesuffix("_unconstrained")
    return f"{module._pyro_name}.{name}" if module._pyro_name else name


class Modules:
    """Notes the nn.Modules that run inside ``with``: `found`, in the order of their first call."""

    def __init__(self) -> None:
        self.found: dict[int, nn.Module] = {}

    def __enter__(self) -> "Modules":
        self._handle = nn.modules.module.register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()

    def _note(self, module: nn.Module, inputs: Any) -> None:
        self.found.setdefault(id(module), module)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.found.values())

    def buffers(self) -> dict[str, Tensor]:
        """The modules' own buffers (batch norm's running moments, say), named by the order of their first run."""
        return {
            f"module{i}.{name}": buffer
            for i, module in enumerate(self)
            for name, buffer in module.named_buffers(recurse=False)
        }

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """All of them in eval mode inside, as they were after."""
        training = [m for m in self if m.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


def owner(program: Callable) -> nn.Module | None:
    """The module behind a program: itself, or the one whose method it is."""
    program = inspect.unwrap(program)
    candidate = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    return candidate if isinstance(candidate, nn.Module) else None


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, cut off from the graph."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Writes values into tensors, in place.

    Raises:
        LookupError, ValueError: if a name is missing or a shape differs, before anything is written.
    """
    missing, extra = tensors.keys() - values.keys(), values.keys() - tensors.keys()
    if missing or extra:
        raise LookupError(
            f"the programs and the stored state do not match: not stored {sorted(missing)}, not in the programs "
            f"{sorted(extra)}; build the programs as they were when it was stored"
        )
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise ValueError(f"{name}: expected shape {tuple(tensor.shape)}, the stored one is {tuple(values[name].shape)}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def model_modules(programs: tuple[Program, ...], modules: Modules) -> list[nn.Module]:
    """Every module that belongs to the programs: their owners' and those that ran."""
    found = {id(m): m for program in programs if (top := owner(program)) is not None for m in top.modules()}
    return list((found | modules.found).values())
