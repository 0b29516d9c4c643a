"""The tensors that Pyro programs own: parameters that train, buffers that move with them.

Pyro hands out a parameter by name, so that two modules of one name share a value and a frozen one is thawed. Here a
parameter is the leaf tensor itself: all leaves that a program uses are found by running it, and frozen ones stay.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppgen.draws import Draws, Program

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
        value, initial = msg["value"], _initial(msg)
        if initial is not None and "$$$" in msg["name"]:
            leaf = initial  # pyro.module: the network computes with its own tensor, whatever the store holds
        else:
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        self._add(msg["name"], leaf)

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
            stale = (
                name.startswith(prefix)
                if prefix
                else name in own and store[name].unconstrained() is not own[name]
            )
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


class Evaluation:
    """Runs every nn.Module inside ``with`` in eval mode, whoever calls it, and notes it: `modules`, in order.

    Programs that are functions do not say which networks they hold; this finds them by running.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    def __enter__(self) -> "Evaluation":
        self._seen: set[int] = set()
        self._training: list[nn.Module] = []
        self._handle = nn.modules.module.register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()
        for module in self._training:
            module.training = True

    def _note(self, module: nn.Module, inputs: Any) -> None:
        if id(module) not in self._seen:
            self._seen.add(id(module))
            self.modules.append(module)
        if module.training:
            self._training.append(module)
            module.training = False


@dataclass
class State:
    """What two programs hold: trainable `leaves`, `buffers` (batch norm's moments, say) and the `modules` that ran."""

    leaves: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: list[nn.Module]

    @classmethod
    def of(cls, model: Program, guide: Program, args: tuple, kwargs: dict | None = None) -> "State":
        """Finds it by one run of the programs, which leaves random numbers and modes as they were."""
        tell_apart(model, guide)
        with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
            set_up(guide, args, kwargs or {})
            with Evaluation() as run, Parameters() as used:
                Draws(model, guide, args, kwargs).encoded  # noqa: B018  made for what it touches
        modules = [m for m in run.modules if not isinstance(m, AutoGuide)]
        buffers = {
            f"buffers.{i}.{name}": buffer
            for i, module in enumerate(modules)
            for name, buffer in module.named_buffers(recurse=False)
        }
        return cls(used.leaves, buffers, modules)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.leaves | self.buffers

    def restart(self, start: dict[str, Tensor], spread: float = 2.0) -> None:
        """A new start, in place: layers draw their weights again, every other leaf moves by U(-spread, spread).

        The uniform move, in unconstrained space, is Stan's default start (reference manual, "Initialization").
        """
        restore(self.tensors, start)
        renewed: set[int] = set()
        for module in self.modules:
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                renewed |= {id(p) for p in module.parameters()}
        with torch.no_grad():
            for leaf in self.leaves.values():
                if id(leaf) not in renewed:
                    leaf.add_(torch.empty_like(leaf).uniform_(-spread, spread))


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
            raise ValueError(
                f"{name}: expected shape {tuple(tensor.shape)}, the stored one is {tuple(values[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
