"""The guide of a program whose groups' latents were integrated out: global latents first, then those of each group."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppgen.posterior.group_chunks import GroupChunks
from ppgen.posterior.laplace import Laplace
from ppgen.tracing.sites import Site, latent_sites

__all__ = ["GroupGuide"]

AUXILIARY = "_latents_of_groups"


class GroupGuide:
    """Draws global latents from a guide of their own, and those of groups from their conditional distribution.

    The conditional distribution is that given the data of the fit, whatever data the guide is called with. Its density
    is exact as far as the evidence of each group is, so that importance weights are those of the global latents.

    Args:
        inner: the guide of the global latents.
        chunks: all groups, or a field of latents.
    """

    def __init__(self, inner: Callable, chunks: GroupChunks | Laplace) -> None:
        self.inner, self.chunks, self.__wrapped__ = inner, chunks, inner
        density = chunks.whole
        trace = density.trace(torch.zeros(density.dim, dtype=torch.float64))
        self._plates = {
            name: [(frame.name, frame.size, frame.dim) for frame in site["cond_indep_stack"] if frame.vectorized]
            for name, site in latent_sites(trace).items()
        }
        self._event_dims = {name: site["fn"].event_dim for name, site in latent_sites(trace).items()}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws all latents."""
        with _Auxiliary() as auxiliary:
            values = dict(self.inner(*args, **kwargs))
        density, groups, g = self.chunks.whole, self.chunks.groups, auxiliary.value
        if len(g) != len(groups.global_index):  # particles then run under vmap
            raise ValueError("a guide with latents that were integrated out does not broadcast over particles")
        z, log_q = self.chunks.draw(g)
        z = pyro.sample(AUXILIARY, Delta(z, log_density=log_q, event_dim=2), infer={"is_auxiliary": True})
        supports = density.supports(groups.point(g, z))
        for name, part in groups.parts_of(z).items():
            transform = biject_to(supports[name])
            value = transform(part)
            event_dim = self._event_dims[name]
            log_density = -sum_rightmost(
                transform.log_abs_det_jacobian(part, value), event_dim - supports[name].event_dim
            )
            with ExitStack() as stack:
                for plate, size, dim in self._plates[name]:
                    stack.enter_context(pyro.plate(plate, size, dim=dim))
                values[name] = pyro.sample(name, Delta(value, log_density=log_density, event_dim=event_dim))
        return values


class _Auxiliary(Messenger):
    """A handler that notes the latent of an autoguide: all latents of its model on the real line, in order."""

    value: Tensor

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["infer"].get("is_auxiliary"):
            self.value = msg["value"].reshape(-1)
