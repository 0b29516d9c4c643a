"""Running programs, also those that write into their own tensors, under `torch.func.vmap`.

A tensor that is made from a shape alone is shared by all calls that vmap batches. Writing into it fails when the value
differs between calls: a draw (``x.normal_()``), or a value that depends on a latent (``mean[0] = z``). And what is
computed from shared tensors, such as data, has values that Python can read (``tolist``), but not through NumPy.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed
from pyro.ops.special import _SafeLog
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Wishart as TorchWishart
from torch.overrides import TorchFunctionMode

from ppgen.tracing.double_precision import GET_DATA
from ppgen.utils.calling_frame import calling_frame
from ppgen.utils.replacement import Replacement

# constructors of distributions that read values for nothing but checks of them
CHECKS = {kind.__init__.__code__ for kind in (SineSkewed, SineBivariateVonMises, TorchWishart)}
NUMPY_DTYPES = {torch.float32: np.float32, torch.float16: np.float16}  # others are those of Python's numbers

__all__ = ["UnsharedTensors", "permissive_vmap"]


@contextmanager
def permissive_vmap() -> Iterator[None]:
    """A context for functions under vmap that refuses nothing that can be run.

    There are no warnings about operations that vmap runs once for each call, or resizes results of. And
    ``torch.autograd.Function`` may be written in one piece, ``forward(ctx, ...)``, as Pyro's and torch's own are, which
    vmap refuses for the sake of their gradients. Without gradients, only ``forward`` runs; with gradients, those run
    that are known to draw nothing. Other threads are not affected.
    """
    _APPLY.install()
    token = _PERMISSIVE.set(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            warnings.filterwarnings("ignore", "An output with one or more elements was resized", UserWarning)
            yield
    finally:
        _PERMISSIVE.reset(token)
        _APPLY.remove()


class _Discarded:
    """What a Function keeps for its gradient, which nothing reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class _SafeLogInPieces(_SafeLog):
    """Pyro's logarithm with bounded gradients, in the form that vmap differentiates."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


IN_PIECES = {_SafeLog: _SafeLogInPieces}


def _permissive(original: Any) -> Any:
    """``torch.autograd.Function.apply`` under `permissive_vmap`."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if _PERMISSIVE.get() and cls.setup_context is Function.setup_context:  # in one piece
            if not torch.is_grad_enabled():
                return cls.forward(_Discarded(), *args, **kwargs)
            cls = IN_PIECES.get(cls, cls)
        return original.__func__(cls, *args, **kwargs)

    return classmethod(apply)


_PERMISSIVE: ContextVar[bool] = ContextVar("permissive_vmap", default=False)
_APPLY = Replacement(Function, "apply", _permissive)


class UnsharedTensors(TorchFunctionMode):
    """Makes every new tensor a batched one, so that each call under vmap may write into its own.

    Args:
        like: a tensor that vmap batches.
    """

    FACTORIES: ClassVar[set[Any]] = {
        *(torch.zeros, torch.zeros_like, Tensor.new_zeros, torch.ones, torch.ones_like, Tensor.new_ones),
        *(torch.empty, torch.empty_like, Tensor.new_empty, torch.full, torch.full_like, Tensor.new_full),
        *(torch.clone, Tensor.clone, Tensor.new),
    }

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.like = like

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (Tensor.__bool__, Tensor.__format__) and (frame := calling_frame()) and frame.f_code in CHECKS:
            return "" if func is Tensor.__format__ else bool(_Any.apply(args[0]))
        if func is Tensor.__setitem__ and _is_masked_fill(*args):  # vmap has a rule for masked_fill_ only
            args[0].masked_fill_(args[1], args[2])
            return None
        if func == GET_DATA:  # Pyro's enumeration reads .data, which vmap refuses
            return args[0].detach()
        if func in (Tensor.numpy, Tensor.__array__):  # fails, as it must, for values that differ between calls
            return np.array(args[0].tolist(), NUMPY_DTYPES.get(args[0].dtype))
        made = func(*args, **(kwargs or {}))
        return self.like.new_zeros(made.shape, dtype=made.dtype).add(made) if func in self.FACTORIES else made


class _Any(Function):
    """Whether a value is true in any of the calls that vmap batches, a tensor that they share."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.any()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, value: Tensor) -> tuple[Tensor, None]:
        return value.any(), None


def _is_masked_fill(tensor: Tensor, key: Any, value: Any) -> bool:
    """Whether ``tensor[key] = value`` writes a number where a mask of the same shape is true."""
    is_mask = isinstance(key, Tensor) and key.dtype == torch.bool and key.shape == tensor.shape
    return is_mask and isinstance(value, int | float)
