"""Metrics with a critic, as metrics: their laws over all of them and all constraints, and what they estimate."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

import ppgen.metrics
from ppgen import nets
from ppgen.metrics import (
    Constraint,
    CriticMetric,
    FDivergence,
    GradientPenalty,
    Hinge,
    JensenShannon,
    LeastSquares,
    Relativistic,
    SpectralNorm,
    WassersteinDual,
    WeightClipping,
    ZeroCenteredGradientPenalty,
    alpha_divergence,
)
from ppgen.metrics.adversarial_losses import DIVERGENCES

METRICS: dict[str, Callable[..., CriticMetric]] = {
    **{name: partial(FDivergence, divergence=name) for name in DIVERGENCES},
    "alpha": partial(FDivergence, divergence=alpha_divergence(0.7)),
    "gan": JensenShannon,
    "least squares": LeastSquares,
    "hinge": Hinge,
    "wasserstein": lambda critic, **options: WassersteinDual(
        critic, **{"penalty": ZeroCenteredGradientPenalty(), **options}
    ),
    "relativistic": Relativistic,
}
CONSTRAINTS: dict[str, Constraint | None] = {
    "none": None,
    "slope of one": GradientPenalty(3.0),
    "one-sided": GradientPenalty(3.0, one_sided=True),
    "slope of one at data": GradientPenalty(at="data"),
    "slope of one at draws": GradientPenalty(at="generated"),
    "slope of one at both": GradientPenalty(at="both"),
    "R1": ZeroCenteredGradientPenalty(2.0),
    "R2": ZeroCenteredGradientPenalty(at="generated"),
    "R1 and R2": ZeroCenteredGradientPenalty(at="both"),
    "spectral norm": SpectralNorm(),
    "clip": WeightClipping(0.3),
}
PAIRED = [CONSTRAINTS["slope of one"], CONSTRAINTS["one-sided"]]
"""They go by pairs of rows."""
NEUTRAL = {"kl": 1.0, "least squares": 0.5}
"""The number of a critic that tells nothing apart, where it is not 0."""

SIDES = [pytest.param(make, ZeroCenteredGradientPenalty(), id=name) for name, make in METRICS.items()]
SIDES += [pytest.param(JensenShannon, penalty, id=name) for name, penalty in CONSTRAINTS.items()]
every = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
every_side = pytest.mark.parametrize(("make", "penalty"), SIDES)
"""Every metric, and every constraint: what there is for the critic's own loss to be."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(width: int = 2) -> nn.Module:
    """A smooth critic."""
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def samples(n: int = 7, m: int = 5, width: int = 2) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(n, width), torch.randn(m, width) + 0.5
    return x.double(), y.double()


def uniform(rows: int) -> Tensor:
    return torch.full((rows,), 1 / rows, dtype=torch.float64)


class Joint(nn.Module):
    """v(x, z) = a x + b z, of slopes that are known."""

    def __init__(self, *slopes: list[float]) -> None:
        super().__init__()
        self.slopes = nn.ParameterList(torch.tensor(slope, dtype=torch.float64) for slope in slopes)

    def forward(self, *sites: Tensor) -> Tensor:
        parts = [site.flatten(1) @ slope for site, slope in zip(sites, self.slopes, strict=True)]
        return torch.stack(parts).sum(0)


