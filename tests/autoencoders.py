"""Small autoencoders with every likelihood and network, and data for them."""

from typing import Any

import torch
from pyro import poutine

LIKELIHOODS: dict[str, dict[str, Any]] = {
    "bernoulli": {"likelihood": "bernoulli"},
    "categorical": {"likelihood": "categorical", "levels": 3},
    "fixed": {"covariance": "fixed"},
    "scalar": {"covariance": "scalar"},
    "diagonal": {"covariance": "diagonal"},
    "low_rank": {"covariance": "low_rank", "rank": 2},
    "full": {"covariance": "full"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "dense": {"network": "dense", "event_shape": (6,), "hidden": (16,)},
    "convolutional": {"network": "convolutional", "event_shape": (2, 3, 5), "hidden": (8,)},
}  # growing networks have unused branches at their last resolution: see tests/training/test_progressive.py


def build(cls, likelihood, network, **options):
    return cls(**{"latent_dim": 2, **NETWORKS[network], **LIKELIHOODS[likelihood], **options})


def make_data(likelihood, network, n=48):
    """Rows generated from one latent factor, in the support of the likelihood."""
    shape = NETWORKS[network]["event_shape"]
    factor = torch.randn(n, *[1] * len(shape))
    x = 2 * factor * torch.randn(shape) + 0.3 * torch.randn(n, *shape)
    if likelihood == "bernoulli":
        return (x > 0).float()
    return torch.bucketize(x, torch.tensor([-0.5, 0.5])) if likelihood == "categorical" else x


def log_joint(model, x, y=None):
    """log p(x, z) - log q(z | x) and its gradient with respect to every parameter."""
    guide_trace = poutine.trace(model.guide).get_trace(x, y)
    joint = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(x, y)
    value = joint.log_prob_sum() - guide_trace.log_prob_sum()
    return value, *torch.autograd.grad(value, list(model.parameters()))
