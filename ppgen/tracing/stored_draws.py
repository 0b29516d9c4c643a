"""Draws that a sampler left, as a distribution: rows at random, or in their order, which tells chains from noise."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.sites import Site

__all__ = ["InOrder", "StoredDraws"]


class StoredDraws(TorchDistribution):
    """The uniform distribution on stored points. It has no density, and its `log_prob` is 0.

    Args:
        draws: the points, (n, dim).
        batch_shape: the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, draws: Tensor, batch_shape: Sequence[int] = ()) -> None:
        self.draws = draws
        super().__init__(torch.Size(batch_shape), draws.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "StoredDraws":
        """The same distribution with a larger batch shape."""
        return StoredDraws(self.draws, batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Points (*sample_shape, *batch, dim), with replacement."""
        return self.draws[torch.randint(len(self.draws), (*sample_shape, *self.batch_shape))]

    def rows(self, first: Tensor) -> Tensor:
        """The points from number `first` on, one after another, in the shape of a sample: (*batch, dim)."""
        count = self.batch_shape.numel()
        index = (first + torch.arange(count)) % len(self.draws)
        return self.draws[index].reshape(*self.batch_shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros (*sample_shape, *batch), in the place of a density."""
        return value.new_zeros(value.shape[:-1])


class InOrder(Messenger):
    """A handler under which stored draws come in their order.

    Args:
        first: the number of the first draw.
    """

    def __init__(self, first: Tensor | int) -> None:
        super().__init__()
        self.first = torch.as_tensor(first)

    def _pyro_sample(self, msg: Site) -> None:
        if isinstance(msg["fn"], StoredDraws) and not msg["done"]:
            msg["value"], msg["done"] = msg["fn"].rows(self.first), True
