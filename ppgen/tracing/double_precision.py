"""Programs in double precision, whatever the precision of the tensors that they hold or make."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["InDouble", "in_double"]

DATA = Tensor.data.__get__  # type: ignore[attr-defined]
NARROW = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def in_double() -> Iterator[None]:
    """New floating tensors are of double precision here, and older ones are taken as such wherever they are used.

    What fails at one point of many, a Cholesky factorization, gives NaN there.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(before)


class InDouble:
    """A program that runs in double precision."""

    def __init__(self, program: Callable):
        self.program = program
        update_wrapper(self, program, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with in_double():
            return self.program(*args, **kwargs)


class _Widening(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func == DATA:  # which vmap refuses, and Pyro's enumeration reads
            return args[0].detach()
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        if func is torch.linalg.cholesky:
            return _factor(*map(_wide, args), **kwargs)
        return func(*map(_wide, args), **kwargs)


def _factor(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """The Cholesky factor; NaN where there is none, in place of an error that would stop all points of a batch."""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _wide(value: Any) -> Any:
    """A tensor of double precision, or a list or tuple of such; what else it may be is left as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    if type(value) in (list, tuple):  # and no torch.Size, which is another thing as a tuple
        return type(value)(map(_wide, value))
    return value
