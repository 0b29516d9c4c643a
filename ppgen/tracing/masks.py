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

from ppgen.tracing.sites import Site, is_deterministic, observation

__all__ = ["has_nan_density", "masked_log_prob", "masks", "observed_numbers", "site_mask", "skips_nan", "without_masks"]

WRAPPERS = Independent | MaskedDistribution | ExpandedDistribution


def site_mask(site: Site) -> Tensor:
    """The mask of the handlers around a site: booleans that broadcast to its batch shape."""
    return torch.as_tensor(True if site["mask"] is None else site["mask"], device=site["value"].device)


def masked_log_prob(site: Site) -> Tensor:
    """The log density of a site without scales: zero where it is masked.

    Args:
        site: with log probabilities.
    """
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])


def masks(site: Site, *, of_distribution: bool = True) -> list[Tensor]:
    """The masks of a site: booleans that broadcast to its batch and event shape.

    Args:
        site: the site.
        of_distribution: whether to include the masks of its distribution, and not only those of handlers.
    """
    base, device = site["fn"], site["value"].device
    found = [(site["mask"], base.event_dim)]
    while of_distribution and isinstance(base, WRAPPERS):
        if isinstance(base, MaskedDistribution):
            found.append((base._mask, base.event_dim))
        base = base.base_dist
    given = [
        (torch.as_tensor(mask, device=device), rank) for mask, rank in found if mask is not None and mask is not True
    ]
    return [mask.reshape(mask.shape + (1,) * rank) for mask, rank in given]


def skips_nan(fn: TorchDistributionMixin) -> bool:
    """Whether a distribution leaves out numbers of an observation that are not finite."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return isinstance(fn, NanMaskedNormal | NanMaskedMultivariateNormal)


def observed_numbers(site: Site) -> Tensor:
    """Which numbers of an observation count: booleans of the batch and event shape of the site.

    Args:
        site: an observed site, even if the trace sampled it again.
    """
    value, fn = observation(site), site["fn"]
    keep = value.isfinite() if skips_nan(fn) else ~value.isnan()
    for mask in masks(site):
        keep = keep & mask
    return keep.expand(torch.broadcast_shapes(keep.shape, fn.batch_shape + fn.event_shape))


def without_masks(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    """A distribution without its masks."""
    if isinstance(fn, MaskedDistribution):
        return without_masks(fn.base_dist)
    if isinstance(fn, Independent):
        return without_masks(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return fn


def has_nan_density(site: Site) -> bool:
    """Whether a log density of a site is NaN before it is masked, when its gradient is NaN even if it is masked."""
    if site["mask"] is False or is_deterministic(site):
        return False
    try:
        return bool(torch.as_tensor(without_masks(site["fn"]).log_prob(site["value"])).isnan().any())
    except ValueError:  # from a distribution that checks its values, whatever the context says
        return bool(site["value"].isnan().any())
    except (NotImplementedError, RuntimeError):  # there is no density, which evaluating it reports
        return False
