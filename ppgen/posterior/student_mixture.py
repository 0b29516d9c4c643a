"""Mixtures of Student's t distributions, and of these and a prior: draws, log density and gradient at many points."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.posterior.preconditioning import Preconditioned

__all__ = ["StudentMixture", "WithPrior"]

DEGREES_OF_FREEDOM = 5


@dataclass(frozen=True)
class StudentMixture:
    """b(y) = sum_k w_k t_5(y; center_k, root_k root_k').

    Attributes:
        weights: w, (k,), of sum 1.
        center: (k, dim).
        root: (k, dim, dim).
    """

    weights: Tensor
    center: Tensor
    root: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (count, dim), whose numbers from each part are as the weights say, to rounding, in random order."""
        dim, df = self.center.shape[-1], DEGREES_OF_FREEDOM
        start = torch.rand((), generator=generator, dtype=torch.float64)
        steps = (start + torch.arange(count, dtype=torch.float64)) / count
        part = torch.searchsorted(self.weights.cumsum(0), steps).clamp(max=len(self.weights) - 1)
        part = part[torch.randperm(count, generator=generator)]
        noise = torch.randn(count, dim + df, generator=generator, dtype=torch.float64)
        noise = noise[:, :dim] * noise[:, dim:].square().mean(1, keepdim=True).rsqrt()
        return self.center[part] + (self.root[part] @ noise[..., None])[..., 0]

    def log_prob_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The log density (n,) in nats, and its gradient (n, dim)."""
        log_joint, noise, quadratic = self._parts(y)
        value = log_joint.logsumexp(-1)
        df, dim = DEGREES_OF_FREEDOM, y.shape[-1]
        share = (log_joint - value[:, None]).exp() * (df + dim) / (df + quadratic)  # (n, k)
        inner = torch.linalg.solve(self.root.mT, (share[..., None] * noise).permute(1, 2, 0))  # (k, dim, n)
        return value, -inner.sum(0).mT

    def part_of(self, y: Tensor) -> Tensor:
        """The part with the largest share of the density at each point: (n,)."""
        return self._parts(y)[0].argmax(-1)

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values of log w_k t_k(y) (n, k), root_k^-1 (y - center_k) (n, k, dim), and its squared length (n, k)."""
        df, dim = DEGREES_OF_FREEDOM, y.shape[-1]
        noise = torch.linalg.solve(self.root, (y[None] - self.center[:, None]).mT).permute(2, 0, 1)
        quadratic = noise.square().sum(-1)
        constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - 0.5 * dim * math.log(df * math.pi)
        log_det = torch.linalg.slogdet(self.root).logabsdet
        log_prob = constant - log_det - 0.5 * (df + dim) * torch.log1p(quadratic / df)
        return log_prob + self.weights.log(), noise, quadratic


@dataclass(frozen=True)
class WithPrior:
    """b(y) = (1 - s) student(y) + s prior(y): where data say little, the prior is as wide as the posterior.

    Attributes:
        student: the mixture around a guide.
        prior: the density of the prior in its coordinates.
        draws: draws of the prior, (k, dim).
        share: s.
    """

    student: StudentMixture
    prior: Preconditioned
    draws: Tensor
    share: float

    @property
    def weights(self) -> Tensor:
        """Those of the parts around the guide, (k,)."""
        return self.student.weights

    def part_of(self, y: Tensor) -> Tensor:
        """The part around the guide with the largest share of its density at each point: (n,)."""
        return self.student.part_of(y)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (count, dim), whose numbers from the prior are as its share says, to rounding, in random order."""
        of_prior = round(self.share * count)
        rows = torch.randperm(len(self.draws), generator=generator)[torch.arange(of_prior) % len(self.draws)]
        y = torch.cat([self.student.sample(count - of_prior, generator), self.draws[rows]])
        return y[torch.randperm(count, generator=generator)]

    def log_prob_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The log density (n,) in nats, and its gradient (n, dim)."""
        parts = [self.student.log_prob_and_grad(y), self.prior.log_prob_and_grad(y)]
        log_shares = math.log1p(-self.share), math.log(self.share)
        values = torch.stack([value + log for (value, _), log in zip(parts, log_shares, strict=True)])
        gradients = torch.stack([gradient for _, gradient in parts])
        return values.logsumexp(0), (values.softmax(0)[..., None] * gradients).sum(0)
