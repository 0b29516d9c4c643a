"""Pyro's distributions that leave out NaN, computed without a look at the values.

`NanMaskedNormal` and `NanMaskedMultivariateNormal` select what is not NaN, which can be neither recorded as a graph nor
run for many draws at once by `torch.func.vmap`. Here a missing number takes the place of its mean, so its residual r is
zero and has no gradient. With C' = C, except for the rows and columns of what is missing, which are those of I,

    log N(y_ok; m_ok, C_ok) = log N(r; 0, C') + n_missing / 2 log(2 pi)
"""

import math

import torch
from pyro.distributions import (
    Independent,
    MaskedDistribution,
    MultivariateNormal,
    NanMaskedMultivariateNormal,
    NanMaskedNormal,
    Normal,
)
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.sites import Site

__all__ = ["SelectNoValues"]


class SelectNoValues(Messenger):
    """A handler under which distributions that leave out NaN can be recorded and run under vmap."""

    def _pyro_sample(self, msg: Site) -> None:
        msg["fn"] = _replaced(msg["fn"])


class _Normal(NanMaskedNormal):
    """`NanMaskedNormal` by `torch.where`."""

    def log_prob(self, value: Tensor) -> Tensor:
        ok = value.isfinite()
        return torch.where(ok, Normal.log_prob(self, torch.where(ok, value, self.loc)), 0.0)


class _MultivariateNormal(NanMaskedMultivariateNormal):
    """`NanMaskedMultivariateNormal` by `torch.where`."""

    def log_prob(self, value: Tensor) -> Tensor:
        ok = value.isfinite()
        identity = torch.eye(ok.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        covariance = torch.where(ok[..., None] & ok[..., None, :], self.covariance_matrix, identity)
        residual = torch.where(ok, value - self.loc, 0.0)
        joint = MultivariateNormal(torch.zeros_like(residual), covariance).log_prob(residual)
        return joint + 0.5 * math.log(2 * math.pi) * (~ok).sum(-1).to(joint.dtype)


def _replaced(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    if isinstance(fn, Independent):
        base = _replaced(fn.base_dist)
        return fn if base is fn.base_dist else base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        base = _replaced(fn.base_dist)
        return fn if base is fn.base_dist else MaskedDistribution(base, fn._mask)
    if type(fn) is NanMaskedNormal:
        return _Normal(fn.loc, fn.scale)
    if type(fn) is NanMaskedMultivariateNormal:
        return _MultivariateNormal(fn.loc, fn.covariance_matrix)
    return fn
