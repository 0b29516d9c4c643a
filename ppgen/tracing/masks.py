"""Which numbers of an observation count, and which a program leaves out.

There are three ways to leave out numbers: a handler, ``pyro.poutine.mask(mask=ok)``; a masked distribution,
``d.mask(ok)``, also of the numbers within an event, ``d.mask(ok).to_event(1)``; and a distribution that leaves out NaN
itself, such as `pyro.distributions.NanMaskedNormal`. What is left out has the log density zero.
"""

import torch
from pyro.distributions import Independent, MaskedDistribution, NanMaskedMultivariateNormal, NanMaskedNormal
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen.tracing.sites import Site, observation

__all__ = ["masked_log_prob", "observed_numbers", "site_mask", "without_masks"]

LEAVES_OUT_NAN = (NanMaskedNormal, NanMaskedMultivariateNormal)


def site_mask(site: Site) -> Tensor:
    """The mask of the handlers around a site: booleans that broadcast to its batch shape."""
    return torch.as_tensor(True if site["mask"] is None else site["mask"], device=site["value"].device)


def masked_log_prob(site: Site) -> Tensor:
    """The log density of a site without scales: zero where it is masked.

    Args:
        site: with log probabilities.
    """
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])


def observed_numbers(site: Site) -> Tensor:
    """Which numbers of an observation count: booleans of the batch and event shape of the site.

    Args:
        site: an observed site, even if the trace sampled it again.
    """
    value, fn = observation(site), site["fn"]
    keep = _with_event_axes(site_mask(site), fn.event_dim)
    base = fn
    while isinstance(base, Independent | MaskedDistribution | ExpandedDistribution):
        if isinstance(base, MaskedDistribution):
            keep = keep & _with_event_axes(base._mask, base.event_dim)
        base = base.base_dist
    keep = keep & (value.isfinite() if isinstance(base, LEAVES_OUT_NAN) else ~value.isnan())
    return keep.expand(torch.broadcast_shapes(keep.shape, fn.batch_shape + fn.event_shape))


def without_masks(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    """A distribution without its masks."""
    if isinstance(fn, MaskedDistribution):
        return without_masks(fn.base_dist)
    if isinstance(fn, Independent):
        return without_masks(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return fn


def _with_event_axes(mask: Tensor | bool, event_dim: int) -> Tensor:
    mask = torch.as_tensor(mask)
    return mask.reshape(mask.shape + (1,) * event_dim)
