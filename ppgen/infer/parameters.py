"""The tensors that Pyro programs own: parameters that train, buffers that move with them.

Pyro hands out a parameter by name, so that two modules of one name share a value and a frozen one is thawed. Here a
parameter is the leaf tensor itself: all leaves that a program uses are found by running it, and frozen ones stay.
"""

import inspect
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppgen.tracing.programs import validation
from ppgen.tracing.sites import Program
from ppgen.tracing.traces import Traces

Message = dict[str, Any]

CRITIC = "critic "  # how the names of critics' weights begin


class Parameters(Messenger):
    """Collects the leaves of the programs that run inside: `leaves`, name to unconstrained tensor.

    Frozen leaves are collected too and stay frozen. Two leaves of one name get the names ``w`` and ``w#2``.
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
        if not leaf.is_leaf or id(leaf) in self._seen:
            return
        self._seen.add(id(leaf))
        same = self.leaves.get(name)
        if same is None or same.data_ptr() != leaf.data_ptr():
            name = unused(name, self.leaves)
        # else a lazy autoguide met during its set-up: Pyro wraps the tensor once more as an nn.Parameter
        self.leaves[name] = leaf


def unused(name: str, names: Container[str]) -> str:
    """The name, or the first of ``name#2``, ``name#3`` ... that is not among `names`."""
    unique, count = name, 2
    while unique in names:
        unique, count = f"{name}#{count}", count + 1
    return unique


def _initial(msg: Message) -> nn.Parameter | None:
    given = msg["args"][1] if len(msg["args"]) > 1 else None
    return given if isinstance(given, nn.Parameter) else None


def prepare(model: Program, guide: Program, args: tuple, kwargs: Mapping | None = None) -> None:
    """Makes two programs ready to run: lets lazy autoguides make their parameters, and frees names in Pyro's store.

    Pyro would make an autoguide's parameters during the first step, when the step has already met others.
    """
    tell_apart(model, guide)
    module = owner(guide)
    if isinstance(module, AutoGuide) and module.prototype_trace is None:
        with poutine.block():
            for part in list(module.modules()):  # a list of guides comes before its parts
                if isinstance(part, AutoGuide) and part.prototype_trace is None:
                    part._setup_prototype(*args, **(kwargs or {}))


def tell_apart(model: Program, guide: Program) -> None:
    """Frees PyroModules from what Pyro's store holds under their names for other modules.

    Pyro's store rules by name: a module takes over the tensor that an earlier one left there, and of a model and a
    guide with one attribute name the second takes over the first's. What others left is forgotten; a guide whose
    names the model has too becomes "guide", which sets them apart.
    """
    modules = [m for m in map(owner, (model, guide)) if isinstance(m, PyroModule)]
    if len(modules) == 2 and modules[0] is not modules[1] and not modules[1]._pyro_name:
        taken = _own(modules[0])
        if any(taken.get(name, p) is not p for name, p in _own(modules[1]).items()):
            for part in modules[1].modules():
                if isinstance(part, PyroModule) and (part is modules[1] or part._pyro_name):
                    part._pyro_name = f"guide.{part._pyro_name}".rstrip(".")
    store = pyro.get_param_store()
    for module in modules:
        own = _own(module)
        lazy = isinstance(module, AutoGuide) and module.prototype_trace is None
        for name, leaf in list(store.named_parameters()):
            if own.get(name, leaf) is not leaf or (lazy and name.startswith(f"{module._pyro_name}.")):
                with suppress(KeyError):  # a tensor of two names, already forgotten under the other
                    del store[name]


