"""The tensors of Pyro programs: parameters, which are trained, and buffers, which are updated along with them.

Pyro finds a parameter by its name in a global store, so that two modules of one name share a value, and a frozen
parameter is unfrozen. Here a parameter is the leaf tensor itself: running the programs finds all leaf tensors that they
use, and frozen ones stay frozen.
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

from ppgen.tracing.given_rows import replaced_rows
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import Program
from ppgen.tracing.traces import Traces
from ppgen.utils.user_warnings import warn_user

__all__ = [
    "CRITIC",
    "CollectParameters",
    "EvalMode",
    "ProgramState",
    "check_rows",
    "owning_module",
    "restore",
    "separate_names",
    "setup_programs",
    "snapshot",
    "unique_name",
]

Message = dict[str, Any]

CRITIC = "critic "  # the prefix of the names of critics' weights


class CollectParameters(Messenger):
    """Collects the parameters of the programs that run inside ``with``.

    Frozen parameters are collected too and stay frozen. Two parameters of one name are called ``w`` and ``w#2``.

    Attributes:
        parameters: the unconstrained leaf tensors by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, Tensor] = {}
        self._seen: set[int] = set()

    def _pyro_param(self, msg: Message) -> None:
        initial = _initial(msg)
        if initial is not None and not initial.requires_grad:
            msg["value"], msg["done"] = initial, True  # Pyro's store would set requires_grad

    def _pyro_post_param(self, msg: Message) -> None:
        value, initial = msg["value"], _initial(msg)
        if initial is not None and "$$$" in msg["name"]:
            leaf = initial  # from pyro.module: the network computes with its own tensor, even if the store has another
        else:
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        self._add(msg["name"], leaf)

    def _add(self, name: str, leaf: Tensor) -> None:
        if not leaf.is_leaf or id(leaf) in self._seen:
            return
        self._seen.add(id(leaf))
        same = self.parameters.get(name)
        if same is None or same.data_ptr() != leaf.data_ptr():
            name = unique_name(name, self.parameters)
        # else Pyro has wrapped a tensor of a lazy autoguide as an nn.Parameter since it was collected
        self.parameters[name] = leaf


def unique_name(name: str, names: Container[str]) -> str:
    """The name, or the first of ``name#2``, ``name#3`` ... that is not among `names`."""
    unique, count = name, 2
    while unique in names:
        unique, count = f"{name}#{count}", count + 1
    return unique


def _initial(msg: Message) -> nn.Parameter | None:
    """The nn.Parameter that a pyro.param statement was given, if any."""
    initial = msg["args"][1] if len(msg["args"]) > 1 else None
    return initial if isinstance(initial, nn.Parameter) else None


def setup_programs(model: Program, guide: Program, args: tuple, kwargs: Mapping | None = None) -> None:
    """Prepares two programs to run: lets lazy autoguides create their parameters, and separates parameter names.

    Pyro would create an autoguide's parameters during the first step, after other parameters were collected.

    Args:
        model: the model.
        guide: its guide.
        args: the arguments of both.
        kwargs: their keyword arguments.
    """
    separate_names(model, guide)
    module = owning_module(guide)
    if isinstance(module, AutoGuide) and module.prototype_trace is None:
        with poutine.block():
            for part in list(module.modules()):  # an AutoGuideList comes before its guides
                if isinstance(part, AutoGuide) and part.prototype_trace is None:
                    part._setup_prototype(*args, **(kwargs or {}))


def check_rows(model: Program, guide: Program, args: tuple, kwargs: Mapping | None = None) -> None:
    """Checks that an autoguide keeps the rows that the model gives to its plates. Changes no state.

    A guide of the user's may draw rows and use none of them, if it computes its latents from its arguments.

    Raises:
        ValueError: naming the plates (see `ppgen.tracing.given_rows`).
    """
    if not isinstance(owning_module(guide), AutoGuide):
        return
    with torch.random.fork_rng(), torch.no_grad(), EvalMode(), CollectParameters():
        message = replaced_rows(model, guide, args, kwargs)
    if message:
        raise ValueError(message)


