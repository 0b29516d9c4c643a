"""An inverse autoregressive flow whose coordinates have tails of their own: lighter or heavier than a Gaussian's.

Affine autoregressive maps leave the first coordinate Gaussian, and the tails of all others given those before. The
tails of a latent on the real line are often others: exponential for the logit of a Beta, for the log of a half-Cauchy,
and to the left for the log of a Gamma, whose tail to the right is lighter. So each coordinate has one more map, with a
power and a width for either side of 0 (here for z >= 0; the other side is mirrored):

    x = c ((1 + z / c)^p - 1) / p        dx / dz = (1 + z / c)^(p - 1)

It is the transform of Yeo & Johnson (2000, https://doi.org/10.1093/biomet/87.4.954). With z Gaussian, p = 2 gives x
exponential tails, p = 1 Gaussian ones, and p -> 0 those of the log of a positive number.
"""

from typing import Any

import torch
from torch import Tensor

from ppgen.flows.autoregressive import iaf
from ppgen.flows.bijection import InvertibleLayer
from ppgen.flows.composition import Widths, compose
from ppgen.flows.conditional_parameters import ConditionalParameters
from ppgen.flows.flow import Base, Flow

__all__ = ["PowerTails", "iaf_tails"]


def iaf_tails(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Inverse autoregressive flow (`iaf`) after whose maps each coordinate gets tails of its own (`PowerTails`).

    Sampling, with the density of the sample, takes one evaluation of each network; scoring data takes `dim`.

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.

    Example:
        >>> import torch
        >>> from ppgen import flows
        >>> flow = flows.iaf_tails(2, layers=2, hidden=(8,))
        >>> x, log_prob = flow().rsample_and_log_prob((5,))
        >>> torch.allclose(flow().log_prob(x), log_prob, atol=1e-4)
        True
    """
    flow = iaf(dim, layers=layers, hidden=hidden, context_dim=context_dim, base=base)
    affine: Any = flow.maps
    maps = [PowerTails(dim, context_dim=context_dim), *affine.transforms]
    return compose(maps, dim, context_dim=context_dim, base=base)


class PowerTails(InvertibleLayer):
    """The map from x to z of the module's docstring; the identity at first.

    Args:
        dim: The width of x.
        context_dim: The width of the context, in which log p and log c are linear; 0 for none.
    """

    rank = 1

    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__()
        initial = {"log_power": torch.zeros(2, dim), "log_width": torch.zeros(2, dim)}  # of z >= 0, and below
        self.given = ConditionalParameters(initial, context_dim=context_dim)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns z and log |det dz / dx|."""
        p, c = self._power_and_width(x, context)
        log_base = (p * x.abs() / c).log1p() / p  # log(1 + |z| / c)
        z = c * log_base.expm1()
        return torch.where(x >= 0, z, -z), ((1 - p) * log_base).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dz|, at z = y."""
        p, c = self._power_and_width(y, context)
        log_base = (y.abs() / c).log1p()
        x = c * (p * log_base).expm1() / p
        return torch.where(y >= 0, x, -x), ((p - 1) * log_base).sum(-1)

    def _power_and_width(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The values of p and c on the side of 0 on which each number is; both maps keep the sign."""
        given = self.given(context)
        pairs = (given[name].exp().unbind(-2) for name in ("log_power", "log_width"))
        p, c = (torch.where(value >= 0, above, below) for above, below in pairs)
        return p, c
