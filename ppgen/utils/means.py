"""Means of distributions for which torch does not define one."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

__all__ = ["mean"]


def mean(distribution: TorchDistribution) -> Tensor:
    """The mean E[x] of a distribution, also if it is reshaped or categorical (then the mean of the category's number).

    Args:
        distribution: a distribution with a mean, a categorical one, or a reshaping of one of these.

    Returns:
        (*batch, *event).

    Raises:
        ValueError: if the distribution transforms its base by more than a reshaping.
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
