"""Critics: any sites, and random Fourier features."""

import pytest
import torch

from ppgen import nets
from ppgen.metrics import GradientPenalty, JensenShannon


@pytest.mark.parametrize("shapes", [[(3,)], [()], [(1, 6, 5)], [(3,), (2,)], [(2, 4, 4), (3,), ()], [(2, 3)]])
def test_a_critic_accepts_sites_of_any_shape(shapes):
    sites = tuple(torch.randn(4, *shape) for shape in shapes)
    metric = JensenShannon(nets.Critic, penalty=GradientPenalty())
    loss = metric.critic_loss(sites, tuple(site + 1 for site in sites))
    gradients = torch.autograd.grad(loss, [*metric.network.parameters()][:-1])
    assert all((gradient != 0).any() for gradient in gradients)


def test_frequencies_are_constant_features_of_the_input():
    critic = nets.Critic((2,), (), hidden=(4,), frequencies=5, spread=3.0)
    x, z = torch.randn(6, 2), torch.randn(6)
    u = torch.cat([x, z[:, None]], 1)
    angles = u @ critic.frequencies
    assert critic.frequencies.shape == (3, 5)
    features = torch.cat([u, angles.sin(), angles.cos()], 1)
    torch.testing.assert_close(critic(x, z), critic.network(features)[:, 0])
    assert not any("frequencies" in name for name, _ in critic.named_parameters())
    again = nets.Critic((2,), (), hidden=(4,), frequencies=5)
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again(x, z), critic(x, z))
    many = nets.Critic((2,), frequencies=20_000, spread=3.0).frequencies
    assert many.std().item() == pytest.approx(3.0, rel=0.02)  # 40,000 normal draws: five standard errors


def test_frequencies_are_checked():
    with pytest.raises(ValueError, match="frequencies=3 is an option of dense critics, but the first site is an image"):
        nets.Critic((1, 8, 8), frequencies=3)
    with pytest.raises(ValueError, match="frequencies: expected an integer of at least 0, got -1"):
        nets.Critic((2,), frequencies=-1)
