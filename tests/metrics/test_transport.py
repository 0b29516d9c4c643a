"""Metrics of optimal transport against closed forms, SciPy and POT."""

import math
import sys

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from metrics.helpers import close, normal, random_weights, saved_numbers
from torch import Tensor

from ppgen.metrics import EnergyDistance, MaxSlicedWasserstein, Sinkhorn, SlicedWasserstein, Wasserstein

EXACT = [SlicedWasserstein, MaxSlicedWasserstein, Wasserstein]
"""Metrics that are equal in one dimension."""


@pytest.fixture
def generator() -> torch.Generator:
    """Samples for which 300 iterations of Sinkhorn are enough."""
    return torch.Generator().manual_seed(11)


def quantiles(n: int) -> Tensor:
    """A standard normal sample without randomness."""
    return torch.special.ndtri((torch.arange(n).double() + 0.5) / n)


@pytest.mark.parametrize("cls", EXACT)
def test_wasserstein_1_on_a_line_is_that_of_scipy(cls, generator):
    x, y, p, q = (
        normal(generator, 13),
        2 * normal(generator, 8) + 1,
        random_weights(generator, 13),
        random_weights(generator, 8),
    )
    for root in (False, True):
        close(cls(p=1, root=root)(x, y, p, q), scipy.stats.wasserstein_distance(x, y, p, q))


@pytest.mark.parametrize("cls", EXACT)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_wasserstein_on_a_line_is_that_of_pot(cls, p, generator):
    x, y, a, b = (
        normal(generator, 7),
        2 * normal(generator, 5) + 1,
        random_weights(generator, 7),
        random_weights(generator, 5),
    )
    expected = ot.emd2(a.numpy(), b.numpy(), (x[:, None] - y).abs().pow(p).numpy())
    close(cls(p=p)(x, y, a, b), expected)
    close(cls(p=p, root=True)(x, y, a, b), expected ** (1 / p))


@pytest.mark.parametrize("cls", EXACT)
def test_gaussians_on_a_line(cls):
    """``W_2^2 = (m1 - m2)^2 + (s1 - s2)^2``."""
    z = quantiles(2000)[:: 10 if cls is Wasserstein else 1]
    close(cls()(0.5 * z + 1, 2 * z - 1), 6.25, 0.02)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_shift_costs_its_length(p, generator):
    x, shift = normal(generator, 20, 3), torch.tensor([1.0, -2.0, 2.0]).double()
    close(Wasserstein(p=p)(x, x + shift), 3.0**p, 1e-9)
    close(MaxSlicedWasserstein(p=p)(x, x + shift), 3.0**p, 1e-9)
    # The mean of |theta_1|^p over the sphere in three dimensions is 1 / (p + 1).
    torch.manual_seed(0)
    close(SlicedWasserstein(p=p, projections=100_000)(x[:3], x[:3] + shift), 3.0**p / (p + 1), 0.02)


def test_sliced_wasserstein_is_the_mean_over_directions(generator):
    x, y = normal(generator, 9, 2), normal(generator, 6, 2) * torch.tensor([2.0, 0.5]) + 1
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)[:-1]
    line = SlicedWasserstein()
    values = torch.stack([line(x @ t, y @ t) for t in torch.stack((angles.cos(), angles.sin()), 1)])
    torch.manual_seed(0)
    sliced = SlicedWasserstein(projections=20_000)(x, y)
    assert abs(sliced - values.mean()) < 4 * values.std() / math.sqrt(20_000)  # level 6e-5
    assert values.max() * (1 - 1e-5) < MaxSlicedWasserstein()(x, y) < values.max() * (1 + 1e-5)


def test_sliced_wasserstein_is_that_of_pot_on_the_same_lines(generator):
    x, y, p, q = (
        normal(generator, 9, 4),
        normal(generator, 6, 4),
        random_weights(generator, 9),
        random_weights(generator, 6),
    )
    torch.manual_seed(5)
    value = SlicedWasserstein(p=2, projections=30, root=True)(x, y, p, q)
    torch.manual_seed(5)
    theta = torch.nn.functional.normalize(torch.randn(30, 4), dim=1).double()
    expected = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), p.numpy(), q.numpy(), projections=theta.T.numpy().copy(), p=2
    )
    close(value, expected, 1e-6)


