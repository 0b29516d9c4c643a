"""Transport and moments against closed forms, SciPy and POT; bad options."""

import math
import sys

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from ppgen.metrics import CORAL, EnergyDistance, Frechet, MaxSlicedWasserstein, Sinkhorn, SlicedWasserstein, Wasserstein
from ppgen.metrics.slices import line_plan


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def weights(generator: torch.Generator, n: int) -> Tensor:
    raw = torch.rand(n, generator=generator, dtype=torch.float64)
    return raw / raw.sum()


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def quantiles(n: int) -> Tensor:
    """A standard normal sample without randomness."""
    return torch.special.ndtri((torch.arange(n).double() + 0.5) / n)


EXACT = [SlicedWasserstein, MaxSlicedWasserstein, Wasserstein]
"""All the same on a line."""


@pytest.mark.parametrize("cls", EXACT)
def test_wasserstein_1_on_a_line_is_scipys(cls, generator):
    x, y, p, q = normal(generator, 13), 2 * normal(generator, 8) + 1, weights(generator, 13), weights(generator, 8)
    for root in (False, True):
        close(cls(p=1, root=root)(x, y, p, q), scipy.stats.wasserstein_distance(x, y, p, q))


@pytest.mark.parametrize("cls", EXACT)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_wasserstein_on_a_line_is_pots(cls, p, generator):
    x, y, a, b = normal(generator, 7), 2 * normal(generator, 5) + 1, weights(generator, 7), weights(generator, 5)
    expected = ot.emd2(a.numpy(), b.numpy(), (x[:, None] - y).abs().pow(p).numpy())
    close(cls(p=p)(x, y, a, b), expected)
    close(cls(p=p, root=True)(x, y, a, b), expected ** (1 / p))


@pytest.mark.parametrize("cls", EXACT)
def test_gaussians_on_a_line(cls):
    """``W_2^2 = (m1 - m2)^2 + (s1 - s2)^2``."""
    z = quantiles(2000)
    close(
        cls()(0.5 * z + 1, 2 * z - 1) if cls is not Wasserstein else cls()(0.5 * z[::10] + 1, 2 * z[::10] - 1),
        6.25,
        0.02,
    )


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_shift_costs_its_length(p, generator):
    x, shift = normal(generator, 20, 3), torch.tensor([1.0, -2.0, 2.0]).double()
    close(Wasserstein(p=p)(x, x + shift), 3.0**p, 1e-9)
    close(MaxSlicedWasserstein(p=p)(x, x + shift), 3.0**p, 1e-9)
    # The mean of |theta_1|^p over the sphere in three dimensions is 1 / (p + 1).
    torch.manual_seed(0)
    close(SlicedWasserstein(p=p, projections=100_000)(x[:3], x[:3] + shift), 3.0**p / (p + 1), 0.02)


def test_sliced_is_the_mean_over_directions(generator):
    x, y = normal(generator, 9, 2), normal(generator, 6, 2) * torch.tensor([2.0, 0.5]) + 1
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)[:-1]
    line = SlicedWasserstein()
    values = torch.stack([line(x @ t, y @ t) for t in torch.stack((angles.cos(), angles.sin()), 1)])
    torch.manual_seed(0)
    sliced = SlicedWasserstein(projections=20_000)(x, y)
    assert abs(sliced - values.mean()) < 4 * values.std() / math.sqrt(20_000)  # level 6e-5
    assert values.max() * (1 - 1e-5) < MaxSlicedWasserstein()(x, y) < values.max() * (1 + 1e-5)


def test_sliced_by_pot_on_the_same_lines(generator):
    x, y, p, q = normal(generator, 9, 4), normal(generator, 6, 4), weights(generator, 9), weights(generator, 6)
    torch.manual_seed(5)
    value = SlicedWasserstein(p=2, projections=30, root=True)(x, y, p, q)
    torch.manual_seed(5)
    theta = torch.nn.functional.normalize(torch.randn(30, 4), dim=1).double()
    expected = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), p.numpy(), q.numpy(), projections=theta.T.numpy().copy(), p=2
    )
    close(value, expected, 1e-6)


