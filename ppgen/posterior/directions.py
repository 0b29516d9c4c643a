"""Latents that are directions: angles and points of a sphere, as programs that can be mapped to the real line.

An angle of a von Mises distribution has the support of the real line in torch, where its density, which is periodic,
has no finite integral. Here its support is one period, (-pi, pi). A point of a sphere under a ProjectedNormal prior is
the direction of a Gaussian vector (`pyro.infer.reparam.ProjectedNormalReparam`), which becomes the latent: z_normal.
The rows of the Cholesky factor of a correlation matrix are directions as well, which torch's LKJCholesky does not draw
from its own density where there are three or more.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from pyro import poutine
from pyro.distributions import (
    LKJCholesky,
    ProjectedNormal,
    SineBivariateVonMises,
    SineSkewed,
    VonMises,
    constraints,
)
from pyro.infer.reparam import ProjectedNormalReparam
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Beta

from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.sites import Site
from ppgen.utils.torch_private import without_validation

__all__ = ["Directions"]

PERIOD = constraints.interval(-math.pi, math.pi)


@contextmanager
def _mapped_directions() -> Iterator[None]:
    with poutine.reparam(config=_projected_normal), _Replaced():
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


class _Replaced(Messenger):
    """A handler that gives latent angles the support of one period, and correlations draws of their density."""

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"]:
            msg["fn"] = without_validation(msg["fn"], REPLACED)


class _VonMises(VonMises):
    support = PERIOD


class _SineBivariateVonMises(SineBivariateVonMises):
    support = constraints.independent(PERIOD, 1)


class _SineSkewed(SineSkewed):
    support = constraints.independent(PERIOD, 1)


class _LKJCholesky(LKJCholesky):
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The squared length of row k = 1, .. below the diagonal is Beta(k / 2, eta + (dim - 1 - k) / 2).

        Lewandowski et al. 2009, section 3.2 (https://doi.org/10.1016/j.jmva.2009.04.008); torch has k - 1/2 for k / 2.
        """
        right, rest = copy.copy(self), self._beta.concentration0
        row = torch.arange(self.dim).clamp(min=1)  # there is nothing below the diagonal in row 0
        right._beta = Beta((row / 2).to(rest).expand_as(rest), rest, validate_args=False)
        return super(_LKJCholesky, right).sample(torch.Size(sample_shape))


REPLACED: dict[type, type] = {
    VonMises: _VonMises,
    torch.distributions.VonMises: _VonMises,
    SineBivariateVonMises: _SineBivariateVonMises,
    SineSkewed: _SineSkewed,
    LKJCholesky: _LKJCholesky,
}