class Seen(nn.Module):
    """Notes what it is called with; its numbers are constant."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *sites: Tensor) -> Tensor:
        self.calls.append(sites)
        return self.value.expand(len(sites[0]))


def bits(tensors: Any) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def weights_of(critic: nn.Module) -> list[Tensor]:
    """All but the last bias, which a difference of numbers does not depend on."""
    return [weight for name, weight in critic.named_parameters() if name != "2.bias"]


def value_and_slopes(value: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return (value.detach(), *torch.autograd.grad(value, of))


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


# The registry


def test_registries_hold_every_exported_critic_metric_and_constraint():
    exported = [getattr(ppgen.metrics, name) for name in ppgen.metrics.__all__]
    classes = {kind for kind in exported if isinstance(kind, type)}
    metrics = {type(make(nn.Identity())) for make in METRICS.values()}
    assert metrics == {kind for kind in classes if issubclass(kind, CriticMetric)} - {CriticMetric}
    constraints = {type(penalty) for penalty in CONSTRAINTS.values() if penalty is not None}
    assert constraints == {kind for kind in classes if issubclass(kind, Constraint)} - {Constraint}


# Weights and rows

TIMES = torch.tensor([1, 3, 0, 2, 1, 1, 4]), torch.tensor([2, 1, 1, 0, 3])


@every
def test_weights_are_repetition(make):
    metric, (x, y) = make(network()), samples()
    times_x, times_y = TIMES
    x.requires_grad_()
    y.requires_grad_()
    weighted = value_and_slopes(metric(x, y, times_x.double() / 7, times_y * 3), x, y)
    repeated = value_and_slopes(metric(x.repeat_interleave(times_x, 0), y.repeat_interleave(times_y, 0)), x, y)
    close(weighted, repeated)


@pytest.mark.parametrize(("make", "penalty"), [side for side in SIDES if side.values[1] not in PAIRED])
def test_weights_are_repetition_to_the_critic_too(make, penalty):
    metric, (x, y) = make(network(), penalty=penalty), samples()
    times_x, times_y = TIMES
    weights = weights_of(metric.build(x))
    metric.build(x).eval()  # in which a spectral norm stays as it is
    weighted = value_and_slopes(metric.critic_loss(x, y, times_x.double() / 7, times_y * 3), *weights)
    rows = x.repeat_interleave(times_x, 0), y.repeat_interleave(times_y, 0)
    close(weighted, value_and_slopes(metric.critic_loss(*rows), *weights))


@every_side
def test_rows_of_weight_zero_reach_nothing(make, penalty):
    """Whatever they hold, be it NaN."""
    metric, (x, y) = make(network(), penalty=penalty), samples()
    wx, wy = torch.ones(7), torch.ones(5)
    wx[[0, 3]], wy[4] = 0.0, 0.0
    weights = weights_of(metric.build(x))
    metric.build(x).eval()
    results = []
    for filler in (3.0, math.nan):
        torch.manual_seed(1)
        a, b = (s.masked_fill(w[:, None] == 0, filler).requires_grad_() for s, w in ((x, wx), (y, wy)))
        value = value_and_slopes(metric(a, b, wx, wy), a, b)
        assert (value[1][[0, 3]] == 0).all()
        assert (value[2][4] == 0).all()
        assert (value[2][:4] != 0).any()
        results.append((*value, *value_and_slopes(metric.critic_loss(a, b, wx, wy), *weights)))
    assert all(part.isfinite().all() for part in results[1])
    close(*results)


@every_side
def test_with_nothing_to_compare_all_is_zero(make, penalty):
    metric, (x, y) = make(network(), penalty=penalty), samples()
    weights = weights_of(metric.build(x))
    x, y = x.requires_grad_(), (y * math.nan).requires_grad_()
    none = torch.zeros(5)
    for loss, of in ((metric(x, y, None, none), [x, y]), (metric.critic_loss(x, y, None, none), weights)):
        slopes = torch.autograd.grad(loss, of, allow_unused=True)
        assert loss == 0
        assert all(slope is None or (slope == 0).all() for slope in slopes)


@every
def test_the_order_of_rows_does_not_matter(make):
    metric, (x, y) = make(network()), samples()
    other = x.flip(0), y.roll(2, 0)
    close(metric(x, y), metric(*other))
    close(metric.critic_loss(x, y), metric.critic_loss(*other))


@every
def test_one_sample_in_another_dtype_or_alone(make):
    metric, (x, y) = make(network()), samples()
    assert metric(x, y).dtype == torch.float64
    assert metric(x, y).shape == metric.critic_loss(x, y).shape == ()
    assert metric(x[:1], y[:1]).isfinite()


# Packing


@every
def test_packing_of_one_is_none(make):
    critic, (x, y) = network(), samples()
    close(make(critic, packing=1)(x, y), make(critic)(x, y))


@every
def test_a_critic_sees_packs(make):
    critic, (x, y) = network(6), samples(n=10, m=7)
    by_hand = make(critic)(x[:9].reshape(3, 6), y[:6].reshape(2, 6))
    close(make(critic, packing=3)(x, y), by_hand)
    keep = torch.ones(10)
    keep[4] = 0.0  # and with it its pack
    first_and_last = make(critic)(x[[0, 1, 2, 6, 7, 8]].reshape(2, 6), y[:6].reshape(2, 6))
    close(make(critic, packing=3)(x, y, keep), first_and_last)


@pytest.mark.parametrize(
    ("event", "packed"), [((), (2,)), ((3,), (6,)), ((1, 4, 5), (2, 4, 5))], ids=["number", "row", "image"]
)
def test_packs_are_joined_along_the_first_axis(event, packed):
    critic = Seen()
    x = torch.arange(4.0 * math.prod(event)).reshape(4, *event).double()
    JensenShannon(critic, packing=2)(x, x)
    assert critic.calls[0][0].shape == (2, *packed)
    assert torch.equal(critic.calls[0][0].flatten(), x.flatten())


# What the critic is called with, and what it may answer


def test_sites_come_as_they_are():
    critic = Seen()
    image, code, number = (torch.randn(4, *event).double() for event in ((1, 3, 5), (2,), ()))
    JensenShannon(critic)((image, code, number), (image, code, number))
    for call in critic.calls:
        assert [tuple(site.shape) for site in call] == [(4, 1, 3, 5), (4, 2), (4,)]
    assert torch.equal(critic.calls[0][0], image)


@pytest.mark.parametrize("shapes", [[(3,)], [()], [(1, 6, 5)], [(3,), (2,)], [(2, 4, 4), (3,), ()], [(2, 3)]])
def test_the_library_critic_takes_any_sites(shapes):
    sites = tuple(torch.randn(4, *shape) for shape in shapes)
    metric = JensenShannon(nets.Critic, penalty=GradientPenalty())
    loss = metric.critic_loss(sites, tuple(site + 1 for site in sites))
    slopes = torch.autograd.grad(loss, [*metric.network.parameters()][:-1])
    assert all((slope != 0).any() for slope in slopes)


def test_frequencies_are_fixed_and_seen():
    torch.manual_seed(0)
    critic = nets.Critic((2,), (), hidden=(4,), frequencies=5, spread=3.0)
    x, z = torch.randn(6, 2), torch.randn(6)
    u = torch.cat([x, z[:, None]], 1)
    angles = u @ critic.frequencies
    assert critic.frequencies.shape == (3, 5)
    seen = torch.cat([u, angles.sin(), angles.cos()], 1)
    torch.testing.assert_close(critic(x, z), critic.network(seen)[:, 0])
    assert not any("frequencies" in name for name, _ in critic.named_parameters())
    again = nets.Critic((2,), (), hidden=(4,), frequencies=5)
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again(x, z), critic(x, z))
    many = nets.Critic((2,), frequencies=20_000, spread=3.0).frequencies
    assert many.std().item() == pytest.approx(3.0, rel=0.02)  # 40,000 normal draws: five standard errors


def test_frequencies_out_of_place_are_refused():
    with pytest.raises(ValueError, match="frequencies=3 are of dense critics, the first site is an image"):
        nets.Critic((1, 8, 8), frequencies=3)
    with pytest.raises(ValueError, match="frequencies: expected a whole number from 0 on, got -1"):
        nets.Critic((2,), frequencies=-1)


def test_without_a_critic_a_metric_makes_one():
    made = JensenShannon(hidden=(7,), frequencies=3).build(torch.zeros(2, 4))
    assert [tuple(p.shape) for p in made.parameters()] == [(7, 10), (7,), (1, 7), (1,)]
    assert JensenShannon().build(torch.zeros(2, 4)).frequencies is None
    with pytest.raises(ValueError, match="frequencies=3 is of the critic that is made where none is given"):
        JensenShannon(nets.Critic, frequencies=3)


def test_the_builder_is_called_once_with_the_shapes_of_events():
    asked = []

    def build(*shapes: torch.Size) -> nn.Module:
        asked.append(shapes)
        return nets.Critic(*shapes, hidden=(4,))

    metric = JensenShannon(build, packing=2)
    assert metric.network is None
    x = torch.randn(4, 3).double(), torch.randn(4).double()
    metric.build(x)
    metric(x, x)
    metric.critic_loss(x, x)
    assert asked == [((6,), (2,))]
    assert {parameter.dtype for parameter in metric.network.parameters()} == {torch.float64}
    given = network()
    assert JensenShannon(given).build(x[0]) is given


def anything(shape: Callable[[Tensor], Any]) -> nn.Module:
    module = nn.Module()
    module.forward = shape
    return module


BAD_OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "wide": (lambda x: x, r"one number a row, shape \(4,\), got \(4, 2\)"),
    "a mean": (lambda x: x.mean(), r"one number a row, shape \(4,\), got \(\)"),
    "turned": (lambda x: x[:, :1].T, r"one number a row, shape \(4,\), got \(1, 4\)"),
    "a pair": (lambda x: (x, x), r"one number a row, shape \(4,\), got tuple"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
@every
def test_a_critic_of_another_output_is_named(make, case):
    forward, message = BAD_OUTPUTS[case]
    metric, x = make(anything(forward), name="mine"), torch.randn(4, 2)
    for call in (metric, metric.critic_loss):
        with pytest.raises(ValueError, match=f"mine: expected of the critic {message}"):
            call(x, x)


def test_a_critic_that_does_not_see_packs_is_told():
    with pytest.raises(ValueError, match=r"number a row \(of 2 packed rows each\), shape \(2,\), got \(4,\)"):
        JensenShannon(anything(lambda x: x.flatten()), packing=2)(torch.randn(4), torch.randn(4))


BAD_SAMPLES: dict[str, tuple[tuple, dict, type[Exception], str]] = {
    "more sites": (
        ((torch.ones(4, 2), torch.ones(4)), torch.ones(4, 2)),
        {},
        ValueError,
        r"the same sites, got events of shape \[\(2,\), \(\)\] and \[\(2,\)\]; name as many sites on both sides",
    ),
    "other events": ((torch.ones(4, 2), torch.ones(4, 3)), {}, ValueError, r"got events of shape \[\(2,\)\] and"),
    "flat against image": ((torch.ones(4, 2), torch.ones(4, 1, 2)), {}, ValueError, "the same sites"),
    "rows that differ": (((torch.ones(4, 2), torch.ones(3)),) * 2, {}, ValueError, "one n >= 1 at every site"),
    "no rows": ((torch.ones(0, 2), torch.ones(4, 2)), {}, ValueError, "x: expected rows"),
    "levels": ((torch.ones(4, 2).int(),) * 2, {}, ValueError, r"x: expected floating-point events.*use \.float\(\)"),
    "lists": (([[1.0]], torch.ones(4, 2)), {}, TypeError, "x: expected a tensor or a tuple of them"),
    "few rows": ((torch.ones(4, 2), torch.ones(2, 2)), {"packing": 3}, ValueError, "packing=3 needs at least as many"),
    "weights": ((torch.ones(4, 2), torch.ones(4, 2), torch.ones(3)), {}, ValueError, r"wx: expected a weight a row"),
    "more weights": (
        (torch.ones(4, 2), torch.ones(4, 2), None, torch.ones(4, 1)),
        {},
        ValueError,
        r"wy: expected a weight a row, \(4,\), got \(4, 1\)",
    ),
    "two dtypes": (
        (torch.ones(4, 2), torch.ones(4, 2).double()),
        {},
        ValueError,
        "one dtype, got torch.float32 and torch.float64",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
@pytest.mark.parametrize("side", ["metric", "critic_loss"])
def test_samples_that_do_not_fit_are_an_error(case, side):
    args, options, error, message = BAD_SAMPLES[case]
    metric = JensenShannon(nets.Critic, **options)
    with pytest.raises(error, match=message):
        (metric if side == "metric" else metric.critic_loss)(*args)
    assert metric.network is None  # nothing was made of it


BAD_OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no critic": (lambda: JensenShannon(3), TypeError, "critic: expected a module, or a function of event shapes"),
    "no steps": (lambda: JensenShannon(Seen(), steps=0), ValueError, "steps: expected a whole number from 1 on, got 0"),
    "half a pack": (lambda: JensenShannon(Seen(), packing=1.5), ValueError, "packing: expected a whole number"),
    "smoothing": (lambda: JensenShannon(Seen(), smoothing=0.5), ValueError, "smoothing: expected a share from 0 to"),
    "unsmoothing": (lambda: JensenShannon(Seen(), smoothing=-0.1), ValueError, "smoothing: expected a share"),
    "noise": (lambda: JensenShannon(Seen(), noise=-1.0), ValueError, "noise: expected a standard deviation"),
    "nan": (lambda: JensenShannon(Seen(), noise=math.nan), ValueError, "noise: expected a standard deviation"),
    "penalty": (lambda: JensenShannon(Seen(), penalty=10.0), TypeError, r"penalty: expected a constraint such as"),
    "a class": (lambda: JensenShannon(Seen(), penalty=SpectralNorm), TypeError, "penalty: expected a constraint"),
    "no penalty": (
        lambda: WassersteinDual(Seen()),
        ValueError,
        r"W_1 needs a Lipschitz critic; give GradientPenalty\(",
    ),
    "divergence": (lambda: FDivergence(Seen(), "js"), ValueError, "divergence: expected one of kl, reverse_kl.*'js'"),
    "no divergence": (lambda: FDivergence(Seen(), 0.5), TypeError, "divergence: expected"),
    "weight": (lambda: GradientPenalty(0.0), ValueError, "expected a positive weight or bound, got 0.0"),
    "nan weight": (lambda: ZeroCenteredGradientPenalty(math.nan), ValueError, "expected a positive weight or bound"),
    "place": (lambda: GradientPenalty(at="lines"), ValueError, "at: expected one of 'interpolates', 'data'.*'lines'"),
    "no line": (
        lambda: ZeroCenteredGradientPenalty(at="interpolates"),
        ValueError,
        "at: expected one of 'data', 'generated', 'both'",
    ),
    "bound": (lambda: WeightClipping(-1.0), ValueError, "expected a positive weight or bound, got -1.0"),
    "no module": (lambda: JensenShannon(lambda shape: 3)(*samples()), TypeError, "function made no module but 3"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_says_so(case):
    make, error, message = BAD_OPTIONS[case]
    with pytest.raises(error, match=message):
        make()


# Who is moved by what


@every_side
def test_the_two_sides_keep_their_gradients_apart(make, penalty):
    metric, (x, y) = make(network(), penalty=penalty), samples()
    weights = weights_of(metric.build(x))
    x.requires_grad_()
    y.requires_grad_()
    metric(x, y).backward()
    assert (x.grad != 0).any()
    assert (y.grad != 0).any()
    assert all(weight.grad is None for weight in weights)
    x.grad = y.grad = None
    metric.critic_loss(x, y).backward()
    assert x.grad is None
    assert y.grad is None
    assert all((weight.grad != 0).any() for weight in weights)
    assert all(weight.requires_grad for weight in weights)


@every
def test_the_value_is_the_payoff_and_the_gradient_the_generators(make):
    critic, (x, y) = network(), samples()
    y.requires_grad_()
    p, q = uniform(7), uniform(5)
    plain, saturating = make(critic), make(critic, saturating=True)
    scores = critic(x)[:, 0], critic(y)[:, 0]
    critic_objective, generators = plain.critic_objective(*scores, p, q), plain.generator_loss(*scores, p, q)
    expected = torch.autograd.grad(generators, y, retain_graph=True), torch.autograd.grad(critic_objective, y)
    for metric, (slope,) in zip((plain, saturating), expected, strict=True):
        close(value_and_slopes(metric(x, y), y), (critic_objective.detach(), slope))
        with torch.no_grad():
            close(metric(x, y), critic_objective.detach())
    close(plain.critic_loss(x, y) - _penalty(plain, x, y, p, q), -critic_objective)


def _penalty(metric: CriticMetric, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
    if metric.penalty is None:
        return torch.zeros(()).double()
    return metric.penalty.penalty(metric._scores, (x,), (y,), p, q)


def lively() -> nn.Module:
    """All that moves in a forward pass, and weights frozen among the others."""
    critic = nn.Sequential(
        spectral_norm(nn.Linear(2, 8)), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1)
    ).double()
    critic[1].weight.requires_grad_(False)
    critic[2].eval()
    return critic


def held(critic: nn.Module) -> tuple:
    parts = [*critic.parameters(), *critic.buffers()]
    return (bits(parts), [p.requires_grad for p in critic.parameters()], [m.training for m in critic.modules()])


@every_side
def test_evaluating_moves_no_critic(make, penalty):
    metric, (x, y) = make(lively(), penalty=penalty), samples()
    critic = metric.build(x)
    before = held(critic)
    with torch.no_grad():
        first = metric(x, y)
        assert torch.equal(first, metric(x, y))  # no dropout either
    assert held(critic) == before
    metric(x, y)  # with gradients it is one pass of a training step
    assert held(critic)[1:] == before[1:]


def test_all_is_put_back_after_an_error_too():
    critic = lively()
    critic.append(anything(lambda v: v.expand(-1, 2)))
    before = held(critic)
    with torch.no_grad(), pytest.raises(ValueError, match="expected of the critic"):
        JensenShannon(critic)(*samples())
    assert held(critic) == before
    with pytest.raises(ValueError, match="expected of the critic"):
        JensenShannon(critic)(*samples())
    assert held(critic)[1:] == before[1:]


# Between equal laws


@pytest.mark.parametrize("name", METRICS)
def test_a_critic_that_tells_nothing_apart_gives_zero(name):
    metric = METRICS[name](Seen(NEUTRAL.get(name, 0.0)))
    assert metric(*samples()) == pytest.approx(0.0, abs=1e-15)


@every
def test_between_equal_laws_no_critic_gives_more_than_zero(make):
    """At a level of 3e-5 each: four standard errors over 200 samples."""
    metric = make(network())
    with torch.no_grad():
        values = torch.stack([metric(*torch.randn(2, 50, 2).double()) for _ in range(200)])
    error = values.std() / len(values) ** 0.5
    assert values.mean() < 4 * error
    if isinstance(metric, WassersteinDual):
        assert values.mean().abs() < 4 * error


# What each option does


@every
def test_smoothing_counts_a_share_of_the_data_as_draws(make):
    critic, (x, y) = network(), samples()
    p, q = uniform(7), uniform(5)
    metric, plain = make(critic, smoothing=0.1), make(critic)
    vx, vy = critic(x)[:, 0], critic(y)[:, 0]
    if isinstance(metric, Relativistic):
        apart = vx[:, None] - vy
        critic_objective = p @ (0.9 * apart.sigmoid().log() + 0.1 * (-apart).sigmoid().log()) @ q + math.log(2)
    else:
        game = metric.game
        critic_objective = p @ (0.9 * game.real(vx) + 0.1 * game.fake(vx)) + q @ game.fake(vy)
    close(metric.critic_loss(x, y), -critic_objective + _penalty(metric, x, y, p, q))
    close(metric(x, y), plain(x, y))


def test_noise_is_added_to_both_samples():
    critic = Seen()
    x, y = torch.zeros(5000, 2).double(), torch.full((3000, 2), 5.0).double()
    x.requires_grad_()
    metric = JensenShannon(critic, noise=0.3)
    metric(x, y)
    metric.critic_loss(x, y)
    for (a,), (b,) in (critic.calls[:2], critic.calls[2:]):
        for seen, center in ((a, 0.0), (b, 5.0)):
            assert float(seen.detach().mean()) == pytest.approx(center, abs=0.02)  # 5 standard errors
            assert float(seen.detach().std()) == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(critic.calls[0][0], critic.calls[2][0])
    assert critic.calls[0][0].requires_grad
    assert not critic.calls[2][0].requires_grad


def test_jensen_shannon_is_the_row_of_that_name():
    critic, (x, y) = network(), samples()
    y.requires_grad_()
    both = [value_and_slopes(metric(x, y), y) for metric in (JensenShannon(critic), FDivergence(critic))]
    close(*both)


def test_its_own_adam_or_another_optimizer():
    weights = [torch.zeros(1, requires_grad=True)]
    optimizer = JensenShannon(Seen(), lr=0.1, betas=(0.1, 0.2)).optimizer(weights)
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.1, (0.1, 0.2))
    given = partial(torch.optim.SGD, lr=1.0)
    assert JensenShannon(Seen(), optim=given).optimizer is given


def test_a_metric_reads_as_it_was_made():
    metric = WassersteinDual(nn.Linear(1, 1), penalty=GradientPenalty(3.0), steps=5, lr=1e-3)
    assert repr(metric).startswith(
        "WassersteinDual(critic=Linear, lr=0.001, steps=5, penalty=GradientPenalty(weight=3.0"
    )
    assert repr(JensenShannon(nets.Critic)) == "JensenShannon(critic=Critic)"
    assert (
        repr(FDivergence(nets.Critic, "kl", name="mine")) == "FDivergence(name='mine', critic=Critic, divergence='kl')"
    )
    assert repr(FDivergence(nets.Critic)) == "FDivergence(critic=Critic)"
    other = FDivergence(nets.Critic, alpha_divergence(0.5))
    assert repr(other) == "FDivergence(critic=Critic, divergence=alpha_divergence(0.5))"
    assert other.name == "alpha_divergence(0.5)"
    assert (FDivergence(nets.Critic, "kl").name, JensenShannon(nets.Critic).name) == ("kl", "JensenShannon")


# Constraints


def largest(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().flatten(1), ord=2))


def test_a_spectral_norm_makes_the_largest_singular_value_one():
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        critic[0].weight.mul_(7.0)
    metric = WassersteinDual(critic, penalty=SpectralNorm())
    x, y = samples(width=4)
    metric.build(x)
    for _ in range(30):  # each pass refines the estimate
        metric.critic_loss(x, y)
    assert largest(critic[0].weight) == pytest.approx(1.0, abs=1e-3)
    assert largest(critic[2].weight) == pytest.approx(1.0, abs=1e-3)
    slope = torch.autograd.functional.jacobian(critic, x[0])
    assert slope.norm() <= 1.001
    first = critic[0].weight.detach().clone()
    SpectralNorm().prepare(critic)  # a second time changes nothing
    assert len(critic[0].parametrizations.weight) == 1
    torch.testing.assert_close(critic[0].weight.detach(), first, rtol=1e-3, atol=1e-3)


def test_a_spectral_norm_is_on_every_linear_and_convolutional_layer():
    metric = Hinge(partial(nets.Critic, hidden=(3, 4)), penalty=SpectralNorm())
    critic = metric.build(torch.randn(2, 1, 8, 8))
    layers = [part for part in critic.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    assert len(layers) == 3
    assert all(parametrize.is_parametrized(layer, "weight") for layer in layers)
    for _ in range(30):
        metric.critic_loss(torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8))
    critic.eval()
    assert [largest(layer.weight) for layer in layers] == pytest.approx([1.0] * 3, abs=1e-3)


def test_clipped_weights_stay_within_their_bound():
    critic = network()
    metric = WassersteinDual(critic, penalty=WeightClipping(0.05))
    metric.build(samples()[0])
    assert max(float(p.detach().abs().max()) for p in critic.parameters()) <= 0.05
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(1.0)
    metric.after_step()
    assert all((parameter == 0.05).all() for parameter in critic.parameters())


LINES: dict[str, tuple[Constraint, Callable[[float], float]]] = {
    "slope of one": (GradientPenalty(3.0), lambda slope: 3 * (slope - 1) ** 2),
    "one-sided": (GradientPenalty(3.0, one_sided=True), lambda slope: 3 * max(0.0, slope - 1) ** 2),
    "at data": (GradientPenalty(3.0, at="data"), lambda slope: 3 * (slope - 1) ** 2),
    "at both": (GradientPenalty(3.0, at="both"), lambda slope: 6 * (slope - 1) ** 2),
    "R1": (ZeroCenteredGradientPenalty(3.0), lambda slope: 1.5 * slope**2),
    "R1 and R2": (ZeroCenteredGradientPenalty(3.0, at="both"), lambda slope: 3 * slope**2),
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("slopes", [([0.3, -0.4],), ([3.0, 4.0],), ([2.0, 1.0], [2.0]), ([0.0, 0.0],)])
def test_penalties_of_a_linear_critic(kind, slopes):
    """Its slope is that of all sites together, 5 or 3, and so on; at a slope of zero too, where a root has none."""
    penalty, expected = LINES[kind]
    critic = Joint(*slopes)
    sites = [torch.randn(6, len(slope)).double() for slope in slopes]
    p, q = torch.rand(6).double(), torch.rand(4).double()
    p, q = p / p.sum(), q / q.sum()
    value = penalty.penalty(lambda u: critic(*u), tuple(sites), tuple(s[:4] + 1 for s in sites), p, q)
    slope = math.hypot(*(number for part in slopes for number in part))
    assert value.item() == pytest.approx(expected(slope))
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [*critic.parameters()]))


@pytest.mark.parametrize("at", ["data", "generated", "both"])
def test_penalties_against_finite_differences(at):
    critic, (x, y) = network(), samples()
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


def test_the_penalty_between_rows_lies_on_their_lines():
    """Of v(u) = |u|^2 / 2, whose slope is u: here of length t, the share of the way, E (t - 1)^2 = 1/3."""
    critic = anything(lambda u: u.square().sum(1) / 2)
    rows = 4000
    far = torch.nn.functional.normalize(torch.randn(rows, 3).double(), dim=1)
    weights = uniform(rows), uniform(rows)
    given = (lambda u: critic(*u), (far,), (torch.zeros(rows, 3).double(),), *weights)
    value = GradientPenalty(1.0).penalty(*given).item()
    assert value == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / rows))  # level 6e-5
    ones = (lambda u: critic(*u), (far,), (far,), *weights)
    assert GradientPenalty(1.0).penalty(*ones).item() == pytest.approx(0.0, abs=1e-12)


def test_a_line_counts_by_the_weights_of_both_of_its_ends():
    """Where both ends are one point, the line is that point."""
    critic, rows = anything(lambda u: u.square().sum(1) / 2), torch.randn(6, 2).double()
    p, q = torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.2, 0.2], [0.3, 0.1, 0.5, 0.0, 0.05, 0.05]]).double()
    value = GradientPenalty(1.0).penalty(lambda u: critic(*u), (rows,), (rows,), p, q)
    close(value, (p * q) / (p * q).sum() @ (rows.norm(dim=1) - 1) ** 2)
    none = GradientPenalty(1.0).penalty(lambda u: critic(*u), (rows,), (rows,), p.ceil() - p, 0 * q)
    assert none == 0


def test_a_penalty_takes_a_critic_that_looks_at_some_sites_alone():
    metric = JensenShannon(anything(lambda x, z: x.sum(1)), penalty=GradientPenalty(2.0))
    x = torch.randn(4, 9).double(), torch.randn(4, 2).double()
    plain = JensenShannon(anything(lambda x, z: x.sum(1)))
    assert (metric.critic_loss(x, x) - plain.critic_loss(x, x)).item() == pytest.approx(2.0 * (3 - 1) ** 2)


# What a trained critic estimates


def train(metric: CriticMetric, draw: Callable[[int], tuple[Tensor, Tensor]], *, steps: int = 400) -> None:
    """On fresh samples at every step, the rate falling to zero."""
    critic = metric.build(draw(4)[0])
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        metric.critic_loss(*draw(256)).backward()
        optimizer.step()
        metric.after_step()


def held_out(
    metric: CriticMetric, draw: Callable[[int], tuple[Tensor, Tensor]], *, rows: int = 2000
) -> tuple[float, float]:
    """The value on fresh samples, and its standard error."""
    with torch.no_grad():
        values = torch.stack([metric(*draw(rows)) for _ in range(30)])
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


SHIFT = 1.2


def gaussians(rows: int) -> tuple[Tensor, Tensor]:
    """N(shift, 1) and N(0, 1)."""
    return torch.randn(rows, 1) + SHIFT, torch.randn(rows, 1)


def by_quadrature(of: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The integral over the line of a function of the two densities."""
    u = torch.linspace(-12, 13, 20001, dtype=torch.float64)
    p, q = (torch.exp(-((u - at) ** 2) / 2) / math.sqrt(2 * math.pi) for at in (SHIFT, 0.0))
    return float(torch.trapezoid(of(p, q), u))


