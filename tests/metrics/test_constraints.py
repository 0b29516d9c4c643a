"""Constraints on critics: penalties of known gradients, spectral norms, clipped weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from metrics.critics import close, module_from, smooth_critic, two_samples
from metrics.registry import CONSTRAINTS
from torch import Tensor, nn
from torch.nn.utils import parametrize

import ppgen.metrics
from ppgen import nets
from ppgen.metrics import (
    Constraint,
    GradientPenalty,
    Hinge,
    JensenShannon,
    SpectralNorm,
    WassersteinDual,
    WeightClipping,
    ZeroCenteredGradientPenalty,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_registry_has_every_constraint():
    exported = {
        kind for kind in vars(ppgen.metrics).values() if isinstance(kind, type) and issubclass(kind, Constraint)
    }
    assert {type(penalty) for penalty in CONSTRAINTS.values() if penalty is not None} == exported - {Constraint}


class LinearCritic(nn.Module):
    """v(x, z) = a x + b z, whose gradient is known."""

    def __init__(self, *gradients: list[float]) -> None:
        super().__init__()
        self.gradients = nn.ParameterList(torch.tensor(gradient, dtype=torch.float64) for gradient in gradients)

    def forward(self, *sites: Tensor) -> Tensor:
        parts = [site.flatten(1) @ gradient for site, gradient in zip(sites, self.gradients, strict=True)]
        return torch.stack(parts).sum(0)


def spectral_norm_of(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().flatten(1), ord=2))


def test_spectral_normalization_makes_the_largest_singular_value_one():
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        critic[0].weight.mul_(7.0)
    metric = WassersteinDual(critic, penalty=SpectralNorm())
    x, y = two_samples(width=4)
    metric.build(x)
    for _ in range(30):  # each pass refines the estimate
        metric.critic_loss(x, y)
    assert spectral_norm_of(critic[0].weight) == pytest.approx(1.0, abs=1e-3)
    assert spectral_norm_of(critic[2].weight) == pytest.approx(1.0, abs=1e-3)
    jacobian = torch.autograd.functional.jacobian(critic, x[0])
    assert jacobian.norm() <= 1.001
    first = critic[0].weight.detach().clone()
    SpectralNorm().prepare(critic)  # applying it twice changes nothing
    assert len(critic[0].parametrizations.weight) == 1
    torch.testing.assert_close(critic[0].weight.detach(), first, rtol=1e-3, atol=1e-3)


def test_spectral_normalization_is_on_every_linear_and_convolutional_layer():
    metric = Hinge(partial(nets.Critic, hidden=(3, 4)), penalty=SpectralNorm())
    critic = metric.build(torch.randn(2, 1, 8, 8))
    layers = [part for part in critic.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    assert len(layers) == 3
    assert all(parametrize.is_parametrized(layer, "weight") for layer in layers)
    for _ in range(30):
        metric.critic_loss(torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8))
    critic.eval()
    assert [spectral_norm_of(layer.weight) for layer in layers] == pytest.approx([1.0] * 3, abs=1e-3)


def test_clipped_weights_stay_within_their_bound():
    critic = smooth_critic()
    metric = WassersteinDual(critic, penalty=WeightClipping(0.05))
    metric.build(two_samples()[0])
    assert max(float(p.detach().abs().max()) for p in critic.parameters()) <= 0.05
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(1.0)
    metric.after_step()
    assert all((parameter == 0.05).all() for parameter in critic.parameters())


LINEAR: dict[str, tuple[Constraint, Callable[[float], float]]] = {
    "gradient penalty": (GradientPenalty(3.0), lambda norm: 3 * (norm - 1) ** 2),
    "one-sided": (GradientPenalty(3.0, one_sided=True), lambda norm: 3 * max(0.0, norm - 1) ** 2),
    "at data": (GradientPenalty(3.0, at="data"), lambda norm: 3 * (norm - 1) ** 2),
    "at both": (GradientPenalty(3.0, at="both"), lambda norm: 6 * (norm - 1) ** 2),
    "R1": (ZeroCenteredGradientPenalty(3.0), lambda norm: 1.5 * norm**2),
    "R1 and R2": (ZeroCenteredGradientPenalty(3.0, at="both"), lambda norm: 3 * norm**2),
}


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("gradients", [([0.3, -0.4],), ([3.0, 4.0],), ([2.0, 1.0], [2.0]), ([0.0, 0.0],)])
def test_penalties_of_a_linear_critic(kind, gradients):
    """The norm is over all sites together, 5 or 3 for example; it may be zero, where the root has no derivative."""
    penalty, expected = LINEAR[kind]
    critic = LinearCritic(*gradients)
    sites = [torch.randn(6, len(part)).double() for part in gradients]
    p, q = torch.rand(6).double(), torch.rand(4).double()
    p, q = p / p.sum(), q / q.sum()
    value = penalty.penalty(lambda u: critic(*u), tuple(sites), tuple(s[:4] + 1 for s in sites), p, q)
    norm = math.hypot(*(number for part in gradients for number in part))
    assert value.item() == pytest.approx(expected(norm))
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [*critic.parameters()]))


@pytest.mark.parametrize("at", ["data", "generated", "both"])
def test_penalties_equal_finite_differences(at):
    critic, (x, y) = smooth_critic(), two_samples()
    p, q = torch.rand(7).double(), torch.rand(5).double()

    def norms(u: Tensor) -> Tensor:
        sides = [critic(u + 1e-6 * e) - critic(u - 1e-6 * e) for e in torch.eye(2).double()]
        return torch.cat(sides, 1).norm(dim=1).detach() / 2e-6

    places = {"data": [(x, p)], "generated": [(y, q)], "both": [(x, p), (y, q)]}[at]
    one = sum((w @ (norms(u) - 1) ** 2).item() for u, w in places)
    zero = sum((w @ norms(u) ** 2).item() for u, w in places)
    given = (lambda u: critic(*u)[:, 0], (x,), (y,), p, q)
    assert GradientPenalty(10.0, at=at).penalty(*given).item() == pytest.approx(10 * one, rel=1e-6)
    assert ZeroCenteredGradientPenalty(2.0, at=at).penalty(*given).item() == pytest.approx(zero, rel=1e-6)


def test_interpolates_are_uniform_on_the_lines_between_rows():
    """v(u) = |u|^2 / 2 has the gradient u, whose norm here is t, uniform on the line, with E (t - 1)^2 = 1/3."""
    critic = module_from(lambda u: u.square().sum(1) / 2)
    rows = 4000
    far = torch.nn.functional.normalize(torch.randn(rows, 3).double(), dim=1)
    weights = (torch.full((rows,), 1 / rows, dtype=torch.float64),) * 2
    given = (lambda u: critic(*u), (far,), (torch.zeros(rows, 3).double(),), *weights)
    value = GradientPenalty(1.0).penalty(*given).item()
    assert value == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / rows))  # level 6e-5
    ones = (lambda u: critic(*u), (far,), (far,), *weights)
    assert GradientPenalty(1.0).penalty(*ones).item() == pytest.approx(0.0, abs=1e-12)


def test_a_line_has_the_product_of_the_weights_of_its_ends():
    """If both ends are the same point, the line is that point."""
    critic, rows = module_from(lambda u: u.square().sum(1) / 2), torch.randn(6, 2).double()
    p, q = torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.2, 0.2], [0.3, 0.1, 0.5, 0.0, 0.05, 0.05]]).double()
    value = GradientPenalty(1.0).penalty(lambda u: critic(*u), (rows,), (rows,), p, q)
    close(value, (p * q) / (p * q).sum() @ (rows.norm(dim=1) - 1) ** 2)
    none = GradientPenalty(1.0).penalty(lambda u: critic(*u), (rows,), (rows,), p.ceil() - p, 0 * q)
    assert none == 0


def test_a_penalty_allows_critics_that_ignore_sites():
    metric = JensenShannon(module_from(lambda x, z: x.sum(1)), penalty=GradientPenalty(2.0))
    x = torch.randn(4, 9).double(), torch.randn(4, 2).double()
    plain = JensenShannon(module_from(lambda x, z: x.sum(1)))
    assert (metric.critic_loss(x, x) - plain.critic_loss(x, x)).item() == pytest.approx(2.0 * (3 - 1) ** 2)


BAD_OPTIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "weight": (lambda: GradientPenalty(0.0), "expected a positive weight or bound, got 0.0"),
    "nan weight": (lambda: ZeroCenteredGradientPenalty(math.nan), "expected a positive weight or bound"),
    "place": (lambda: GradientPenalty(at="lines"), "at: expected one of 'interpolates', 'data'.*'lines'"),
    "no line": (
        lambda: ZeroCenteredGradientPenalty(at="interpolates"),
        "at: expected one of 'data', 'generated', 'both'",
    ),
    "bound": (lambda: WeightClipping(-1.0), "expected a positive weight or bound, got -1.0"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_are_checked(case):
    make, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("penalty", [GradientPenalty(), ZeroCenteredGradientPenalty()], ids=lambda p: type(p).__name__)
def test_batch_normalization_under_a_gradient_penalty_is_reported(penalty, recwarn):
    metric = WassersteinDual(nets.Critic((2,), hidden=(4,), norm="batch"), penalty=penalty)
    name = type(penalty).__name__
    with pytest.warns(
        UserWarning, match=rf"Critic has batch normalization \(network.layers.1\) under {name}: .*norm=None"
    ):
        metric.build(torch.randn(4, 2))
    for norm, constraint in ((None, penalty), ("layer", penalty), ("batch", SpectralNorm())):
        WassersteinDual(nets.Critic((2,), hidden=(4,), norm=norm), penalty=constraint).build(torch.randn(4, 2))
    assert not recwarn
