"""Batch normalization by domain."""

import pytest
import torch
from torch import nn

from ppgen import ELBO, fit
from ppgen.models import DANN, UNKNOWN
from ppgen.nets import DomainNorm, rows_of

D = torch.tensor([0, 1, 1, 2, 1, 0, 0])  # 1 is the target, all others are the source


@pytest.mark.parametrize("pixels", [(), (3, 2)], ids=["vectors", "images"])
def test_each_domain_has_the_batch_norm_of_its_rows(pixels):
    torch.manual_seed(0)
    layer = DomainNorm(4)
    parts = [(nn.BatchNorm2d if pixels else nn.BatchNorm1d)(4) for _ in range(2)]
    with torch.no_grad():
        for module in (layer, *parts):
            module.weight.copy_(torch.arange(1.0, 5.0))
            module.bias.copy_(torch.arange(4.0))
    for _ in range(3):
        x = 5 + 2 * torch.randn(7, 4, *pixels)
        with rows_of(layer, D):
            z = layer(x)
        expected = torch.empty_like(x)
        for domain, part in enumerate(parts):
            expected[(D == 1) == bool(domain)] = part(x[(D == 1) == bool(domain)])
        torch.testing.assert_close(z, expected)
    assert layer.domains is None
    torch.testing.assert_close(layer.mean, torch.stack([part.running_mean for part in parts]))
    layer.eval()
    torch.testing.assert_close(layer(x), parts[1].eval()(x))


def test_a_domain_with_one_row_is_normalized_by_running_averages():
    layer = DomainNorm(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, -1.0]])
    with rows_of(layer, torch.tensor([0, 0, 1])):
        z = layer(x)
    torch.testing.assert_close(z[2], x[2] / (1 + layer.eps) ** 0.5)
    assert layer.mean[1].tolist() == [0, 0]
    assert layer.mean[0].tolist() == pytest.approx([0.2, 0.35])


def test_particles_share_the_domains_of_rows():
    layer, x = DomainNorm(2), torch.randn(4, 2)
    d = torch.tensor([0, 1, 0, 1])
    with rows_of(layer, d):
        torch.testing.assert_close(layer(torch.cat([x, x])), layer(x).repeat(2, 1))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_features_of_both_domains_get_the_same_mean_and_variance(compile):
    torch.manual_seed(0)
    x, d = torch.randn(80, 5), torch.arange(80) % 2
    x[d == 1] = 3 - 2 * x[d == 1]
    y = torch.where(d == 0, (x[:, 0] > 0).long(), UNKNOWN)
    dann = DANN((5,), 2, hidden=(4,), latent_dim=3, activation="tanh", norm="domain")
    fit(dann.model, dann.guide, (x, y, d), loss=ELBO(), steps=60, compile=compile, progress=False)
    h = [dann.features_of(x[d == k], d=k) for k in range(2)]
    torch.testing.assert_close(h[0].mean(0), h[1].mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(h[0].std(0), h[1].std(0), atol=0.1, rtol=0)
    mixed = dann.features_of(x[d == 0])  # as if they were of the target
    assert float((mixed.mean(0) - h[1].mean(0)).abs().max()) > 0.2
