"""Programs under `torch.func.vmap`, which write into tensors that they have made.

A tensor made of a shape alone is shared by all runs under vmap, so that it can take neither a draw (``x.normal_()``)
nor what depends on a latent (``mean[0] = z``), which differ between them.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Own"]


class Own(TorchFunctionMode):
    """What is made here is each run's own.

    Args:
        like: a tensor that differs between runs.
    """

    MAKERS: ClassVar[set[Any]] = {
        *(torch.zeros, torch.zeros_like, Tensor.new_zeros, torch.ones, torch.ones_like, Tensor.new_ones),
        *(torch.empty, torch.empty_like, Tensor.new_empty, torch.full, torch.full_like, Tensor.new_full),
        *(torch.clone, Tensor.clone),
    }

    def __init__(self, like: Tensor):
        super().__init__()
        self.like = like

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.__setitem__ and _is_fill(*args):  # which vmap knows as this alone
            args[0].masked_fill_(args[1], args[2])
            return None
        made = func(*args, **(kwargs or {}))
        return self.like.new_empty(made.shape, dtype=made.dtype).copy_(made) if func in self.MAKERS else made


def _is_fill(tensor: Tensor, key: Any, value: Any) -> bool:
    """Whether ``tensor[key] = value`` puts a number where a mask of the tensor's own shape is true."""
    mask = isinstance(key, Tensor) and key.dtype == torch.bool and key.shape == tensor.shape
    return mask and isinstance(value, int | float)
