"""The private interfaces of torch that ppgen relies on, and what happens without them.

A private name may disappear in any release of torch. Every one that ppgen uses stands here, or in
``ppgen/infer/compile/inductor.py``, which calls torch's compiler. If one is missing, steps run eagerly and one warning
says so; nothing fails. ``docs/private_torch.md`` lists all of them, and a test compares that table with the sources.

    torch.fx.experimental.proxy_tensor.make_fx          records a function as a graph; without it, Python runs
    torch.utils._python_dispatch.TorchDispatchMode      sees every operation of a step; without it, steps stay eager
    torch._ops.OpOverload._schema                       tells what an operation overwrites; without it, steps stay eager
    torch.ops.aten._fused_*_                            fused optimizer kernels; a missing one is not treated specially
    nn.Module._parameters, ._buffers, ._modules         a module's own parts, fast; without them, public iterators
    torch.distributions.Distribution._validate_args     whether distributions validate; without it, `__debug__` tells
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.utils.user_warnings import warn_user

try:
    from torch.fx.experimental.proxy_tensor import make_fx
except ImportError:
    make_fx = None  # type: ignore[assignment]
try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:

    class TorchDispatchMode:  # type: ignore[no-redef]
        """Stands in for a missing dispatch mode; it can be subclassed, but not used."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise MissingTorchInterface("torch.utils._python_dispatch.TorchDispatchMode")


__all__ = [
    "FUSED_OPTIMIZERS",
    "MissingTorchInterface",
    "TorchDispatchMode",
    "distributions_validate",
    "own_parts",
    "record_function",
    "warn_missing",
    "without_validation",
    "written_arguments",
]

FUSED_OPTIMIZERS = tuple(
    getattr(torch.ops.aten, name)
    for name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_")
    if hasattr(torch.ops.aten, name)
)
_warned: list[str] = []


class MissingTorchInterface(RuntimeError):
    """This version of torch lacks a private interface.

    Args:
        name: the interface.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"torch {torch.__version__} lacks {name}")


def warn_missing(error: MissingTorchInterface) -> None:
    """Warns that code runs eagerly, once in a process."""
    if not _warned:
        _warned.append(str(error))
        warn_user(f"steps run eagerly: {error}, which ppgen needs to compile or record them")


def record_function(function: Callable, *examples: Tensor) -> Callable:
    """Records the operations of a function, so that later calls run without its Python.

    Values that the function reads are constants of the recording, so they must not depend on its arguments.

    Args:
        function: a function of tensors that does the same operations in every call.
        examples: arguments to record it at.

    Returns:
        The recorded function; where torch has no `make_fx`, the function itself.
    """
    if make_fx is None:
        warn_missing(MissingTorchInterface("torch.fx.experimental.proxy_tensor.make_fx"))
        return function
    constants = "_error_on_data_dependent_ops"  # if False, values that Python reads are constants of the recording
    options: dict[str, Any] = {constants: False} if constants in inspect.signature(make_fx).parameters else {}
    return make_fx(function, **options)(*examples)


@cache
def written_arguments(op: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operation overwrites by its schema, as (position, name).

    Args:
        op: an operation such as ``torch.ops.aten.add_.Tensor``.

    Raises:
        MissingTorchInterface: if operations have no schema.
    """
    try:
        arguments = op._schema.arguments
        return tuple(
            (i, argument.name)
            for i, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
    except AttributeError as error:
        raise MissingTorchInterface("the attribute _schema of operations") from error


def own_parts(module: nn.Module) -> list[int]:
    """The ids of a module's own parameters, buffers and layers, those of its layers left out."""
    try:
        parts = (*module._parameters.values(), *module._buffers.values(), *module._modules.values())
    except AttributeError:
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        return [id(part) for part in (*tensors, *module.children())]
    return [id(part) for part in parts]


def distributions_validate() -> bool:
    """Whether torch's distributions check their arguments at present."""
    return getattr(Distribution, "_validate_args", __debug__)


def without_validation(distribution: Any, replace: Mapping[type, type]) -> Any:
    """A distribution that does not check its values: the same one, or a copy if something changes.

    Args:
        distribution: of torch or Pyro.
        replace: subclasses to use in the place of some classes, also for parts of the distribution.
    """
    parts = {name: part for name, part in vars(distribution).items() if isinstance(part, Distribution)}
    changed = {name: new for name, part in parts.items() if (new := without_validation(part, replace)) is not part}
    kind = replace.get(type(distribution), type(distribution))
    if not changed and kind is type(distribution) and not vars(distribution).get("_validate_args", False):
        return distribution
    result = copy.copy(distribution)
    result.__class__ = kind
    vars(result).update(changed, _validate_args=False)
    return result