# The metric, the value in closed form, and the share of it that the critic is to find.
ESTIMATES: dict[str, tuple[Callable[..., CriticMetric], float, float]] = {
    "kl": (METRICS["kl"], SHIFT**2 / 2, 0.95),
    "reverse_kl": (METRICS["reverse_kl"], SHIFT**2 / 2, 0.95),
    "jensen_shannon": (
        JensenShannon,
        by_quadrature(lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()) / 2),
        0.95,
    ),
    "squared_hellinger": (METRICS["squared_hellinger"], 2 - 2 * math.exp(-(SHIFT**2) / 8), 0.95),
    "total_variation": (METRICS["total_variation"], math.erf(SHIFT / math.sqrt(8)), 0.95),
    "pearson": (METRICS["pearson"], math.exp(SHIFT**2) - 1, 0.85),
    "least squares": (LeastSquares, by_quadrature(lambda p, q: (p - q) ** 2 / (p + q) / 2), 0.95),
    "hinge": (Hinge, math.erf(SHIFT / math.sqrt(8)), 0.85),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_trained_critic_finds_the_divergence_of_two_gaussians(name):
    """From below, at a level of 3e-5 (four standard errors), and nearly all of it."""
    make, exact, share = ESTIMATES[name]
    metric = make(partial(nets.Critic, hidden=(24,), activation="silu"))
    train(metric, gaussians)
    value, error = held_out(metric, gaussians)
    assert value < exact + 4 * error
    assert value > share * exact - 4 * error


