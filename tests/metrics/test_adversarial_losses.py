"""Adversarial losses: conjugates, lower and upper bounds, on discrete distributions in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppgen.metrics import JensenShannon, Relativistic
from ppgen.metrics.adversarial_losses import (
    DIVERGENCES,
    HINGE,
    LEAST_SQUARES,
    WASSERSTEIN,
    AdversarialLoss,
    Divergence,
    alpha_divergence,
)

ALPHAS = {f"alpha {a:g}": alpha_divergence(a) for a in (-1.0, 0.3, 0.5, 2.0, 3.0)}
ROWS = DIVERGENCES | ALPHAS

# The divergences as functions of the weights p and q of two distributions on the same points.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": lambda p, q: (p * (p / q).log()).sum(),
    "reverse_kl": lambda p, q: (q * (q / p).log()).sum(),
    "jensen_shannon": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "squared_hellinger": lambda p, q: (p.sqrt() - q.sqrt()).square().sum(),
    "pearson": lambda p, q: ((p - q) ** 2 / q).sum(),
    "total_variation": lambda p, q: (p - q).abs().sum() / 2,
    "alpha -1": lambda p, q: ((p - q) ** 2 / p).sum() / 2,
    "alpha 0.5": lambda p, q: 2 * (p.sqrt() - q.sqrt()).square().sum(),
    "alpha 2": lambda p, q: ((p - q) ** 2 / q).sum() / 2,
}

# The losses that are not f-divergences of the table: D, and the optimal critic.
OTHERS: dict[str, tuple[AdversarialLoss, Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "least squares": (LEAST_SQUARES, lambda p, q: ((p - q) ** 2 / (p + q)).sum() / 2, lambda p, q: p / (p + q)),
    "hinge": (HINGE, FORMULAS["total_variation"], lambda p, q: (p - q).sign()),
}

every = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def distributions(seed: int, points: int = 6) -> tuple[Tensor, Tensor]:
    """Two distributions of full support."""
    torch.manual_seed(seed)
    p, q = torch.distributions.Dirichlet(torch.full((2, points), 0.7, dtype=torch.float64)).sample() + 1e-3
    return p / p.sum(), q / q.sum()


def linspace(start: float, end: float, count: int) -> Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64)


def ratios(count: int = 4001) -> Tensor:
    """Ratios p / q from 1e-4 to 1e4, 1 among them."""
    return 10 ** linspace(-4, 4, count)


def derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def critic_objective(loss: AdversarialLoss, v: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return p @ loss.real(v) + q @ loss.fake(v)


def optimal_critic(row: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """The critic v with activation(v) = f'(p / q), by bisection, because activations are increasing."""
    target = derivative(row.f, p / q)
    low, high = torch.full_like(p, -60.0), torch.full_like(p, 60.0)
    if row is DIVERGENCES["pearson"]:
        high = torch.full_like(p, 1e5)
    for _ in range(100):
        middle = (low + high) / 2
        below = row.activation(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


# The table


@every
def test_f_is_convex_and_zero_at_one(row):
    assert row.f(torch.ones((), dtype=torch.float64)) == 0
    torch.manual_seed(0)
    u, w = 10 ** (4 * torch.rand(2, 2000, dtype=torch.float64) - 2)
    for share in (0.1, 0.5, 0.8):
        between = row.f(share * u + (1 - share) * w)
        chord = share * row.f(u) + (1 - share) * row.f(w)
        assert (between <= chord + 1e-12 * (1 + chord.abs())).all()


@every
def test_the_conjugate_is_a_supremum(row):
    """At values of the activation, with u on a grid with steps of 0.2 %, which leaves errors of order 1e-6."""
    v, u = linspace(-2, 2, 41), ratios()
    t = row.activation(v)
    lines = t[:, None] * u - row.f(u)
    assert (lines <= row.conjugate(t)[:, None] + 1e-12 * (1 + lines.abs())).all()
    torch.testing.assert_close(lines.amax(1), row.conjugate(t), rtol=1e-5, atol=1e-5)


@every
def test_composed_is_the_conjugate_of_the_activation(row):
    """The activation maps every number into the domain of the conjugate, where it is not NaN."""
    v = linspace(-6, 6, 121)
    torch.testing.assert_close(row.composed(v), row.conjugate(row.activation(v)), rtol=1e-9, atol=1e-12)
    assert row.composed(v).isfinite().all()


@every
def test_the_activation_is_increasing(row):
    v = linspace(-3, 3, 61)
    assert (row.activation(v).diff() > 0).all()


def test_jensen_shannon_is_finite_for_extreme_scores():
    v = torch.tensor([-1e4, 1e4], requires_grad=True)
    row = DIVERGENCES["jensen_shannon"]
    values = torch.cat([row.activation(v), row.composed(v)])
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), v)[0].isfinite().all()


