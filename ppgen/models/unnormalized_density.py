"""Unnormalized densities on the plane as Pyro programs: p(x) = exp(-U(x)) / Z, where U is an energy.

The energies are those of Rezende and Mohamed, https://arxiv.org/abs/1505.05770, table 1:

    U1  ((|x| - 2) / .4)^2 / 2 - log(g((x_1 - 2) / .6) + g((x_1 + 2) / .6))       a ring with two modes
    U2  ((x_2 - w_1) / .4)^2 / 2                                                  a wave
    U3  -log(g((x_2 - w_1) / .35) + g((x_2 - w_1 + w_2) / .35))                   a wave that splits and rejoins
    U4  -log(g((x_2 - w_1) / .4) + g((x_2 - w_1 + w_3) / .35))                    a wave that splits

    g(a) = exp(-a^2 / 2),  w_1 = sin(pi x_1 / 2),  w_2 = 3 g((x_1 - 1) / .6),  w_3 = 3 sigmoid((x_1 - 1) / .3)

The support of U1 is the plane. U2 to U4 are periodic or unbounded along x_1, so their support is the square [-4, 4]^2.
log Z is computed by quadrature, so that the reverse KL divergence of a distribution q is known exactly up to the Monte
Carlo error of an expectation: KL(q, p) = log Z - E_q[-U(x) - log q(x)].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["ENERGIES", "UnnormalizedDensity"]


@dataclass(frozen=True)
class UnnormalizedDensity:
    """An unnormalized density exp(-U(x)), as Pyro programs without data.

    Attributes:
        name: the name of the energy.
        potential: U, a function of points (..., 2).
        limit: the support is [-limit, limit]^2, or the plane for None.
        window: log Z is an integral over [-window, window]^2, outside of which the density is negligible.
    """

    name: str
    potential: Callable[[Tensor], Tensor]
    limit: float | None
    window: float

    @property
    def columns(self) -> tuple[str, str]:
        """The names of both coordinates."""
        return "x[0]", "x[1]"

    @property
    def support(self) -> constraints.Constraint:
        """The support of x."""
        return self._base.support

    def model(self) -> None:
        """The program: a latent "x" with log density zero on the support, and the factor exp(-U(x)).

        An improper density has no draws, so that a run of the program draws x from the base instead.
        """
        x = pyro.sample("x", self._base.mask(False))
        pyro.factor("energy", -self.potential(x))

    def base(self) -> None:
        """The program of a wide distribution of "x", which covers all modes, for `ppgen.AnnealedELBO`."""
        pyro.sample("x", self._base)

    @property
    def _base(self) -> TorchDistribution:
        distribution = dist.Normal(0.0, 3.0) if self.limit is None else dist.Uniform(-self.limit, self.limit)
        return distribution.expand([2]).to_event(1)

    @cached_property
    def log_z(self) -> float:
        """The logarithm of the integral of exp(-U), in nats: a sum over the midpoints of 1600^2 squares."""
        side, x = self.grid(1600)
        log_density = -self.potential(x)
        return float(log_density.flatten().logsumexp(0)) + 2 * math.log(side[1] - side[0])

    def grid(self, number: int) -> tuple[np.ndarray, Tensor]:
        """A grid of points in the window.

        Args:
            number: the number of cells along each side.

        Returns:
            The midpoints of the cells along a side (number,), and all points (number, number, 2), x_1 first.
        """
        side = (torch.arange(number, dtype=torch.float64) + 0.5) * (2 * self.window / number) - self.window
        return side.numpy(), torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)


def _u1(x: Tensor) -> Tensor:
    ring = 0.5 * ((x.norm(dim=-1) - 2) / 0.4) ** 2
    return ring - torch.logaddexp(_log_g((x[..., 0] - 2) / 0.6), _log_g((x[..., 0] + 2) / 0.6))


def _u2(x: Tensor) -> Tensor:
    return -_log_g(_from_wave(x) / 0.4)


def _u3(x: Tensor) -> Tensor:
    split = 3 * _log_g((x[..., 0] - 1) / 0.6).exp()
    return -torch.logaddexp(_log_g(_from_wave(x) / 0.35), _log_g((_from_wave(x) + split) / 0.35))


def _u4(x: Tensor) -> Tensor:
    split = 3 * torch.sigmoid((x[..., 0] - 1) / 0.3)
    return -torch.logaddexp(_log_g(_from_wave(x) / 0.4), _log_g((_from_wave(x) + split) / 0.35))


def _from_wave(x: Tensor) -> Tensor:
    return x[..., 1] - torch.sin(math.pi / 2 * x[..., 0])


def _log_g(a: Tensor) -> Tensor:
    return -0.5 * a.square()


ENERGIES = {
    energy.name: energy
    for energy in (
        UnnormalizedDensity("u1", _u1, None, 6.0),
        UnnormalizedDensity("u2", _u2, 4.0, 4.0),
        UnnormalizedDensity("u3", _u3, 4.0, 4.0),
        UnnormalizedDensity("u4", _u4, 4.0, 4.0),
    )
}