@pytest.mark.parametrize("weight", [10.0, 40.0])
def test_a_trained_critic_finds_the_distance_of_a_shift(weight):
    """W_1 of a law and its copy, shifted, is the length d of the shift, 2.5.

    The penalty is soft: s d - weight (s - 1)^2 is largest at a slope s = 1 + d / (2 weight), and the value is s d.
    """
    shift = torch.tensor([1.5, 2.0])

    def draw(rows: int) -> tuple[Tensor, Tensor]:
        return torch.randn(rows, 2) + shift, torch.randn(rows, 2)

    metric = WassersteinDual(partial(nets.Critic, hidden=(24,)), penalty=GradientPenalty(weight))
    train(metric, draw)
    value, error = held_out(metric, draw)
    slope = 1 + 2.5 / (2 * weight)
    assert value == pytest.approx(2.5 * slope, rel=0.04, abs=4 * error)
    x, y = draw(2000)
    u = (y + torch.rand(2000, 1) * (x - y)).requires_grad_()
    slopes = torch.autograd.grad(metric.network(u).sum(), u)[0].norm(dim=1)
    assert slopes.mean() == pytest.approx(slope, abs=0.05)
    assert slopes.quantile(0.99) < slope + 0.1


def test_a_trained_critic_ranks_one_law_above_the_other():
    """Relativistic pairing: zero between equal laws, and more the further they are apart, up to log 2."""
    found = []
    for shift in (0.0, 1.0, 6.0):

        def draw(rows: int, shift: float = shift) -> tuple[Tensor, Tensor]:
            return torch.randn(rows, 1) + shift, torch.randn(rows, 1)

        metric = Relativistic(partial(nets.Critic, hidden=(24,)))
        train(metric, draw, steps=100)
        found.append(held_out(metric, draw, rows=300))
    (none, error), (some, _), (most, _) = found
    assert abs(none) < 0.01 + 4 * error
    assert none + 0.05 < some < most - 0.3 < math.log(2) - 0.3
