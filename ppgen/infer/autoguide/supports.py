"""Autoguides for programs in which the support of one latent depends on others, as that of b ~ Uniform(0, a) does.

Pyro's autoguides map each latent from the real line to the support that it had in the first run of the model. Here the
supports are those at the latents that were drawn: the guide runs the model, which gives each latent its distribution
given those before it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoMultivariateNormal
from torch import Tensor
from torch.distributions import biject_to

from ppgen.tracing.programs import SubstituteLatents, get_trace, validation
from ppgen.tracing.sites import Site

__all__ = ["AutoGaussian", "SequentialSupports"]

MOVE = 0.01  # on the real line, of all latents, to see which supports change


class SequentialSupports(AutoContinuous):
    """A part of guides whose latents have supports that may depend on the latents before them.

    Attributes:
        dependent_supports: the latents whose support depends on others; the model runs in the guide if there are any.
    """

    dependent_supports: Sequence[str] = ()

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._arguments = args, kwargs
        self.dependent_supports = self._find_dependent_supports()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples the latents.

        Args:
            *args: the arguments of the model.
            **kwargs: its keyword arguments.

        Returns:
            The latents by name.
        """
        if self.dependent_supports:
            self._arguments = args, kwargs
        return super().forward(*args, **kwargs)

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Site, Tensor]]:
        """The sites, with the distributions that the model gives them at these latents, and their parts of u."""
        parts = list(super()._unpack_latent(latent))
        if self.dependent_supports:
            sites = self._sites_at({site["name"]: part for site, part in parts})
            parts = [({**site, "fn": sites[site["name"]]["fn"]}, part) for site, part in parts]
        yield from parts

    def _sites_at(self, parts: dict[str, Tensor]) -> dict[str, Site]:
        """The sites of the model at parts of u by name, hidden from the handlers around the guide."""

        def value_of(site: Site) -> Tensor | None:
            part = parts.get(site["name"])
            return None if part is None else biject_to(site["fn"].support)(part)

        args, kwargs = self._arguments
        with poutine.block(), validation(False):
            return get_trace(SubstituteLatents(value_of)(self.model), *args, **kwargs).nodes

    @torch.no_grad()
    def _find_dependent_supports(self) -> list[str]:
        """The latents that a move of all latents on the real line takes elsewhere than the first supports do."""
        sites = dict(self.prototype_trace.iter_stochastic_nodes())
        points = {name: biject_to(site["fn"].support).inv(site["value"]) + MOVE for name, site in sites.items()}
        with torch.random.fork_rng():
            moved = self._sites_at(points)
        return [
            name
            for name, site in sites.items()
            if not torch.allclose(biject_to(site["fn"].support)(points[name]), moved[name]["value"], equal_nan=True)
        ]


class AutoGaussian(SequentialSupports, AutoMultivariateNormal):
    """Pyro's AutoMultivariateNormal, with supports that may depend on other latents."""
