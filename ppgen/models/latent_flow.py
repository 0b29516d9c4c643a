"""Flows of latents: laws p(z) and q(z | x) that begin as a VAE's Gaussians and bend from there.

    prior        z = T(u),                          u ~ N(0, I)
    posterior    z = mu(x) + sigma(x) T(u; h(x)),   u ~ N(0, I)

T is any row of `ppgen.flows.FLOWS`, most of which start as the identity; mu, sigma and h, as wide as z, are
read from the encoder. In the posterior the flow works on z less its mean and over its scale, so that bins of splines
stand where draws fall, and the start is the encoder's Gaussian (Rezende & Mohamed 2015; Kingma et al. 2016).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.flows import FLOWS, Flow, FlowDistribution
from ppgen.models.likelihood import Gaussian, Head
from ppgen.nets import lookup

__all__ = ["FlowCode", "GaussianFlow", "make_flow"]


class GaussianFlow(TorchDistribution):
    """z = mu + sigma T(u), the law of T(u) a flow's.

    A guide scores the z that it has just drawn. The way back from z to u is `dim` passes of an inverse autoregression,
    or a search; so the law remembers the density of its last draw, which came with it, and hands it out for this very
    tensor, unchanged, under the same gradient mode. Any other value is scored by going back.

    Args:
        loc, scale: mu and sigma, (*batch, dim).
        law: the law of T(u), of the same batch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, distribution: FlowDistribution) -> None:
        self.loc, self.scale, self.distribution = loc, scale, distribution
        self._last: tuple[Tensor, int, bool, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "GaussianFlow":
        shape = (*batch_shape, *self.event_shape)
        return GaussianFlow(self.loc.expand(shape), self.scale.expand(shape), self.distribution.expand(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        inner, log_prob = self.distribution.rsample_and_log_prob(sample_shape)
        z = self.loc + self.scale * inner
        self._last = z, z._version, torch.is_grad_enabled(), log_prob - self.scale.log().sum(-1)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None:
            z, version, with_gradient, log_prob = self._last
            if value is z and value._version == version and torch.is_grad_enabled() == with_gradient:
                return log_prob
        return self.distribution.log_prob((value - self.loc) / self.scale) - self.scale.log().sum(-1)

    @property
    def center(self) -> Tensor:
        """mu + sigma T(0): the image of the base's mean, where a Gaussian has its own."""
        return self.loc + self.scale * self.distribution.transform(torch.zeros_like(self.loc))


class FlowCode(Head):
    """The head of an encoder whose posterior is a flow; its options are those of `make_flow`."""

    def __init__(self, event_shape: Sequence[int], *, flow: str, floor: float, **options: Any) -> None:
        super().__init__(event_shape)
        self.gaussian = Gaussian(event_shape, floor=floor)
        self.size = self.gaussian.size + 1
        self.flow = make_flow(flow, self.elements, context_dim=self.elements, option="posterior", **options)

    def forward(self, raw: Tensor) -> TorchDistribution:
        numbers, context = raw.split([self.size - 1, 1], -2)
        gaussian = self.gaussian(numbers).base_dist
        return GaussianFlow(gaussian.loc, gaussian.scale, self.flow(context.squeeze(-2)))


def make_flow(
    flow: str, dim: int, *, option: str, layers: int | None, hidden: Sequence[int], context_dim: int = 0
) -> Flow:
    """A row of `FLOWS`.

    Args:
        option: what the flow is for, as errors name it.
        layers: how many maps it is made of; None for its own number.
        hidden: the widths of its networks.

    Raises:
        ValueError: the flow is unknown, or has no such option.
    """
    make = lookup(FLOWS, flow, option=option)
    options: dict[str, Any] = {} if flow == "lu_linear" else {"hidden": tuple(hidden)}
    if layers is not None:
        options["layers"] = layers
    try:
        return make(dim, context_dim=context_dim, **options)
    except TypeError as error:
        raise ValueError(f"{option}={flow!r} has no such option: {error}") from error
