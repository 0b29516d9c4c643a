"""Solutions of the exercises of "Three programs, from raw data to ArviZ"."""

import itertools

import arviz as az
import numpy as np
import torch
from torch.distributions import HalfCauchy, Normal


def exercise_1() -> None:
    """The probabilities are those of Bayes' theorem."""
    log_weights = torch.tensor([0.2, 0.5, 0.3]).double().log().requires_grad_()
    log_density = Normal(torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([1.0, 0.5, 1.0]).double()).log_prob(
        torch.tensor(0.7).double()
    )
    (derivative,) = torch.autograd.grad(torch.logsumexp(log_weights + log_density, 0), log_weights)
    joint = (log_weights + log_density).exp().detach()
    torch.testing.assert_close(derivative, joint / joint.sum())


def exercise_2() -> None:
    """The prior of eight effects has one factor tau for each; the likelihood and the other priors are the same."""
    effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double()
    error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double()

    def shared(mu, tau, theta):
        prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
        return prior + Normal(theta, error).log_prob(effect).sum()

    for _ in range(5):
        mu, tau, eta = 5 * torch.randn(()).double(), torch.rand(()).double() * 10, torch.randn(8).double()
        theta = mu + tau * eta
        centered = shared(mu, tau, theta) + Normal(mu, tau).log_prob(theta).sum()
        not_centered = shared(mu, tau, theta) + Normal(0.0, 1.0).log_prob(eta).sum()
        torch.testing.assert_close(centered + 8 * tau.log(), not_centered)


def exercise_3() -> None:
    """Two chains of the centers (1, 4), the second with the parts in the other order."""
    x = torch.tensor([1.2, 3.5, 4.4]).double()

    def log_density(weights, centers):
        return torch.logsumexp(weights.log() + Normal(centers, 1.0).log_prob(x[:, None]), 1).sum()

    weights, centers = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.0, 2.0, 4.0]).double()
    values = [log_density(weights[list(o)], centers[list(o)]) for o in itertools.permutations(range(3))]
    torch.testing.assert_close(torch.stack(values), values[0].expand(6))
    rng = np.random.default_rng(0)
    chains = np.array([1.0, 4.0]) + 0.1 * rng.standard_normal((2, 500, 2))
    chains[1] = chains[1, :, ::-1]
    assert float(az.rhat(chains[..., 0])) > 1.5
    assert float(az.rhat(chains.min(2))) < 1.02
