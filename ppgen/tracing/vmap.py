"""Running programs, also those that write into their own tensors, under `torch.func.vmap`.

A tensor that is made from a shape alone is shared by all calls that vmap batches. Writing into it fails when the value
differs between calls: a draw (``x.normal_()``), or a value that depends on a latent (``mean[0] = z``). And what is
computed from shared tensors, such as data, has values that Python can read (``tolist``), but not through NumPy.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import Beta, Dirichlet, Gamma, Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.tracing.double_precision import GET_DATA
from ppgen.tracing.sites import Site

NUMPY_DTYPES = {torch.float32: np.float32, torch.float16: np.float16}  # others are those of Python's numbers

__all__ = ["DrawsByGamma", "UnsharedTensors", "slow_rules_allowed"]


@contextmanager
def slow_rules_allowed() -> Iterator[None]:
    """A context without torch's warnings about operations that vmap runs once for each call, or resizes results of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        warnings.filterwarnings("ignore", "An output with one or more elements was resized", UserWarning)
        yield


class DrawsByGamma(Messenger):
    """Draws Dirichlet and beta latents as shares of gamma variables, since vmap refuses torch's own draws of them."""

    def _pyro_sample(self, msg: Site) -> None:
        base = msg["fn"]
        while isinstance(base, Independent | MaskedDistribution):
            base = base.base_dist
        if msg["done"] or msg["value"] is not None or not isinstance(base, Beta | Dirichlet):
            return
        dirichlet = base._dirichlet if isinstance(base, Beta) else base
        parts = Gamma(dirichlet.concentration, 1.0).sample().clamp(min=torch.finfo(dirichlet.concentration.dtype).tiny)
        shares = parts / parts.sum(-1, keepdim=True)
        msg["value"], msg["done"] = shares[..., 0] if isinstance(base, Beta) else shares, True


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
        if func is Tensor.__setitem__ and _is_masked_fill(*args):  # vmap has a rule for masked_fill_ only
            args[0].masked_fill_(args[1], args[2])
            return None
        if func == GET_DATA:  # Pyro's enumeration reads .data, which vmap refuses
            return args[0].detach()
        if func in (Tensor.numpy, Tensor.__array__):  # fails, as it must, for values that differ between calls
            return np.array(args[0].tolist(), NUMPY_DTYPES.get(args[0].dtype))
        made = func(*args, **(kwargs or {}))
        return self.like.new_empty(made.shape, dtype=made.dtype).copy_(made) if func in self.FACTORIES else made


def _is_masked_fill(tensor: Tensor, key: Any, value: Any) -> bool:
    """Whether ``tensor[key] = value`` writes a number where a mask of the same shape is true."""
    is_mask = isinstance(key, Tensor) and key.dtype == torch.bool and key.shape == tensor.shape
    return is_mask and isinstance(value, int | float)