def separate_names(model: Program, guide: Program) -> None:
    """Removes from Pyro's store what other modules left there under the names of these modules.

    Pyro's store goes by name: a module takes over the tensor that an earlier one left there, and if a model and a guide
    have an attribute of the same name, the second takes over the tensor of the first. Entries of other modules are
    therefore removed. A guide that shares names with its model is renamed "guide", unless it has a PyroSample, whose
    site would be renamed too: such a pair shares the parameter, as in Pyro, and a warning says so.

    Args:
        model: the model.
        guide: its guide.
    """
    modules = [m for m in map(owning_module, (model, guide)) if isinstance(m, PyroModule)]
    if len(modules) == 2 and modules[0] is not modules[1] and not modules[1]._pyro_name:
        taken = _named_as_in_store(modules[0])
        shared = [name for name, p in _named_as_in_store(modules[1]).items() if taken.get(name, p) is not p]
        if shared and any(getattr(part, "_pyro_samples", None) for part in modules[1].modules()):
            warn_user(
                f"model and guide both have a parameter {', '.join(map(repr, shared))}, and the guide has a "
                "PyroSample: in Pyro's store these are one parameter; give the guide's attributes other names"
            )
        elif shared:
            for part in modules[1].modules():
                if isinstance(part, PyroModule) and (part is modules[1] or part._pyro_name):
                    part._pyro_name = f"guide.{part._pyro_name}".rstrip(".")
    store = pyro.get_param_store()
    for module in modules:
        own = _named_as_in_store(module)
        lazy = isinstance(module, AutoGuide) and module.prototype_trace is None
        for name, leaf in list(store.named_parameters()):
            if own.get(name, leaf) is not leaf or (lazy and name.startswith(f"{module._pyro_name}.")):
                with suppress(KeyError):  # a tensor of two names, already removed under the other
                    del store[name]


def _named_as_in_store(module: PyroModule) -> dict[str, nn.Parameter]:
    """A module's parameters by their names in Pyro's store."""
    prefix = f"{module._pyro_name}." if module._pyro_name else ""
    return {prefix + name.removesuffix("_unconstrained"): p for name, p in module.named_parameters()}