def test_max_sliced_gradient_at_a_smooth_maximum(generator):
    """Two samples far apart have one maximum, where the order of rows is constant."""
    x, y = normal(generator, 5, 3).requires_grad_(), normal(generator, 4, 3) + 8

    def value(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return MaxSlicedWasserstein(steps=60)(x, y)

    assert torch.autograd.gradcheck(value, (x,))


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


def entropic_cost(cost: Tensor, p: Tensor, q: Tensor, eps: float) -> float:
    """``OT`` from the plan of POT, without potentials."""
    plan = ot.bregman.sinkhorn_log(p.numpy(), q.numpy(), cost.numpy(), eps, stopThr=1e-11)
    independent = np.outer(p, q)
    return (plan * cost.numpy()).sum() + eps * (plan * np.log(plan / independent)).sum()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("eps", [1.0, 5.0])
def test_sinkhorn_is_that_of_pot(p, eps, generator):
    x, y, a, b = (
        normal(generator, 8, 2),
        normal(generator, 6, 2) + 1,
        random_weights(generator, 8),
        random_weights(generator, 6),
    )

    def by_pot(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> float:
        return entropic_cost((x[:, None] - y).square().sum(-1) ** (p / 2), a, b, eps)

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
def test_sinkhorn_converges_to_exact_transport(p, generator):
    x, y = normal(generator, 20, 2), normal(generator, 15, 2) * 0.7 + 1
    exact = Wasserstein(p=p)(x, y)
    errors = [abs(Sinkhorn(p=p, epsilon=eps, steps=300)(x, y) - exact) / exact for eps in (1.0, 0.1, 0.01, 0.001)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.01


def test_sinkhorn_converges_to_half_the_energy_distance(generator):
    x, y = normal(generator, 9, 2), normal(generator, 6, 2) + 1
    close(Sinkhorn(p=1, epsilon=1e5)(x, y), EnergyDistance(unbiased=False)(x, y) / 2, 1e-4)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_default_number_of_iterations_is_enough(epsilon, generator):
    x, y = normal(generator, 100, 5), normal(generator, 100, 5) * 0.5 + 0.5
    close(Sinkhorn(epsilon=epsilon)(x, y), Sinkhorn(epsilon=epsilon, steps=1000)(x, y), 0.002)


@pytest.mark.parametrize(("p", "debias"), [(1, True), (2, True), (1.5, False)])
def test_sinkhorn_gradients_equal_finite_differences(p, debias, generator):
    metric = Sinkhorn(p=p, epsilon=2.0, unit=1.0, steps=60, debias=debias)
    inputs = (
        normal(generator, 3, 2),
        normal(generator, 4, 2) + 1,
        random_weights(generator, 3),
        random_weights(generator, 4),
    )
    assert torch.autograd.gradcheck(metric, tuple(part.requires_grad_() for part in inputs))


def test_sinkhorn_saves_no_iteration_for_the_backward_pass(generator):
    def saved(steps: int) -> int:
        x, y = normal(generator, 20, 2).requires_grad_(), normal(generator, 20, 2)
        return saved_numbers(Sinkhorn(steps=steps), x, y)

    assert saved(50) == saved(1) > 400


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SlicedWasserstein, {"p": 0.5}, "p: expected a number of at least 1, got 0.5"),
        (Wasserstein, {"p": math.inf}, "p: .*got inf"),
        (SlicedWasserstein, {"projections": 0}, "projections: expected an integer of at least 1, got 0"),
        (SlicedWasserstein, {"projections": 1.5}, "projections: .*got 1.5"),
        (MaxSlicedWasserstein, {"starts": 0}, "starts: .*got 0"),
        (MaxSlicedWasserstein, {"steps": True}, "steps: .*got True"),
        (Sinkhorn, {"epsilon": 0.0}, "epsilon: expected a positive number, got 0.0"),
        (Sinkhorn, {"unit": "median"}, "unit: expected 'mean' or a positive number, got 'median'"),
        (Sinkhorn, {"unit": -1.0}, "unit: .*got -1.0"),
        (Sinkhorn, {"scaling": 1.0}, "scaling: expected a number between 0 and 1, both excluded, got 1.0"),
        (Sinkhorn, {"steps": 0}, "steps: .*got 0"),
    ],
)
def test_options_are_checked(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
