"""Latents that are directions: angles and points of a sphere, as programs that can be mapped to the real line.

An angle of a von Mises distribution has the support of the real line in torch, where its density, which is periodic,
has no finite integral. Here its support is one period, (-pi, pi). A point of a sphere under a ProjectedNormal prior is
the direction of a Gaussian vector (`pyro.infer.reparam.ProjectedNormalReparam`), which becomes the latent: z_normal.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro import poutine
from pyro.distributions import ProjectedNormal, SineBivariateVonMises, SineSkewed, VonMises, constraints
from pyro.infer.reparam import ProjectedNormalReparam
from pyro.poutine.messenger import Messenger

from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.sites import Site
from ppgen.utils.torch_private import without_validation

__all__ = ["Directions"]

PERIOD = constraints.interval(-math.pi, math.pi)


@contextmanager
def _mapped_directions() -> Iterator[None]:
    with poutine.reparam(config=_projected_normal), _OnePeriod():
        yield


class Directions(ProgramInContext):
    """A program whose directions can be mapped to the real line (see the module's docstring)."""

    context = staticmethod(_mapped_directions)


def _projected_normal(site: Site) -> ProjectedNormalReparam | None:
    """The reparametrization of a latent ProjectedNormal."""
    distribution = site["fn"]
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return ProjectedNormalReparam() if isinstance(distribution, ProjectedNormal) and not site["is_observed"] else None


class _OnePeriod(Messenger):
    """A handler that gives latent angles the support of one period."""

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"]:
            msg["fn"] = without_validation(msg["fn"], PERIODIC)


class _VonMises(VonMises):
    support = PERIOD


class _SineBivariateVonMises(SineBivariateVonMises):
    support = constraints.independent(PERIOD, 1)


class _SineSkewed(SineSkewed):
    support = constraints.independent(PERIOD, 1)


PERIODIC: dict[type, type] = {
    VonMises: _VonMises,
    torch.distributions.VonMises: _VonMises,
    SineBivariateVonMises: _SineBivariateVonMises,
    SineSkewed: _SineSkewed,
}
