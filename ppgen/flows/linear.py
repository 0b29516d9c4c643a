"""A linear flow. Its density is Gaussian if the base is."""

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from ppgen.flows.composition import compose
from ppgen.flows.conditional_parameters import ConditionalParameters
from ppgen.flows.flow import Base, Flow
from ppgen.flows.zuko import lazy, transforms

__all__ = ["Linear", "lu_linear"]


def lu_linear(dim: int, *, context_dim: int = 0, base: Base = None) -> Flow:
    """One linear map z = L U x + b, with b linear in the context.

    Args:
        dim: The width of events.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).
    """
    return compose([Linear(dim, context_dim=context_dim)], dim, context_dim=context_dim, base=base)


class Linear(lazy.LazyTransform):
    """y = L U x + b, L lower and U unit upper triangular: log |det| = sum_i log |l_ii|.

    Args:
        dim: The width of x.
        context_dim: The width of the context, in which b is linear; 0 for none.
    """

    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.eye(dim))
        self.shift = ConditionalParameters({"b": torch.zeros(dim)}, context_dim=context_dim)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform for a context c (*batch, context_dim), or None."""
        linear = transforms.LULinearTransform(self.factors)
        shift = transforms.DependentTransform(transforms.AdditiveTransform(self.shift(c)["b"]), 1)
        return transforms.ComposedTransform(linear, shift)
