"""The log density of a trace with its enumerated latents summed out, in operations that `torch.func` can transform.

Pyro's own sum takes its logarithm by an autograd function that vmap refuses. This module is a backend of opt_einsum in
its place: sums of products of densities, on the log scale.
"""

from collections import OrderedDict

import torch
from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from pyro.poutine import Trace
from torch import Tensor

__all__ = ["einsum", "log_density", "tensordot", "transpose"]


class _Ring(LogRing):
    _backend = __name__


def log_density(trace: Trace) -> Tensor:
    """log p of a trace that was made under `poutine.enum`, a scalar, in nats."""
    trace.compute_log_prob()
    trace.pack_tensors()
    plates, factors = trace.plate_to_symbol, OrderedDict[frozenset, list[Tensor]]()
    for site in trace.nodes.values():
        if site["type"] == "sample" and "log_prob" in site["packed"]:
            around = frozenset(plates[f.name] for f in site["cond_indep_stack"] if f.vectorized)
            factors.setdefault(around, []).append(site["packed"]["log_prob"])
    summed = set(trace.symbol_to_dim) - set(plates.values())
    return contract_to_tensor(factors, summed, ring=_Ring({}))


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
