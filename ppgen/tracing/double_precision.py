"""Running a program in double precision, whatever the precision of the tensors that it holds or makes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["DoublePrecision", "ProgramInContext", "double_precision"]

GET_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
LOWER_PRECISION = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def double_precision() -> Iterator[None]:
    """A context in which floating tensors are float64: new ones when they are made, others where they are used.

    A Cholesky factorization that fails at one matrix of a batch gives NaN there and does not raise.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _ConvertToDouble():
            yield
    finally:
        torch.set_default_dtype(before)


class ProgramInContext:
    """A program that runs in a context, and looks like the program: its name and signature are the same.

    Args:
        program: a Pyro program.
    """

    context: Callable[[], AbstractContextManager]

    def __init__(self, program: Callable) -> None:
        self.program = program
        update_wrapper(self, program, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with type(self).context():
            return self.program(*args, **kwargs)


class DoublePrecision(ProgramInContext):
    """A program that runs in double precision."""

    context = staticmethod(double_precision)


class _ConvertToDouble(TorchFunctionMode):
    """Converts the floating arguments and results of every torch function to float64.

    A tensor from outside is converted once, and the copy stands for it inside the context: what a program writes into
    the tensor is what it reads there later. The tensor itself stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.doubles: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func == GET_DATA:  # Pyro's enumeration reads .data, which vmap refuses
            return args[0].detach()
        kwargs = {name: self._to_double(value) for name, value in (kwargs or {}).items()}
        if func is torch.linalg.cholesky:
            return _cholesky_or_nan(*map(self._to_double, args), **kwargs)
        return self._to_double(func(*map(self._to_double, args), **kwargs))

    def _to_double(self, value: Any) -> Any:
        """Converts a floating tensor, or a list or tuple of them, to float64; returns anything else as it is."""
        if isinstance(value, Tensor):
            return self._double(value) if value.dtype in LOWER_PRECISION else value
        if type(value) in (list, tuple):  # an exact type: a torch.Size or a named tuple has to keep its own
            return type(value)(map(self._to_double, value))
        return value

    def _double(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:  # no statement may write into it, and the copy has to be part of each graph
            return tensor.double()
        if tensor not in self.doubles:
            self.doubles[tensor] = tensor.double()
        double: Tensor = self.doubles[tensor]
        return double


def _cholesky_or_nan(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """The Cholesky factor, or NaN for a matrix that has none: one bad matrix must not stop a whole batch."""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)
