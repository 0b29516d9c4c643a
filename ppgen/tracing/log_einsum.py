"""Sums of products of densities on the log scale, in operations that `torch.func` can transform.

Pyro's own backend of opt_einsum takes logarithms by an autograd function that vmap refuses; this is one in its place.
"""

import torch
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["LogSums", "einsum", "tensordot", "transpose"]


class LogSums(LogRing):
    """The ring of Pyro's contractions whose sums are those of this module."""

    _backend = __name__


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """The logarithm of einsum of the operands' exponentials."""
    inputs, output = equation.split("->")
    dims = output + "".join(sorted(set(inputs) - set(output) - {","}))
    total = torch.zeros(())
    for names, operand in zip(inputs.split(","), operands, strict=True):
        present = [name for name in dims if name in names]
        operand = operand.permute([names.index(name) for name in present])
        sizes = iter(operand.shape)
        total = total + operand.reshape([next(sizes) if name in names else 1 for name in dims])
    gone = tuple(range(len(output), len(dims)))
    return torch.logsumexp(total, gone) if gone else total + 0.0


tensordot = Tensordot(einsum)
