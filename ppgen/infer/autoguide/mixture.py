"""A mixture of Gaussians over all latents of a program, for posteriors with several modes."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import init_to_median
from pyro.nn import PyroParam
from torch import Tensor, nn

from ppgen.infer.autoguide.supports import SequentialSupports
from ppgen.tracing.sites import Program

__all__ = ["AutoMixture"]


class AutoMixture(SequentialSupports):
    """K full-rank Gaussians over all latents together, on the real line.

        u ~ sum_k w_k N(loc_k, L_k L_k'),    w = softmax(logits),    L_k = diag(scale_k) C_k, C_k unit lower triangular

    Its density is the sum over components, so importance weights are those of the mixture and not of the component that
    was drawn. It has no `median` and `quantiles`; use draws instead. ``guide="auto"`` returns this guide where it finds
    several modes, and places the components there. Draws have no gradient, since the component is random: SVI trains it
    by the score function, and components that start between two modes end at one of them.

    Args:
        model: a Pyro program whose latents are continuous.
        components: K.
        init_loc_fn: the initial location of all components, as for Pyro's autoguides; noise separates them.
        init_scale: the initial standard deviation of each latent on the real line, and that of the noise.

    Raises:
        ValueError: if `components` is below 1 or `init_scale` is not above 0.
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
                f"AutoMixture: components must be at least 1 and init_scale above 0, got {components} and {init_scale}"
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
        """The distribution of u.

        Args:
            *args: the arguments of the model, which it does not depend on.
            **kwargs: its keyword arguments.
        """
        root: Tensor = self.scale[..., None] * self.scale_tril
        # without validation, which reads values, so that vmap can evaluate it
        components = dist.MultivariateNormal(self.loc, scale_tril=root, validate_args=False)
        weights = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(weights, components, validate_args=False)
