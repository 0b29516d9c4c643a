"""Sums of products on the log scale, in operations that `torch.func` can transform.

Pyro's own log-scale backend for opt_einsum uses an autograd function that vmap does not support. This module has the
interface of such a backend: `einsum`, `tensordot` and `transpose`.
"""

import torch
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["VmapLogRing", "einsum", "tensordot", "transpose"]


class VmapLogRing(LogRing):
    """The log-sum-exp ring of Pyro's tensor contractions, with this module as its backend."""

    _backend = __name__


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permutes the axes of a tensor."""
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """The logarithm of the einsum of the exponentials of the operands, computed stably."""
    inputs, output = equation.split("->")
    dims = output + "".join(sorted(set(inputs) - set(output) - {","}))
    total = torch.zeros(())
    for names, operand in zip(inputs.split(","), operands, strict=True):
        present = [name for name in dims if name in names]
        operand = operand.permute([names.index(name) for name in present])
        sizes = iter(operand.shape)
        total = total + operand.reshape([next(sizes) if name in names else 1 for name in dims])
    summed = tuple(range(len(output), len(dims)))
    return torch.logsumexp(total, summed) if summed else total + 0.0


tensordot = Tensordot(einsum)