def test_max_sliced_gradient_at_a_smooth_maximum(generator):
    """Two clouds far apart: one maximum, where no rows change places."""
    x, y = normal(generator, 5, 3).requires_grad_(), normal(generator, 4, 3) + 8

    def value(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return MaxSlicedWasserstein(steps=60)(x, y)

    assert torch.autograd.gradcheck(value, (x,))


def test_line_plan_has_the_marginals_and_keeps_the_order(generator):
    u, v, p, q = normal(generator, 3, 6), normal(generator, 3, 4), weights(generator, 6), weights(generator, 4)
    i, j, mass = line_plan(u, v, p, q)
    assert mass.min() >= 0
    for line in range(3):
        close(torch.zeros(6).double().index_add(0, i[line], mass[line]), p)
        close(torch.zeros(4).double().index_add(0, j[line], mass[line]), q)
        moved = mass[line] > 1e-15
        assert (u[line, i[line, moved]].diff() >= 0).all()
        assert (v[line, j[line, moved]].diff() >= 0).all()


# Exact transport


def test_wasserstein_is_between_the_sliced_ones_and_the_mean_cost(generator):
    x, y = normal(generator, 12, 3), normal(generator, 10, 3) + 1
    exact = Wasserstein()(x, y)
    mean_cost = (x[:, None] - y).square().sum(-1).mean()
    assert SlicedWasserstein()(x, y) < MaxSlicedWasserstein()(x, y) < exact < mean_cost


def test_wasserstein_in_single_precision(generator):
    x, y = normal(generator, 12, 3), normal(generator, 10, 3) + 1
    close(Wasserstein()(x.float(), y.float()), Wasserstein()(x, y).float(), 1e-6)


def test_wasserstein_without_pot(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"Wasserstein: .*pip install pot"):
        Wasserstein()(torch.zeros(2, 1), torch.ones(2, 1))


# Sinkhorn


def regularized(cost: Tensor, p: Tensor, q: Tensor, eps: float) -> float:
    """``OT`` by POT's plan, which needs no potentials."""
    plan = ot.bregman.sinkhorn_log(p.numpy(), q.numpy(), cost.numpy(), eps, stopThr=1e-11)
    independent = np.outer(p, q)
    return (plan * cost.numpy()).sum() + eps * (plan * np.log(plan / independent)).sum()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("eps", [1.0, 5.0])
def test_sinkhorn_is_pots(p, eps, generator):
    x, y, a, b = normal(generator, 8, 2), normal(generator, 6, 2) + 1, weights(generator, 8), weights(generator, 6)

    def by_pot(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> float:
        return regularized((x[:, None] - y).square().sum(-1) ** (p / 2), a, b, eps)

    options = {"p": p, "epsilon": eps, "unit": 1.0, "steps": 150}
    between = by_pot(x, y, a, b)
    close(Sinkhorn(**options, debias=False)(x, y, a, b), between, 1e-8)
    debiased = between - by_pot(x, x, a, a) / 2 - by_pot(y, y, b, b) / 2
    close(Sinkhorn(**options)(x, y, a, b), debiased, 1e-7)


def test_sinkhorn_unit_is_the_mean_cost(generator):
    x, y = normal(generator, 8, 2), normal(generator, 6, 2) + 1
    mean = (x[:, None] - y).square().sum(-1).mean().item()
    close(Sinkhorn(epsilon=0.1)(x, y), Sinkhorn(epsilon=0.1, unit=mean)(x, y))
    close(Sinkhorn(epsilon=0.1)(3 * x, 3 * y), 9 * Sinkhorn(epsilon=0.1)(x, y))


@pytest.mark.parametrize("p", [1, 2])
def test_sinkhorn_becomes_exact_transport(p, generator):
    x, y = normal(generator, 20, 2), normal(generator, 15, 2) * 0.7 + 1
    exact = Wasserstein(p=p)(x, y)
    errors = [abs(Sinkhorn(p=p, epsilon=eps, steps=300)(x, y) - exact) / exact for eps in (1.0, 0.1, 0.01, 0.001)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.01


def test_sinkhorn_becomes_half_the_energy_distance(generator):
    x, y = normal(generator, 9, 2), normal(generator, 6, 2) + 1
    close(Sinkhorn(p=1, epsilon=1e5)(x, y), EnergyDistance(unbiased=False)(x, y) / 2, 1e-4)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_default_iterations_are_enough(epsilon, generator):
    x, y = normal(generator, 100, 5), normal(generator, 100, 5) * 0.5 + 0.5
    close(Sinkhorn(epsilon=epsilon)(x, y), Sinkhorn(epsilon=epsilon, steps=1000)(x, y), 0.002)


@pytest.mark.parametrize(("p", "debias"), [(1, True), (2, True), (1.5, False)])
def test_sinkhorn_gradients_are_those_of_finite_differences(p, debias, generator):
    metric = Sinkhorn(p=p, epsilon=2.0, unit=1.0, steps=60, debias=debias)
    inputs = (normal(generator, 3, 2), normal(generator, 4, 2) + 1, weights(generator, 3), weights(generator, 4))
    assert torch.autograd.gradcheck(metric, tuple(part.requires_grad_() for part in inputs))


def test_sinkhorn_keeps_no_iteration_for_the_gradient(generator):
    def kept(steps: int) -> int:
        sizes = []
        x, y = normal(generator, 20, 2).requires_grad_(), normal(generator, 20, 2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            Sinkhorn(steps=steps)(x, y)
        return sum(sizes)

    assert kept(50) == kept(1) > 400


# Moments


def moments(x: Tensor, p: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.average(x, axis=0, weights=p), np.cov(x, rowvar=False, aweights=p, ddof=0)


def test_frechet_is_the_formula(generator):
    x, y, p, q = normal(generator, 30, 4), normal(generator, 25, 4), weights(generator, 30), weights(generator, 25)
    y = y @ normal(generator, 4, 4) + 1
    (m1, s1), (m2, s2) = moments(x, p), moments(y, q)
    root = scipy.linalg.sqrtm(s1)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(root @ s2 @ root).real)
    close(Frechet()(x, y, p, q), expected, 1e-10)


def test_frechet_of_axes(generator):
    """Commuting covariances: ``|m1 - m2|^2 + sum_k (s1_k - s2_k)^2``."""
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
    x, y, p, q = normal(generator, 9, 3), 2 * normal(generator, 7, 3), weights(generator, 9), weights(generator, 7)
    expected = np.square(moments(x, p)[1] - moments(y, q)[1]).sum() / (4 * 9)
    close(CORAL()(x, y, p, q), expected)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SlicedWasserstein, {"p": 0.5}, "p: expected a number of 1 or more, got 0.5"),
        (Wasserstein, {"p": math.inf}, "p: .*got inf"),
        (SlicedWasserstein, {"projections": 0}, "projections: expected a whole number of 1 or more, got 0"),
        (SlicedWasserstein, {"projections": 1.5}, "projections: .*got 1.5"),
        (MaxSlicedWasserstein, {"starts": 0}, "starts: .*got 0"),
        (MaxSlicedWasserstein, {"steps": True}, "steps: .*got True"),
        (Sinkhorn, {"epsilon": 0.0}, "epsilon: expected a positive number, got 0.0"),
        (Sinkhorn, {"unit": "median"}, "unit: expected 'mean' or a positive number, got 'median'"),
        (Sinkhorn, {"unit": -1.0}, "unit: .*got -1.0"),
        (Sinkhorn, {"scaling": 1.0}, "scaling: expected a number between 0 and 1, excluded, got 1.0"),
        (Sinkhorn, {"steps": 0}, "steps: .*got 0"),
    ],
)
def test_options_out_of_range(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