@pytest.mark.parametrize("name", FORMULAS)
def test_each_row_is_the_divergence_of_its_name(name):
    for seed in range(20):
        p, q = distributions(seed)
        torch.testing.assert_close(q @ ROWS[name].f(p / q), FORMULAS[name](p, q), rtol=1e-10, atol=1e-12)


# The objective is a lower bound that is tight at the optimal critic


@every
def test_the_objective_is_a_tight_lower_bound(row):
    for seed in range(20):
        p, q = distributions(seed)
        divergence = q @ row.f(p / q)
        for scale in (0.3, 1.0, 3.0):
            v = scale * torch.randn(len(p), dtype=torch.float64)
            assert critic_objective(row.adversarial_loss, v, p, q) <= divergence + 1e-12
        torch.testing.assert_close(
            critic_objective(row.adversarial_loss, optimal_critic(row, p, q), p, q), divergence, rtol=1e-9, atol=1e-9
        )


@every
def test_for_equal_distributions_the_largest_objective_is_zero(row):
    for seed in range(5):
        p, _ = distributions(seed)
        assert critic_objective(row.adversarial_loss, torch.randn(len(p), dtype=torch.float64), p, p) <= 1e-15
        assert critic_objective(row.adversarial_loss, optimal_critic(row, p, p), p, p) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_objectives_are_tight_lower_bounds(name):
    loss, divergence, critic = OTHERS[name]
    for seed in range(20):
        p, q = distributions(seed)
        for scale in (0.3, 1.0, 3.0):
            v = scale * torch.randn(len(p), dtype=torch.float64)
            assert critic_objective(loss, v, p, q) <= divergence(p, q) + 1e-12
        torch.testing.assert_close(critic_objective(loss, critic(p, q), p, q), divergence(p, q), rtol=1e-12, atol=1e-12)
        assert critic_objective(loss, critic(p, p), p, p) == pytest.approx(0.0, abs=1e-15)


def test_wasserstein_is_the_largest_difference_of_means_over_lipschitz_critics():
    """On points of a line, where W_1 is the area between the distribution functions."""
    for seed in range(20):
        p, q = distributions(seed)
        gaps = torch.rand(len(p) - 1, dtype=torch.float64)
        difference = (p - q).cumsum(0)[:-1]  # of the distribution functions
        distance = difference.abs() @ gaps

        def critic(slopes: Tensor, gaps: Tensor = gaps) -> Tensor:
            return torch.cat([slopes.new_zeros(1), (slopes * gaps).cumsum(0)])

        slopes = 2 * torch.rand(len(gaps), dtype=torch.float64) - 1
        assert critic_objective(WASSERSTEIN, critic(slopes), p, q) <= distance + 1e-12
        torch.testing.assert_close(critic_objective(WASSERSTEIN, critic(-difference.sign()), p, q), distance)


# The upper bound


def nearly_disjoint(share: float = 1e-30) -> tuple[Tensor, Tensor]:
    """Two distributions that have almost disjoint supports."""
    p = torch.tensor([1.0, share], dtype=torch.float64)
    return p, p.flip(0)


@every
def test_the_upper_bound_is_the_divergence_of_disjoint_distributions(row):
    p, q = nearly_disjoint()
    if row.upper_bound is None:
        nearer, _ = nearly_disjoint(1e-15)
        assert q @ row.f(p / q) > 30
        assert q @ row.f(p / q) > 1.5 * (nearer.flip(0) @ row.f(nearer / nearer.flip(0)))
    else:
        assert q @ row.f(p / q) == pytest.approx(row.upper_bound, rel=1e-6)
        for seed in range(20):
            p, q = distributions(seed)
            assert q @ row.f(p / q) <= row.upper_bound
    assert row.adversarial_loss.upper_bound == row.upper_bound


