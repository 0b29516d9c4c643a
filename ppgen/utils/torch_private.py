"""The private interfaces of torch that ppgen relies on, and what happens without them.

A private name may disappear in any release of torch. Every one that ppgen uses stands here, or in
``ppgen/infer/compile/inductor.py``, which calls torch's compiler. If one is missing, steps run eagerly and one warning
says so; nothing fails. ``docs/private_torch.md`` lists all of them, and a test compares that table with the sources.

    torch.fx.experimental.proxy_tensor.make_fx          records a function as a graph; without it, Python runs
    torch.utils._python_dispatch.TorchDispatchMode      sees every operation of a step; without it, steps stay eager
    torch._ops.OpOverload._schema                       tells what an operation overwrites; without it, steps stay eager
    torch.ops.aten._fused_*_                            fused optimizer kernels; a missing one is not treated specially
    torch.distributions.Distribution._validate_args     whether distributions validate; without it, `__debug__` tells
    torch._C._dynamo.guards.TensorGuards                compares types and shapes of tensors, fast; without it, Python
    torch._C._len_torch_function_stack, ._len_torch_dispatch_stack   how many modes are on; without them, 0
    torch.overrides._get_current_function_mode_stack    which function modes are on; without it, their number counts
    torch.nn.modules.module._global_*, torch.optim.optimizer._global_*   hooks of all modules; without them, none
    nn.Module._parameters, ._buffers, ._modules         a module's parts, which the guard of a compiled step compares
    torch._C._aoti, torch._C._dynamo.guards             pass tensors to compiled libraries; without them, eager steps
    torch.Tensor._backward_hooks                        the hooks of a parameter; without it, they are taken for none
"""

import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen.utils.user_warnings import warn_user

try:
    from torch.fx.experimental.proxy_tensor import make_fx
except ImportError:
    make_fx = None  # type: ignore[assignment]
try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None  # type: ignore[assignment, misc]
try:
    from torch._C import _len_torch_function_stack as num_function_modes
except ImportError:
    num_function_modes = int
try:
    from torch.overrides import _get_current_function_mode_stack as function_modes
except ImportError:
    function_modes = list
try:
    from torch._C import _len_torch_dispatch_stack as num_dispatch_modes
except ImportError:
    num_dispatch_modes = int
try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:

    class TorchDispatchMode:  # type: ignore[no-redef]
        """Stands in for a missing dispatch mode; it can be subclassed, but not used."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise MissingTorchInterface("torch.utils._python_dispatch.TorchDispatchMode")


__all__ = [
    "FUSED_OPTIMIZERS",
    "GLOBAL_HOOKS",
    "MODULE_PARTS",
    "MissingTorchInterface",
    "TorchDispatchMode",
    "distributions_validate",
    "extension_function",
    "function_modes",
    "hooks",
    "num_dispatch_modes",
    "num_function_modes",
    "record_function",
    "shares_memory",
    "tensor_guard",
    "warn_missing",
    "without_validation",
    "written_arguments",
]

FUSED_OPTIMIZERS = tuple(
    getattr(torch.ops.aten, name)
    for name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_")
    if hasattr(torch.ops.aten, name)
)
GLOBAL_HOOKS = [
    found
    for module in ("torch.nn.modules.module", "torch.optim.optimizer")
    for name, found in vars(sys.modules[module]).items()
    if name.startswith("_global_") and isinstance(found, dict)
]
MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_HOOKS = attrgetter("_backward_hooks") if hasattr(Tensor, "_backward_hooks") else type(None)
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
def extension_function(path: str | os.PathLike) -> Callable[[list[Tensor]], list[Tensor]]:
    """The function of a library that torch's inductor has compiled with a wrapper in C++.

    Args:
        path: the library.

    Returns:
        a function of tensors, to be called without gradients.

    Raises:
        MissingTorchInterface: if torch lacks what passes tensors to the library.
    """
    try:
        from torch._C import _aoti
        from torch._C._dynamo.guards import _torchinductor_pyobject_tensor_data_ptr as address  # type: ignore[attr-defined]

        handles = _aoti.unsafe_alloc_void_ptrs_from_tensors
        tensors = _aoti.alloc_tensors_by_stealing_from_void_ptrs
    except (ImportError, AttributeError) as error:
        raise MissingTorchInterface(str(error)) from error
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(address)  # the library reads it while it is loaded
    spec = spec_from_file_location("inductor_entry_cpp", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    entry = module.inductor_entry_cpp
    return lambda inputs: tensors(entry(handles(inputs)))


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


def shares_memory(op: Any) -> bool:
    """Whether the result of an operation may be a view of its first tensor; True for what is not an operation of torch.

    Args:
        op: an operation such as ``torch.ops.aten.view.default``.
    """
    schema = getattr(op, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def tensor_guard(tensors: Sequence[Tensor]) -> Callable[[], bool]:
    """Returns a function that tells whether tensors have the properties that they have now.

    These are type, device, shape, strides and gradient flag, and whether autocast or inference mode applies to them.

    Args:
        tensors: the tensors, which are kept alive.
    """
    try:
        guards = TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],  # type: ignore[misc]
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],  # type: ignore[misc]
        )
        if not tensors or guards.check(*tensors):
            return partial(guards.check, *tensors)
    except (TypeError, RuntimeError):
        pass
    before = _properties(tensors)
    return lambda: _properties(tensors) == before


def _properties(tensors: Sequence[Tensor]) -> list[Any]:
    types = {tensor.device.type for tensor in tensors}
    modes = [torch.is_inference_mode_enabled(), *(torch.is_autocast_enabled(kind) for kind in sorted(types))]
    return modes + [(t.dtype, t.device, t.shape, t.stride(), t.requires_grad) for t in tensors]


def hooks(tensors: Sequence[Tensor]) -> list[Any]:
    """The hooks of each tensor, or None for one without hooks."""
    return list(map(_HOOKS, tensors))


def distributions_validate(distribution: Any = Distribution) -> bool:
    """Whether torch's distributions, or a given one, check their arguments at present.

    Args:
        distribution: a distribution; all of them if left out.
    """
    return getattr(distribution, "_validate_args", __debug__)


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
