"""A mixture of Gaussians over all latents of a program, for posteriors of several modes."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.nn import PyroParam
from torch import Tensor, nn

from ppgen.tracing.sites import Program

__all__ = ["AutoMixture"]


class AutoMixture(AutoContinuous):
    """K Gaussians of full rank over all latents together, on the real line.

        u ~ sum_k w_k N(loc_k, L_k L_k'),    w = softmax(logits),    L_k = diag(scale_k) C_k, C_k unit lower triangular

    Its density sums the components, so that importance weights are of the mixture, not of the component drawn. It has
    no `median` and `quantiles`: take draws. It is what ``guide="auto"`` gives back where it finds several modes, and
    places there. Draws have no gradient, since their component is drawn too: SVI has to train it by the score function,
    and where components start between two modes, they end at one of them.

    Args:
        model: a Pyro program whose latents are continuous.
        components: K.
        init_loc_fn: where all components start, as of Pyro's autoguides, but for noise that tells them apart.
        init_scale: the standard deviation of each latent at the start, on the real line, and of that noise.

    Raises:
        ValueError: for fewer than one component, or an init_scale that is not above 0.
    """

    scale_constraint: ClassVar[constraints.Constraint] = constraints.softplus_positive
    scale_tril_constraint: ClassVar[constraints.Constraint] = constraints.unit_lower_cholesky

    def __init__(
        self,
        model: Program,
        *,
        components: int = 2,
        init_loc_fn: Callable = init_to_median,
        init_scale: float = 0.1,
    ) -> None:
        if components < 1 or not init_scale > 0:
            raise ValueError(
                f"AutoMixture: expected components of at least 1 and init_scale above 0, got {components}, {init_scale}"
            )
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.components, self._init_scale = components, float(init_scale)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        start = self._init_loc().expand(self.components, -1)
        self.logits = nn.Parameter(start.new_zeros(self.components))
        self.loc = nn.Parameter(start + self._init_scale * torch.randn_like(start))
        self.scale = PyroParam(torch.full_like(start, self._init_scale), self.scale_constraint)
        eye = torch.eye(self.latent_dim).to(start).repeat(self.components, 1, 1)
        self.scale_tril = PyroParam(eye, self.scale_tril_constraint)

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.MixtureSameFamily:
        """The law of u."""
        root: Tensor = self.scale[..., None] * self.scale_tril
        # without checks, which read values, so that draws can be taken side by side
        parts = dist.MultivariateNormal(self.loc, scale_tril=root, validate_args=False)
        shares = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(shares, parts, validate_args=False)
