"""Distributions that `torch.func.vmap` cannot draw from or score, within programs that it runs for many draws at once.

Some of Pyro's distributions branch on values: rejection samplers stop when all is accepted, Stable's density integrates
where it has to. Their draws and densities are computed outside of vmap, one call after another, and the program around
them still runs once. `torch.autograd.Function` has a place for this, its method ``vmap``, which is given all calls.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Transform

from ppgen.tracing.sites import Site, is_subsample

__all__ = ["DrawsOutside", "compute_log_probs"]


class DrawsOutside(Messenger):
    """A handler that draws the latents outside of vmap that vmap cannot draw.

    Args:
        number: the number of the call, a tensor that vmap batches.
    """

    def __init__(self, number: Tensor) -> None:
        super().__init__()
        self.number = number

    def _pyro_sample(self, msg: Site) -> None:
        if msg["done"] or msg["value"] is not None or is_subsample(msg):
            return
        try:
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        except RuntimeError:
            msg["value"] = _outside(self.number, msg["fn"], "__call__", *msg["args"])
        msg["done"] = True


def compute_log_probs(trace: Trace, number: Tensor) -> None:
    """Computes the log density of each site, outside of vmap for those that vmap cannot score.

    Args:
        trace: the trace of one call.
        number: the number of the call, a tensor that vmap batches.
    """
    try:
        trace.compute_log_prob()
        return
    except RuntimeError:
        pass
    sites = [site for site in trace.nodes.values() if site["type"] == "sample" and "log_prob" not in site]
    known = [site["fn"] for site in sites]
    for site in sites:
        site["fn"] = _ScoredOutside(site["fn"], number)
    trace.compute_log_prob()
    for site, fn in zip(sites, known, strict=True):
        site["fn"] = fn


class _ScoredOutside:
    """A distribution whose density is computed outside of vmap."""

    def __init__(self, fn: Distribution, number: Tensor) -> None:
        self.fn, self.number = fn, number

    def log_prob(self, value: Tensor) -> Tensor:
        return _outside(self.number, self.fn, "log_prob", value)


def _outside(number: Tensor, fn: Distribution, method: str, *args: Any) -> Tensor:
    """The result of a method of a distribution, called once for each call of vmap."""
    tensors: list[Tensor] = []
    rebuild = _taken_apart((fn, args), tensors)

    def call(values: tuple[Tensor, ...]) -> Tensor:
        distribution, arguments = rebuild(values)
        return getattr(distribution, method)(*arguments)

    return _Outside.apply(call, number, *tensors)


class _Outside(Function):
    @staticmethod
    def forward(call: Callable, number: Tensor, *tensors: Tensor) -> Tensor:
        return call(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: Callable, number: Tensor, *tensors: Tensor) -> tuple[Tensor, int]:
        batched = list(zip(tensors, in_dims[2:], strict=True))
        calls = ([t if d is None else t.select(d, i) for t, d in batched] for i in range(info.batch_size))
        return torch.stack([call(tuple(values)) for values in calls]), 0


def _taken_apart(found: Any, tensors: list[Tensor]) -> Callable[[tuple[Tensor, ...]], Any]:
    """A function that makes a copy of an object with other tensors, which are appended to `tensors` here."""
    if isinstance(found, Tensor):
        tensors.append(found)
        position = len(tensors) - 1
        return lambda values: values[position]
    if isinstance(found, tuple | list):
        parts = [_taken_apart(part, tensors) for part in found]
        kind = type(found)
        if kind in (tuple, list):
            return lambda values: kind(part(values) for part in parts)
        return lambda values: found
    if isinstance(found, Distribution | Transform):
        attributes = {k: _taken_apart(v, tensors) for k, v in vars(found).items()}

        def rebuild(values: tuple[Tensor, ...]) -> Any:
            made = copy.copy(found)
            made.__dict__.update({k: part(values) for k, part in attributes.items()})
            return made

        return rebuild
    return lambda values: found
