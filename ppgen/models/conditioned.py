"""A diffusion model as the prior of a Pyro program, and draws of the posterior."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.diffusion import Denoise, ProbabilityFlow
from ppgen.diffusion.guidance import posterior
from ppgen.models.sampling import DenoisingSampler
from ppgen.tracing.programs import likelihood_of_latent

__all__ = ["Conditioned"]


class Conditioned:
    """p(x | y) for x of a model and the observations y of a program; `ppgen.models.Diffusion.condition` builds it.

    Args:
        model: the prior.
        program: a program that is called with x or, if a site is named, without arguments.
        site: the latent site of the program whose distribution is that of the model.
        posterior_options: options of `ppgen.diffusion.posterior`.

    Raises:
        ValueError: if the program has no such latent site, or its distribution is another one.
    """

    def __init__(
        self, model: DenoisingSampler, program: Callable[..., Any], *, site: str | None = None, **posterior_options: Any
    ) -> None:
        self.model, self.site, self.posterior_options = model, site, posterior_options
        self.shape = torch.Size(model.event_shape)
        self.distribution: ProbabilityFlow | None = None
        self.likelihood: Callable[[Tensor], Any]
        if site is None:
            self.likelihood = lambda v: program(model.unscale(v))
        else:
            like = next(model.denoiser.parameters())
            self.likelihood, self.shape, distribution = likelihood_of_latent(program, site, like=like)
            self.distribution = _probability_flow(distribution, site)

    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str = "heun",
        steps: int = 18,
        guidance: float = 1.0,
        progress: bool = False,
        return_path: bool = False,
        **options: Any,
    ) -> Tensor | list[Tensor]:
        """Draws of the posterior.

        Args:
            n: the number of draws.
            y: labels or contexts of a conditional model. With a site they belong into the program, as
                ``model.distribution(y)``.
            sampler: as in `DenoisingSampler.sample`. "ancestral" has the small variance by default, because the
                variance of the model is that of the prior. Being of first order, "ancestral" and "ddim" need hundreds
                of steps for a posterior spread that is right within a few per cent, "heun" about 18.
            steps: as in `DenoisingSampler.sample`.
            guidance: as in `DenoisingSampler.sample`.
            progress: as in `DenoisingSampler.sample`.
            return_path: as in `DenoisingSampler.sample`.
            options: as in `DenoisingSampler.sample`.

        Returns:
            Data (n, *event_shape); with a site its values, (n, *shape) with its shape in the program.

        Raises:
            ValueError: for a likelihood that `ppgen.diffusion.posterior` refuses, and as `DenoisingSampler.sample`
                does.
        """
        denoise = posterior(self._prior(n, y, guidance), self.likelihood, **self.posterior_options)
        batch_shape = (n, *self.shape[: len(self.shape) - len(self.model.event_shape)])
        options |= {"return_path": return_path, "progress": progress}
        v = self.model.run_sampler(denoise, batch_shape, sampler, steps, **options)
        return self.model.to_data(v) if self.distribution is None else v

    def _prior(self, n: int, y: Tensor | None, guidance: float) -> Denoise:
        """The denoiser of the prior."""
        if self.distribution is None:
            self.model.check_labels(y, torch.Size([n]))
            return self.model.denoise(y, guidance=guidance)
        if y is not None or guidance != 1:
            raise ValueError(
                f"the distribution of site {self.site!r} is the program's: give labels there, by model.distribution(y)"
            )
        return self.distribution.denoise


def _probability_flow(distribution: TorchDistribution, site: str) -> ProbabilityFlow:
    """The distribution of one event of a site, without its independent rows."""
    base: Any = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, ProbabilityFlow):
        raise ValueError(
            f"expected site {site!r} to have the distribution of a diffusion, model.distribution(), got {base}"
        )
    return base