def _own(module: PyroModule) -> dict[str, nn.Parameter]:
    """A module's parameters by the names that Pyro's store has for them."""
    return {_full_name(module, name): p for name, p in module.named_parameters()}


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
    """What two programs hold: `leaves`, `buffers` (batch norm's moments, say) and the `modules` that ran."""

    leaves: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: list[nn.Module]

    @classmethod
    def of(
        cls,
        model: Program,
        guide: Program,
        args: tuple,
        kwargs: Mapping | None = None,
        critics: Mapping[str, nn.Module] | None = None,
    ) -> "State":
        """Finds it by running the programs, which leaves random numbers and modes as they were.

        Critics, networks by name, belong to it too.
        """
        critics = critics or {}
        with torch.random.fork_rng(), torch.no_grad(), validation(False):
            prepare(model, guide, args, kwargs)
            with Evaluation() as run, Parameters():
                _touch(Traces(model, guide, args, kwargs))
            tops = [m for m in (*run.modules, owner(model), owner(guide)) if m is not None]
            modules = list(dict.fromkeys(part for top in tops for part in top.modules()))
            # once more with frozen networks thawed, which pyro.module would pass over: names must not depend on that
            frozen = [p for m in modules for p in m.parameters(recurse=False) if not p.requires_grad]
            try:
                for parameter in frozen:
                    parameter.requires_grad_(parameter.is_floating_point())
                with Evaluation(), Parameters() as used:
                    _touch(Traces(model, guide, args, kwargs))
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(False)
        buffers = {
            f"buffers.{i}.{name}": buffer
            for i, module in enumerate(modules)
            for name, buffer in module.named_buffers(recurse=False)
        }
        leaves = used.leaves
        for key, critic in critics.items():
            leaves |= {f"{CRITIC}{key}.{name}": parameter for name, parameter in critic.named_parameters()}
            buffers |= {f"{CRITIC}{key}.{name}": buffer for name, buffer in critic.named_buffers()}
            modules += critic.modules()
        return cls(leaves, buffers, modules)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.leaves | self.buffers

    def restart(self, start: dict[str, Tensor], spread: float = 2.0) -> None:
        """A new start, in place: layers draw their weights again, every other leaf moves by U(-spread, spread).

        The uniform move, in unconstrained space, is Stan's default start (reference manual, "Initialization").
        A module with a method ``restarted`` has the last word. Frozen leaves stay, and so do the buffers of a frozen
        layer.
        """
        restore(self.tensors, start)
        trained = {id(leaf) for leaf in self.leaves.values() if leaf.requires_grad}
        renewed: set[int] = set()
        for module in self.modules:
            kind = type(module)
            reset = getattr(kind, "reset_parameters", None) or getattr(kind, "_reset_parameters", None)
            own = {id(p) for p in module.parameters()}
            if callable(reset) and (own & trained or not own):
                reset(_Plain(module) if hasattr(module, "parametrizations") else module)
                renewed |= own
        with torch.no_grad():
            for leaf in self.leaves.values():
                if leaf.requires_grad and id(leaf) not in renewed:
                    leaf.add_(torch.empty_like(leaf).uniform_(-spread, spread))
            for module in self.modules:
                if callable(restarted := getattr(type(module), "restarted", None)):
                    restarted(module)
            for name, leaf in self.leaves.items():
                if not leaf.requires_grad:
                    leaf.copy_(start[name])


def _touch(draws: Traces) -> None:
    """Runs both programs for what they touch."""
    try:
        draws.model_trace  # noqa: B018
    except LookupError:  # a guide that infers nothing, as an adversarial game's; a loss that needs it says so itself
        draws.generated  # noqa: B018


class _Plain:
    """A layer as it would be without parametrizations, such as a spectral norm: their originals are its weights."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        parametrized = getattr(self.layer, "parametrizations", {})
        return parametrized[name].original if name in parametrized else getattr(self.layer, name)


def owner(program: Callable) -> nn.Module | None:
    """The module behind a program: itself, or the one whose method it is, handlers and partials taken off."""
    program = inspect.unwrap(program)
    while isinstance(program, partial):  # a messenger's wrapper is one too, of (messenger, program)
        handled = len(program.args) > 1 and isinstance(program.args[0], Messenger)
        program = inspect.unwrap(program.args[1] if handled else program.func)
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
