"""Programs in double precision, whatever the precision of the tensors that they hold or make."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

__all__ = ["InDouble", "in_double"]

NARROW = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def in_double() -> Iterator[None]:
    """New floating tensors are of double precision here, and older ones are taken as such wherever they are used."""
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
        args, kwargs = tree_map_only(Tensor, _wide, (args, kwargs or {}))
        return func(*args, **kwargs)


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.dtype in NARROW else value
