"""Metrics of moments against their formulas."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from metrics.helpers import close, normal, random_weights
from torch import Tensor

from ppgen.metrics import CORAL, Frechet


def moments(x: Tensor, p: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.average(x, axis=0, weights=p), np.cov(x, rowvar=False, aweights=p, ddof=0)


def test_frechet_is_the_formula(generator):
    x, y, p, q = (
        normal(generator, 30, 4),
        normal(generator, 25, 4),
        random_weights(generator, 30),
        random_weights(generator, 25),
    )
    y = y @ normal(generator, 4, 4) + 1
    (m1, s1), (m2, s2) = moments(x, p), moments(y, q)
    root = scipy.linalg.sqrtm(s1)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(root @ s2 @ root).real)
    close(Frechet()(x, y, p, q), expected, 1e-10)


def test_frechet_of_commuting_covariances(generator):
    """``|m1 - m2|^2 + sum_k (s1_k - s2_k)^2``."""
    axes = torch.linalg.qr(normal(generator, 40, 3) - normal(generator, 40, 3).mean()).Q
    axes = torch.linalg.qr(axes - axes.mean(0)).Q * math.sqrt(40)  # mean zero, covariance one
    s1, s2, shift = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.5], [1.0, -1.0, 2.0]]).double()
    expected = shift.square().sum() + (s1 - s2).square().sum()
    close(Frechet()(axes * s1, axes * s2 + shift), expected, 1e-10)


@pytest.mark.parametrize(("n", "m"), [(3, 4), (3, 20), (20, 3), (1, 1)])
def test_frechet_of_fewer_rows_than_columns(n, m, generator):
    x, y = normal(generator, n, 8).requires_grad_(), (normal(generator, m, 8) + 1).requires_grad_()
    value = Frechet()(x, y)
    a, b = ((z - z.mean(0)).detach() / math.sqrt(len(z)) for z in (x, y))
    shift = (x.mean(0) - y.mean(0)).square().sum().item()
    common = torch.linalg.svdvals(a @ b.T).sum()
    close(value, shift + a.square().sum() + b.square().sum() - 2 * common, 1e-10)
    for gradient in torch.autograd.grad(value, (x, y)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-3


def test_frechet_has_no_gradient_between_equal_samples(generator):
    for x in (normal(generator, 20, 4), normal(generator, 3, 8), torch.ones(3, 2).double()):
        x, y = x.clone().requires_grad_(), x.flip(0).requires_grad_()
        for gradient in torch.autograd.grad(Frechet()(x, y), (x, y)):
            close(gradient, torch.zeros_like(gradient), 1e-12)


def test_coral_is_the_formula(generator):
    x, y, p, q = (
        normal(generator, 9, 3),
        2 * normal(generator, 7, 3),
        random_weights(generator, 9),
        random_weights(generator, 7),
    )
    expected = np.square(moments(x, p)[1] - moments(y, q)[1]).sum() / (4 * 9)
    close(CORAL()(x, y, p, q), expected)