class EvalMode:
    """Runs every nn.Module inside ``with`` in eval mode, whichever program calls it.

    Programs that are functions do not list their networks; this finds them by running.

    Attributes:
        modules: the modules that ran, in order.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    def __enter__(self) -> "EvalMode":
        self._seen: set[int] = set()
        self._training: list[nn.Module] = []
        self._handle = nn.modules.module.register_module_forward_pre_hook(self._before_forward)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()
        for module in self._training:
            module.training = True

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        if id(module) not in self._seen:
            self._seen.add(id(module))
            self.modules.append(module)
        if module.training:
            self._training.append(module)
            module.training = False


@dataclass
class ProgramState:
    """The tensors of two programs and of the critics of their loss.

    Attributes:
        parameters: the unconstrained leaf tensors by name, frozen ones too.
        buffers: the buffers of the modules by name, such as batch norm's running statistics.
        modules: all modules that ran, with their submodules.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: list[nn.Module]

    @classmethod
    def from_programs(
        cls,
        model: Program,
        guide: Program,
        args: tuple,
        kwargs: Mapping | None = None,
        critics: Mapping[str, nn.Module] | None = None,
    ) -> "ProgramState":
        """Finds the state by running the programs, which changes neither the random state nor training modes.

        Args:
            model: the model.
            guide: its guide.
            args: the arguments of both.
            kwargs: their keyword arguments.
            critics: the critics' networks by name.

        Raises:
            ValueError: if the guide replaces rows that the model gives to a plate.
        """
        critics = critics or {}
        with torch.random.fork_rng(), torch.no_grad(), validation(False):
            setup_programs(model, guide, args, kwargs)
            check_rows(model, guide, args, kwargs)
            with EvalMode() as run, CollectParameters() as used:
                _run(Traces(model, guide, args, kwargs))
            tops = [m for m in (*run.modules, owning_module(model), owning_module(guide)) if m is not None]
            modules = list(dict.fromkeys(part for top in tops for part in top.modules()))
            # pyro.module skips frozen networks; a second run with all unfrozen makes names independent of that
            frozen = [p for m in modules for p in m.parameters(recurse=False) if not p.requires_grad]
            try:
                for parameter in frozen:
                    parameter.requires_grad_(parameter.is_floating_point())
                if frozen:
                    with EvalMode(), CollectParameters() as used:
                        _run(Traces(model, guide, args, kwargs))
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(False)
        buffers = {
            f"buffers.{i}.{name}": buffer
            for i, module in enumerate(modules)
            for name, buffer in module.named_buffers(recurse=False)
        }
        parameters = used.parameters
        for key, critic in critics.items():
            parameters |= {f"{CRITIC}{key}.{name}": parameter for name, parameter in critic.named_parameters()}
            buffers |= {f"{CRITIC}{key}.{name}": buffer for name, buffer in critic.named_buffers()}
            modules += critic.modules()
        return cls(parameters, buffers, modules)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return self.parameters | self.buffers

    def restart(self, initial: dict[str, Tensor], spread: float = 2.0) -> None:
        """Draws new initial values, in place: layers draw their weights again, all else moves by U(-spread, spread).

        The uniform move of unconstrained parameters is Stan's default initialization (Stan reference manual,
        https://mc-stan.org/docs/reference-manual/). A module with a method ``after_restart`` has it called at the end.
        Frozen parameters keep their values, and so do the buffers of frozen layers.

        Args:
            initial: the values of `tensors` from which the other parameters move.
            spread: of the uniform moves.
        """
        restore(self.tensors, initial)
        trained = {id(leaf) for leaf in self.parameters.values() if leaf.requires_grad}
        redrawn: set[int] = set()
        for module in self.modules:
            kind = type(module)
            reset = getattr(kind, "reset_parameters", None) or getattr(kind, "_reset_parameters", None)
            own = {id(p) for p in module.parameters()}
            if callable(reset) and (own & trained or not own):
                reset(_WithoutParametrizations(module) if hasattr(module, "parametrizations") else module)
                redrawn |= own
        with torch.no_grad():
            for leaf in self.parameters.values():
                if leaf.requires_grad and id(leaf) not in redrawn:
                    leaf.add_(torch.empty_like(leaf).uniform_(-spread, spread))
            for module in self.modules:
                if callable(after_restart := getattr(type(module), "after_restart", None)):
                    after_restart(module)
            for name, leaf in self.parameters.items():
                if not leaf.requires_grad:
                    leaf.copy_(initial[name])


def _run(traces: Traces) -> None:
    """Runs both programs."""
    try:
        traces.model_trace  # noqa: B018
    except LookupError:  # a guide that infers nothing, as in adversarial training; a loss that needs one reports it
        traces.generated  # noqa: B018


class _WithoutParametrizations:
    """A layer as it is without parametrizations such as spectral norm: its weights are the original tensors."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        parametrized = getattr(self.layer, "parametrizations", {})
        return parametrized[name].original if name in parametrized else getattr(self.layer, name)


def owning_module(program: Callable) -> nn.Module | None:
    """The module that a program is, or whose method it is, beneath handlers and partials; None for a function."""
    program = inspect.unwrap(program)
    while isinstance(program, partial):  # a handler wraps a program as a partial of (messenger, program)
        handled = len(program.args) > 1 and isinstance(program.args[0], Messenger)
        program = inspect.unwrap(program.args[1] if handled else program.func)
    candidate = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    return candidate if isinstance(candidate, nn.Module) else None


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies of tensors."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Writes values into tensors, in place; nothing is written if they do not match.

    Args:
        tensors: by name.
        values: by the same names, of the same shapes.

    Raises:
        LookupError: if the names differ.
        ValueError: if a shape differs.
    """
    missing, extra = tensors.keys() - values.keys(), values.keys() - tensors.keys()
    if missing or extra:
        raise LookupError(
            f"the programs and the stored state do not match: not stored {sorted(missing)}, not in the programs "
            f"{sorted(extra)}; build the programs as they were when the state was stored"
        )
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise ValueError(
                f"{name}: expected shape {tuple(tensor.shape)}, the stored one is {tuple(values[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
