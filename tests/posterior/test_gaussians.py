"""A batch of Gaussians agrees with torch's multivariate normal."""

import torch
from torch.distributions import MultivariateNormal

from ppgen.posterior.gaussians import GaussianBatch


def test_densities_entropies_and_noise_are_those_of_the_multivariate_normal():
    torch.manual_seed(0)
    batch = GaussianBatch(torch.randn(3, 2).double(), torch.randn(3, 2, 2).double())
    exact = MultivariateNormal(batch.center, batch.root @ batch.root.mT)
    noise = torch.randn(5, 2).double()
    u = batch.rsample(noise)
    torch.testing.assert_close(batch.log_prob(noise.expand(3, 5, 2)), exact.log_prob(u.transpose(0, 1)).T)
    torch.testing.assert_close(batch.entropy, exact.entropy())
    torch.testing.assert_close(batch.whitened(u), noise.expand(3, 5, 2))
