"""Moments of distributions that torch leaves without them."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

__all__ = ["mean"]


def mean(distribution: TorchDistribution) -> Tensor:
    """E[x], also of a reshaped distribution, and of a categorical the average level.

    torch gives a transformed or a categorical distribution no mean, hence this function.

    Raises:
        ValueError: the distribution transforms its base by more than a reshaping.
    """
    if isinstance(distribution, torch.distributions.Independent):
        return mean(distribution.base_dist)
    if isinstance(distribution, torch.distributions.TransformedDistribution):
        value = mean(distribution.base_dist)
        for transform in distribution.transforms:
            if not isinstance(transform, ReshapeTransform):
                raise ValueError(f"expected a distribution that only reshapes its base, got {transform}")
            value = transform(value)
        return value
    if isinstance(distribution, torch.distributions.Categorical):
        probs = distribution.probs
        return probs @ torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)
    return distribution.mean
