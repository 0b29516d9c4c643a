"""A diffusion's law of data as the prior of a Pyro program, and draws of its posterior."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.diffusion import Denoise, ProbabilityFlow
from ppgen.diffusion.guidance import posterior
from ppgen.models.sampling import Drawing
from ppgen.tracing.programs import likelihood_of_latent

__all__ = ["Conditioned"]


class Conditioned:
    """p(x | y) for a model's x and what a program observes of it; `ppgen.models.Diffusion.condition` makes it.

    Args:
        model: the prior.
        program: called with x, or, if a site is named, without arguments.
        site: the latent of the program that is of the model's law.
        guide: options of `ppgen.diffusion.posterior`.

    Raises:
        ValueError: the program has no such latent, or one of another law.
    """

    def __init__(self, model: Drawing, program: Callable[..., Any], *, site: str | None = None, **guide: Any) -> None:
        self.model, self.site, self.guide = model, site, guide
        self.shape, self.distribution = torch.Size(model.event_shape), None
        self.likelihood: Callable[[Tensor], Any]
        if site is None:
            self.likelihood = lambda v: program(model._real(v))
        else:
            self.likelihood, self.shape, distribution = likelihood_of_latent(
                program, site, like=next(model.denoiser.parameters())
            )
            self.distribution = _path_law(distribution, site)

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
        """n draws: data (n, *event_shape), or, of a site, its values, with n in front of its shape in the program.

        Args:
            y: labels or contexts of a conditional model; of a site they are in the program, ``model.distribution(y)``.
            sampler, steps, guidance, progress, return_path, options: as `Diffusion.sample` takes them. "ancestral" has
                the small variance unless told otherwise, since the model's own is that of its prior; of first order,
                it and "ddim" need hundreds of steps for a spread that is right within a few per cent, Heun's about 18.

        Raises:
            ValueError: for a likelihood that `ppgen.diffusion.posterior` refuses, and what `Diffusion.sample` does.
        """
        denoise = posterior(self._prior(n, y, guidance), self.likelihood, **self.guide)
        batch = (n, *self.shape[: len(self.shape) - len(self.model.event_shape)])
        options |= {"return_path": return_path, "progress": progress}
        drawn = self.model._drawn(denoise, batch, sampler, steps, options)
        return self.model._ended(drawn) if self.distribution is None else drawn

    def _prior(self, n: int, y: Tensor | None, guidance: float) -> Denoise:
        if self.distribution is None:
            self.model._check_labels(y, torch.Size([n]))
            return self.model._denoise(self.model._context(y), guidance)
        if y is not None or guidance != 1:
            raise ValueError(
                f"the law of site {self.site!r} is the program's: give labels there, by model.distribution(y)"
            )
        return self.distribution.denoise


def _path_law(distribution: TorchDistribution, site: str) -> ProbabilityFlow:
    """The law of one event that a site has, without its independent rows."""
    base: Any = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, ProbabilityFlow):
        raise ValueError(f"expected site {site!r} to be of the law of a diffusion, model.distribution(), got {base}")
    return base
