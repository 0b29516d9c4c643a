"""Metrics between samples, with and without a trained critic."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from ppgen import metrics as m
from ppgen.evaluation import estimate


def critic(*shapes) -> nn.Module:
    width = sum(int(np.prod(shape)) for shape in shapes)
    return nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, 1))


def gaussians(n: int, shift: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 1, generator=generator)
    return x, y + shift


def test_a_metric_without_a_critic_is_evaluated_on_all_rows():
    x, y = gaussians(50, 1.0)
    assert estimate(m.EnergyDistance(), x, y) == float(m.EnergyDistance()(x, y))


def test_a_critic_finds_the_divergence_on_held_out_rows():
    """For N(0, 1) and N(2, 1), by quadrature; the standard error of 2000 held-out rows each is below 0.01."""
    x, y = gaussians(4000, 2.0)
    grid = np.linspace(-10, 12, 10001)
    p, q = norm.pdf(grid), norm.pdf(grid, 2)
    exact = np.log(2) - np.trapezoid((p * np.log1p(q / p) + q * np.log1p(p / q)) / 2, grid)
    value = estimate(m.JensenShannon(critic, lr=3e-3), x, y, steps=400)
    assert exact - 0.04 < value < exact + 4 * 0.01  # level 3e-5 from above


def test_samples_of_one_distribution_have_distance_zero():
    """A critic that memorizes gains nothing; the standard error of 500 held-out rows is below 0.02."""
    x, y = gaussians(1000, 0.0)
    assert estimate(m.JensenShannon(critic, lr=1e-2), x, y, steps=300) < 4 * 0.02  # level 3e-5


def test_the_own_critic_and_the_random_state_are_kept():
    network = nn.Linear(1, 1)
    before, metric = network.weight.detach().clone(), m.JensenShannon(network)
    torch.manual_seed(3)
    first = torch.rand(3)
    torch.manual_seed(3)
    values = {estimate(metric, *gaussians(64, 1.0), steps=5, seed=4) for _ in range(2)}
    assert len(values) == 1
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(network.weight, before)
    assert metric.network is None


def test_a_critic_needs_four_rows():
    with pytest.raises(ValueError, match="at least four rows"):
        estimate(m.JensenShannon(critic), torch.randn(3, 1), torch.randn(9, 1))