@pytest.mark.parametrize("name", OTHERS)
def test_the_upper_bounds_of_the_other_losses(name):
    loss, divergence, _ = OTHERS[name]
    assert divergence(*nearly_disjoint()) == pytest.approx(loss.upper_bound)
    assert WASSERSTEIN.upper_bound is None


# Amari's family


def test_alpha_divergences_converge_to_the_named_ones():
    for seed in range(10):
        p, q = distributions(seed)
        near = {alpha: q @ alpha_divergence(alpha).f(p / q) for alpha in (1e-6, -1e-6, 1 - 1e-6, 1 + 1e-6)}
        for alpha, value in near.items():
            name = "reverse_kl" if abs(alpha) < 0.5 else "kl"
            torch.testing.assert_close(value, FORMULAS[name](p, q), rtol=1e-4, atol=1e-6)


def test_exp_v_is_the_density_ratio_at_the_optimal_critic():
    p, q = distributions(0)
    for row in (*ALPHAS.values(), DIVERGENCES["reverse_kl"], DIVERGENCES["jensen_shannon"]):
        torch.testing.assert_close(optimal_critic(row, p, q).exp(), p / q, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", [0, 1, 0.0, 1.0, math.nan, math.inf])
def test_alpha_zero_and_one_are_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha: expected a number other than 0 \('reverse_kl'\) and 1 \('kl'\)"):
        alpha_divergence(alpha)


# Relativistic pairing


def test_relativistic_pairing_is_zero_for_equal_distributions_only():
    """The objective is concave in the critic, so that gradient ascent finds the optimal one."""
    metric = Relativistic(torch.nn.Identity())
    for seed in range(5):
        p, q = distributions(seed)
        v = torch.randn(len(p), dtype=torch.float64)
        assert metric.critic_objective(v, v, p, p) <= 0
        assert metric.critic_objective(0 * v, 0 * v, p, q) == pytest.approx(0.0, abs=1e-15)
        v.requires_grad_()
        optimizer = torch.optim.LBFGS([v], max_iter=60, line_search_fn="strong_wolfe")
        optimizer.step(lambda v=v, p=p, q=q, o=optimizer: loss_with_gradient(o, -metric.critic_objective(v, v, p, q)))
        value = float(metric.critic_objective(v, v, p, q).detach())
        assert value > 0.01 * float(FORMULAS["total_variation"](p, q)) ** 2
        assert value < metric.upper_bound
    p, q = nearly_disjoint()
    assert metric.critic_objective(*2 * (torch.tensor([40.0, -40.0]).double(),), p, q) == pytest.approx(math.log(2))
    assert metric.upper_bound == math.log(2)


def loss_with_gradient(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    return loss


# The non-saturating generator


@every
def test_the_non_saturating_generator_has_gradients_of_the_same_direction(row):
    """At the optimal critic the gradient at a fake row is b'(v) grad v or -a'(v) grad v, of the same direction."""
    loss = row.adversarial_loss
    p, q = distributions(3)
    v = optimal_critic(row, p, q).clamp(-8, 8)
    assert (derivative(loss.fake, v) < 0).all()
    assert (-derivative(loss.real, v) < 0).all()


def test_the_two_gradients_of_jensen_shannon_differ_by_the_density_ratio():
    loss = DIVERGENCES["jensen_shannon"].adversarial_loss
    p, q = distributions(3)
    v = optimal_critic(DIVERGENCES["jensen_shannon"], p, q)
    torch.testing.assert_close(derivative(loss.fake, v) / -derivative(loss.real, v), p / q, rtol=1e-6, atol=1e-9)


def test_its_gradient_does_not_vanish_where_the_critic_is_confident():
    confident = linspace(-20, -19, 2)
    jensen_shannon = DIVERGENCES["jensen_shannon"].adversarial_loss
    for loss in (jensen_shannon, LEAST_SQUARES):
        assert (derivative(loss.real, confident).abs() > 0.4).all()
    assert (derivative(jensen_shannon.fake, confident).abs() < 1e-8).all()
    assert HINGE.generator is not None
    assert (derivative(HINGE.generator, confident) == 0.5).all()
    assert (derivative(HINGE.fake, -confident) == -0.5).all()  # where the critic is wrong
    assert (derivative(HINGE.fake, confident) == 0).all()
    assert derivative(JensenShannon(torch.nn.Identity()).adversarial_loss.real, confident).min() > 0.4
