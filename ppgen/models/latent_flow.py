"""Flows of latent codes: distributions p(z) and q(z | x) that are initialized close to the Gaussians of a VAE.

    prior        z = T(u),                          u ~ N(0, I)
    posterior    z = mu(x) + sigma(x) T(u; h(x)),   u ~ N(0, I)

T is any row of `ppgen.flows.FLOWS`; most of them are the identity at initialization. mu, sigma and h, each as wide as
z, are outputs of the encoder. The flow of the posterior acts on the standardized z, so that the bins of splines lie
where the draws fall. See Rezende and Mohamed, https://arxiv.org/abs/1505.05770, and Kingma et al.,
https://arxiv.org/abs/1606.04934.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.flows import FlowDistribution
from ppgen.flows.build import build_flow
from ppgen.models.likelihood import Gaussian, Head

__all__ = ["FlowHead", "GaussianFlow"]


class GaussianFlow(TorchDistribution):
    """The distribution of z = mu + sigma v, where v has the distribution of a flow.

    A guide scores the z that it has just drawn. Inverting the flow at z would cost `dim` passes of an autoregressive
    network or a root search, so the distribution caches the density of its last draw, which was computed with the draw.
    The cache serves the same unmodified tensor under the same gradient mode; any other value is scored by inversion.

    Args:
        loc: mu (*batch, dim).
        scale: sigma (*batch, dim).
        distribution: the distribution of v, with batch shape (*batch).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, distribution: FlowDistribution) -> None:
        self.loc, self.scale, self.distribution = loc, scale, distribution
        self._last_draw: tuple[Tensor, int, bool, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real vectors."""
        return constraints.real_vector

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "GaussianFlow":
        """The same distribution with another batch shape."""
        shape = (*batch_shape, *self.event_shape)
        return GaussianFlow(self.loc.expand(shape), self.scale.expand(shape), self.distribution.expand(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients; their density is cached."""
        v, log_prob = self.distribution.rsample_and_log_prob(sample_shape)
        z = self.loc + self.scale * v
        self._last_draw = z, z._version, torch.is_grad_enabled(), log_prob - self.scale.log().sum(-1)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, from the cache if the value is the last draw."""
        if self._last_draw is not None:
            z, version, with_gradient, log_prob = self._last_draw
            if value is z and value._version == version and torch.is_grad_enabled() == with_gradient:
                return log_prob
        return self.distribution.log_prob((value - self.loc) / self.scale) - self.scale.log().sum(-1)

    @property
    def center(self) -> Tensor:
        """The image of the mean of the base, mu + sigma T(0); it replaces the mean, which is not known."""
        return self.loc + self.scale * self.distribution.transform(torch.zeros_like(self.loc))


class FlowHead(Head):
    """The head of an encoder whose posterior is a flow.

    Args:
        event_shape: the shape of z.
        flow: a row of `ppgen.flows.FLOWS`.
        floor: the least sigma.
        options: further options of `ppgen.flows.build.build_flow`.
    """

    def __init__(self, event_shape: Sequence[int], *, flow: str, floor: float, **options: Any) -> None:
        super().__init__(event_shape)
        self.gaussian = Gaussian(event_shape, floor=floor)
        self.size = self.gaussian.size + 1
        self.flow = build_flow(flow, self.elements, context_dim=self.elements, option="posterior", **options)

    def forward(self, raw: Tensor) -> TorchDistribution:
        """q(z | x)."""
        gaussian_raw, context = raw.split([self.size - 1, 1], -2)
        gaussian = self.gaussian(gaussian_raw).base_dist
        return GaussianFlow(gaussian.loc, gaussian.scale, self.flow(context.squeeze(-2)))
