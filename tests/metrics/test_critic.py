"""Metrics with a critic: their invariants, their options, and what a trained critic estimates."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from metrics.critics import RecordingCritic, close, module_from, smooth_critic, two_samples
from metrics.helpers import value_and_gradients
from metrics.registry import CONSTRAINTS, CRITIC_ROWS, PAIRED
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppgen import nets
from ppgen.metrics import (
    CriticMetric,
    FDivergence,
    GradientPenalty,
    Hinge,
    JensenShannon,
    LeastSquares,
    Relativistic,
    SpectralNorm,
    WassersteinDual,
    ZeroCenteredGradientPenalty,
    alpha_divergence,
)

MAKERS = {name: row.make for name, row in CRITIC_ROWS.items()}
LOSSES = [pytest.param(make, ZeroCenteredGradientPenalty(), id=name) for name, make in MAKERS.items()]
LOSSES += [pytest.param(JensenShannon, penalty, id=name) for name, penalty in CONSTRAINTS.items()]
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
every_loss = pytest.mark.parametrize(("make", "penalty"), LOSSES)
"""Every metric with one constraint, and every constraint with one metric: all parts of a critic's loss."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def uniform(rows: int) -> Tensor:
    return torch.full((rows,), 1 / rows, dtype=torch.float64)


def weights_of(critic: nn.Module) -> list[Tensor]:
    """All parameters but the last bias, on which a difference of scores does not depend."""
    return [weight for name, weight in critic.named_parameters() if name != "2.bias"]


# Invariants

REPETITIONS = torch.tensor([1, 3, 0, 2, 1, 1, 4]), torch.tensor([2, 1, 1, 0, 3])


@every
def test_integer_weights_are_repeated_rows(make):
    metric, (x, y) = make(smooth_critic()), two_samples()
    times_x, times_y = REPETITIONS
    x.requires_grad_()
    y.requires_grad_()
    weighted = value_and_gradients(metric(x, y, times_x.double() / 7, times_y * 3), x, y)
    repeated = value_and_gradients(metric(x.repeat_interleave(times_x, 0), y.repeat_interleave(times_y, 0)), x, y)
    close(weighted, repeated)


@pytest.mark.parametrize(("make", "penalty"), [loss for loss in LOSSES if loss.values[1] not in PAIRED])
def test_integer_weights_are_repeated_rows_in_the_loss_of_the_critic(make, penalty):
    metric, (x, y) = make(smooth_critic(), penalty=penalty), two_samples()
    times_x, times_y = REPETITIONS
    weights = weights_of(metric.build(x))
    metric.build(x).eval()  # in which the estimate of a spectral norm is constant
    weighted = value_and_gradients(metric.critic_loss(x, y, times_x.double() / 7, times_y * 3), *weights)
    rows = x.repeat_interleave(times_x, 0), y.repeat_interleave(times_y, 0)
    close(weighted, value_and_gradients(metric.critic_loss(*rows), *weights))


@every_loss
def test_rows_of_weight_zero_have_no_effect(make, penalty):
    """Whatever they contain, NaN included."""
    metric, (x, y) = make(smooth_critic(), penalty=penalty), two_samples()
    wx, wy = torch.ones(7), torch.ones(5)
    wx[[0, 3]], wy[4] = 0.0, 0.0
    weights = weights_of(metric.build(x))
    metric.build(x).eval()
    results = []
    for filler in (3.0, math.nan):
        torch.manual_seed(1)
        a, b = (s.masked_fill(w[:, None] == 0, filler).requires_grad_() for s, w in ((x, wx), (y, wy)))
        value = value_and_gradients(metric(a, b, wx, wy), a, b)
        assert (value[1][[0, 3]] == 0).all()
        assert (value[2][4] == 0).all()
        assert (value[2][:4] != 0).any()
        results.append((*value, *value_and_gradients(metric.critic_loss(a, b, wx, wy), *weights)))
    assert all(part.isfinite().all() for part in results[1])
    close(*results)


@every_loss
def test_a_sample_without_positive_weights_has_value_and_gradients_zero(make, penalty):
    metric, (x, y) = make(smooth_critic(), penalty=penalty), two_samples()
    weights = weights_of(metric.build(x))
    x, y = x.requires_grad_(), (y * math.nan).requires_grad_()
    none = torch.zeros(5)
    for loss, of in ((metric(x, y, None, none), [x, y]), (metric.critic_loss(x, y, None, none), weights)):
        gradients = torch.autograd.grad(loss, of, allow_unused=True)
        assert loss == 0
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


@every
def test_the_order_of_rows_does_not_matter(make):
    metric, (x, y) = make(smooth_critic()), two_samples()
    other = x.flip(0), y.roll(2, 0)
    close(metric(x, y), metric(*other))
    close(metric.critic_loss(x, y), metric.critic_loss(*other))


@every
def test_the_value_is_a_scalar_of_the_dtype_of_the_samples_and_one_row_is_enough(make):
    metric, (x, y) = make(smooth_critic()), two_samples()
    assert metric(x, y).dtype == torch.float64
    assert metric(x, y).shape == metric.critic_loss(x, y).shape == ()
    assert metric(x[:1], y[:1]).isfinite()


@every_loss
def test_programs_and_critic_have_separate_gradients(make, penalty):
    metric, (x, y) = make(smooth_critic(), penalty=penalty), two_samples()
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
def test_the_value_is_the_objective_of_the_critic_and_the_gradient_that_of_the_generator(make):
    critic, (x, y) = smooth_critic(), two_samples()
    y.requires_grad_()
    p, q = uniform(7), uniform(5)
    plain, saturating = make(critic), make(critic, saturating=True)
    scores = critic(x)[:, 0], critic(y)[:, 0]
    objective, generator_loss = plain.critic_objective(*scores, p, q), plain.generator_loss(*scores, p, q)
    expected = torch.autograd.grad(generator_loss, y, retain_graph=True), torch.autograd.grad(objective, y)
    for metric, (gradient,) in zip((plain, saturating), expected, strict=True):
        close(value_and_gradients(metric(x, y), y), (objective.detach(), gradient))
        with torch.no_grad():
            close(metric(x, y), objective.detach())
    close(plain.critic_loss(x, y) - penalty_of(plain, x, y, p, q), -objective)


def penalty_of(metric: CriticMetric, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
    if metric.penalty is None:
        return torch.zeros(()).double()
    return metric.penalty.penalty(metric._scores, (x,), (y,), p, q)


@pytest.mark.parametrize("name", CRITIC_ROWS)
def test_a_critic_that_distinguishes_nothing_gives_zero(name):
    metric = CRITIC_ROWS[name].make(RecordingCritic(CRITIC_ROWS[name].neutral))
    assert metric(*two_samples()) == pytest.approx(0.0, abs=1e-15)


@every
def test_for_equal_distributions_no_critic_gives_more_than_zero(make):
    """Within four standard errors over 200 samples, a level of 3e-5 each."""
    metric = make(smooth_critic())
    with torch.no_grad():
        values = torch.stack([metric(*torch.randn(2, 50, 2).double()) for _ in range(200)])
    error = values.std() / len(values) ** 0.5
    assert values.mean() < 4 * error
    if isinstance(metric, WassersteinDual):
        assert values.mean().abs() < 4 * error


# What the critic is called with, and what it may return


@every
def test_packing_one_row_changes_nothing(make):
    critic, (x, y) = smooth_critic(), two_samples()
    close(make(critic, packing=1)(x, y), make(critic)(x, y))


def test_packed_rows_are_scored_together():
    critic, (x, y) = smooth_critic(6), two_samples(n=10, m=7)
    expected = JensenShannon(critic)(x[:9].reshape(3, 6), y[:6].reshape(2, 6))
    close(JensenShannon(critic, packing=3)(x, y), expected)
    weights = torch.ones(10)
    weights[4] = 0.0  # and thereby its pack
    first_and_last = JensenShannon(critic)(x[[0, 1, 2, 6, 7, 8]].reshape(2, 6), y[:6].reshape(2, 6))
    close(JensenShannon(critic, packing=3)(x, y, weights), first_and_last)


@pytest.mark.parametrize(
    ("event", "packed"), [((), (2,)), ((3,), (6,)), ((1, 4, 5), (2, 4, 5))], ids=["number", "row", "image"]
)
def test_packs_are_joined_along_the_first_axis(event, packed):
    critic = RecordingCritic()
    x = torch.arange(4.0 * math.prod(event)).reshape(4, *event).double()
    JensenShannon(critic, packing=2)(x, x)
    assert critic.calls[0][0].shape == (2, *packed)
    assert torch.equal(critic.calls[0][0].flatten(), x.flatten())


def test_a_critic_gets_sites_in_their_original_shape():
    critic = RecordingCritic()
    image, code, number = (torch.randn(4, *event).double() for event in ((1, 3, 5), (2,), ()))
    JensenShannon(critic)((image, code, number), (image, code, number))
    for call in critic.calls:
        assert [tuple(site.shape) for site in call] == [(4, 1, 3, 5), (4, 2), (4,)]
    assert torch.equal(critic.calls[0][0], image)


def test_the_function_that_builds_the_critic_is_called_once_with_event_shapes():
    calls = []

    def build(*shapes: torch.Size) -> nn.Module:
        calls.append(shapes)
        return nets.Critic(*shapes, hidden=(4,))

    metric = JensenShannon(build, packing=2)
    assert metric.network is None
    x = torch.randn(4, 3).double(), torch.randn(4).double()
    metric.build(x)
    metric(x, x)
    metric.critic_loss(x, x)
    assert calls == [((6,), (2,))]
    assert {parameter.dtype for parameter in metric.network.parameters()} == {torch.float64}
    given = smooth_critic()
    assert JensenShannon(given).build(x[0]) is given


def test_the_default_critic():
    made = JensenShannon(hidden=(7,), frequencies=3).build(torch.zeros(2, 4))
    assert [tuple(p.shape) for p in made.parameters()] == [(7, 10), (7,), (1, 7), (1,)]
    assert JensenShannon().build(torch.zeros(2, 4)).frequencies is None
    with pytest.raises(ValueError, match="frequencies=3 is an option of the default critic"):
        JensenShannon(nets.Critic, frequencies=3)


BAD_OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "wide": (lambda x: x, r"one number per row, shape \(4,\), got \(4, 2\)"),
    "scalar": (lambda x: x.mean(), r"one number per row, shape \(4,\), got \(\)"),
    "transposed": (lambda x: x[:, :1].T, r"one number per row, shape \(4,\), got \(1, 4\)"),
    "tuple": (lambda x: (x, x), r"one number per row, shape \(4,\), got tuple"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_the_output_of_a_critic_is_checked(case):
    forward, message = BAD_OUTPUTS[case]
    metric, x = JensenShannon(module_from(forward), name="mine"), torch.randn(4, 2)
    for call in (metric, metric.critic_loss):
        with pytest.raises(ValueError, match=f"mine: expected the critic to return {message}"):
            call(x, x)


def test_the_output_of_a_critic_of_packs_is_checked():
    with pytest.raises(ValueError, match=r"number per row \(of 2 packed rows each\), shape \(2,\), got \(4,\)"):
        JensenShannon(module_from(lambda x: x.flatten()), packing=2)(torch.randn(4), torch.randn(4))


BAD_SAMPLES: dict[str, tuple[tuple, dict, type[Exception], str]] = {
    "more sites": (
        ((torch.ones(4, 2), torch.ones(4)), torch.ones(4, 2)),
        {},
        ValueError,
        r"got events of shape \[\(2,\), \(\)\] and \[\(2,\)\]; name the same number of sites on both sides",
    ),
    "other events": ((torch.ones(4, 2), torch.ones(4, 3)), {}, ValueError, r"got events of shape \[\(2,\)\] and"),
    "flat against image": ((torch.ones(4, 2), torch.ones(4, 1, 2)), {}, ValueError, "the same sites"),
    "rows that differ": (((torch.ones(4, 2), torch.ones(3)),) * 2, {}, ValueError, "the same n >= 1 at every site"),
    "no rows": ((torch.ones(0, 2), torch.ones(4, 2)), {}, ValueError, "x: expected rows"),
    "levels": ((torch.ones(4, 2).int(),) * 2, {}, ValueError, r"x: expected floating-point events.*use \.float\(\)"),
    "lists": (([[1.0]], torch.ones(4, 2)), {}, TypeError, "x: expected a tensor or a tuple of tensors"),
    "few rows": ((torch.ones(4, 2), torch.ones(2, 2)), {"packing": 3}, ValueError, "packing=3 needs at least as many"),
    "weights": (
        (torch.ones(4, 2), torch.ones(4, 2), torch.ones(3)),
        {},
        ValueError,
        r"wx: expected one weight per row",
    ),
    "more weights": (
        (torch.ones(4, 2), torch.ones(4, 2), None, torch.ones(4, 1)),
        {},
        ValueError,
        r"wy: expected one weight per row, \(4,\), got \(4, 1\)",
    ),
    "two dtypes": (
        (torch.ones(4, 2), torch.ones(4, 2).double()),
        {},
        ValueError,
        "the same dtype, got torch.float32 and torch.float64",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_samples_are_checked(case):
    args, options, error, message = BAD_SAMPLES[case]
    metric = JensenShannon(nets.Critic, **options)
    for call in (metric, metric.critic_loss):
        with pytest.raises(error, match=message):
            call(*args)
    assert metric.network is None  # no network was built


# Training and evaluation


def stochastic_critic() -> nn.Module:
    """Layers whose state or output changes in a forward pass, and some frozen weights."""
    critic = nn.Sequential(
        spectral_norm(nn.Linear(2, 8)), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1)
    ).double()
    critic[1].weight.requires_grad_(False)
    critic[2].eval()
    return critic


def state_of(critic: nn.Module) -> tuple:
    parts = [*critic.parameters(), *critic.buffers()]
    return (
        [tensor.detach().numpy().tobytes() for tensor in parts],
        [p.requires_grad for p in critic.parameters()],
        [m.training for m in critic.modules()],
    )


@pytest.mark.parametrize("penalty", [None, SpectralNorm()])
def test_an_evaluation_does_not_change_the_critic(penalty):
    metric, (x, y) = JensenShannon(stochastic_critic(), penalty=penalty), two_samples()
    critic = metric.build(x)
    before = state_of(critic)
    with torch.no_grad():
        first = metric(x, y)
        assert torch.equal(first, metric(x, y))  # without dropout
    assert state_of(critic) == before
    metric(x, y)  # with gradients it is a forward pass of a training step
    assert state_of(critic)[1:] == before[1:]


def test_the_critic_is_restored_after_an_error():
    critic = stochastic_critic()
    critic.append(module_from(lambda v: v.expand(-1, 2)))
    before = state_of(critic)
    with torch.no_grad(), pytest.raises(ValueError, match="expected the critic"):
        JensenShannon(critic)(*two_samples())
    assert state_of(critic) == before
    with pytest.raises(ValueError, match="expected the critic"):
        JensenShannon(critic)(*two_samples())
    assert state_of(critic)[1:] == before[1:]


# Options


@every
def test_smoothing_treats_a_share_of_the_data_as_generated(make):
    critic, (x, y) = smooth_critic(), two_samples()
    p, q = uniform(7), uniform(5)
    metric, plain = make(critic, smoothing=0.1), make(critic)
    vx, vy = critic(x)[:, 0], critic(y)[:, 0]
    if isinstance(metric, Relativistic):
        difference = vx[:, None] - vy
        objective = p @ (0.9 * difference.sigmoid().log() + 0.1 * (-difference).sigmoid().log()) @ q + math.log(2)
    else:
        loss = metric.adversarial_loss
        objective = p @ (0.9 * loss.real(vx) + 0.1 * loss.fake(vx)) + q @ loss.fake(vy)
    close(metric.critic_loss(x, y), -objective + penalty_of(metric, x, y, p, q))
    close(metric(x, y), plain(x, y))


def test_noise_is_added_to_both_two_samples():
    critic = RecordingCritic()
    x, y = torch.zeros(5000, 2).double(), torch.full((3000, 2), 5.0).double()
    x.requires_grad_()
    metric = JensenShannon(critic, noise=0.3)
    metric(x, y)
    metric.critic_loss(x, y)
    for (a,), (b,) in (critic.calls[:2], critic.calls[2:]):
        for rows, center in ((a, 0.0), (b, 5.0)):
            assert float(rows.detach().mean()) == pytest.approx(center, abs=0.02)  # 5 standard errors
            assert float(rows.detach().std()) == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(critic.calls[0][0], critic.calls[2][0])
    assert critic.calls[0][0].requires_grad
    assert not critic.calls[2][0].requires_grad


def test_jensen_shannon_is_the_row_of_that_name():
    critic, (x, y) = smooth_critic(), two_samples()
    y.requires_grad_()
    both = [value_and_gradients(metric(x, y), y) for metric in (JensenShannon(critic), FDivergence(critic))]
    close(*both)


def test_the_optimizer_is_adam_or_the_given_one():
    weights = [torch.zeros(1, requires_grad=True)]
    optimizer = JensenShannon(RecordingCritic(), lr=0.1, betas=(0.1, 0.2)).optimizer(weights)
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.1, (0.1, 0.2))
    given = partial(torch.optim.SGD, lr=1.0)
    assert JensenShannon(RecordingCritic(), optim=given).optimizer is given


def test_repr_and_name():
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


BAD_OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no critic": (lambda: JensenShannon(3), TypeError, "critic: expected a module, or a function of event shapes"),
    "no steps": (
        lambda: JensenShannon(RecordingCritic(), steps=0),
        ValueError,
        "steps: expected an integer of at least 1, got 0",
    ),
    "fractional pack": (
        lambda: JensenShannon(RecordingCritic(), packing=1.5),
        ValueError,
        "packing: expected an integer",
    ),
    "smoothing": (
        lambda: JensenShannon(RecordingCritic(), smoothing=0.5),
        ValueError,
        "smoothing: expected a share of at least 0",
    ),
    "negative smoothing": (
        lambda: JensenShannon(RecordingCritic(), smoothing=-0.1),
        ValueError,
        "smoothing: expected a share",
    ),
    "noise": (lambda: JensenShannon(RecordingCritic(), noise=-1.0), ValueError, "noise: expected a standard deviation"),
    "nan": (
        lambda: JensenShannon(RecordingCritic(), noise=math.nan),
        ValueError,
        "noise: expected a standard deviation",
    ),
    "penalty": (
        lambda: JensenShannon(RecordingCritic(), penalty=10.0),
        TypeError,
        r"penalty: expected a constraint such as",
    ),
    "a class": (
        lambda: JensenShannon(RecordingCritic(), penalty=SpectralNorm),
        TypeError,
        "penalty: expected a constraint",
    ),
    "no penalty": (
        lambda: WassersteinDual(RecordingCritic()),
        ValueError,
        r"W_1 needs a Lipschitz critic; give GradientPenalty\(",
    ),
    "divergence": (
        lambda: FDivergence(RecordingCritic(), "js"),
        ValueError,
        "divergence: expected one of kl, reverse_kl.*'js'",
    ),
    "no divergence": (lambda: FDivergence(RecordingCritic(), 0.5), TypeError, "divergence: expected"),
    "no module": (
        lambda: JensenShannon(lambda shape: 3)(*two_samples()),
        TypeError,
        "expected the critic function to return a module, got 3",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_are_checked(case):
    make, error, message = BAD_OPTIONS[case]
    with pytest.raises(error, match=message):
        make()


# Trained critics


def train(metric: CriticMetric, sample: Callable[[int], tuple[Tensor, Tensor]], *, steps: int = 400) -> None:
    """With new samples at every step, and a learning rate that decreases to zero."""
    critic = metric.build(sample(4)[0])
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        metric.critic_loss(*sample(256)).backward()
        optimizer.step()
        metric.after_step()


def held_out_value(
    metric: CriticMetric, sample: Callable[[int], tuple[Tensor, Tensor]], *, rows: int = 2000
) -> tuple[float, float]:
    """The value on new samples, and its standard error."""
    with torch.no_grad():
        values = torch.stack([metric(*sample(rows)) for _ in range(30)])
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


SHIFT = 1.2


def gaussians(rows: int) -> tuple[Tensor, Tensor]:
    """Samples of N(SHIFT, 1) and N(0, 1)."""
    return torch.randn(rows, 1) + SHIFT, torch.randn(rows, 1)


def integral(of: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The integral over the line of a function of the two densities."""
    u = torch.linspace(-12, 13, 20001, dtype=torch.float64)
    p, q = (torch.exp(-((u - at) ** 2) / 2) / math.sqrt(2 * math.pi) for at in (SHIFT, 0.0))
    return float(torch.trapezoid(of(p, q), u))


# The metric, the exact value, and the share of it that the critic has to find.
ESTIMATES: dict[str, tuple[Callable[..., CriticMetric], float, float]] = {
    "kl": (MAKERS["kl"], SHIFT**2 / 2, 0.95),
    "reverse_kl": (MAKERS["reverse_kl"], SHIFT**2 / 2, 0.95),
    "jensen_shannon": (
        JensenShannon,
        integral(lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()) / 2),
        0.95,
    ),
    "squared_hellinger": (MAKERS["squared_hellinger"], 2 - 2 * math.exp(-(SHIFT**2) / 8), 0.95),
    "total_variation": (MAKERS["total_variation"], math.erf(SHIFT / math.sqrt(8)), 0.95),
    "pearson": (MAKERS["pearson"], math.exp(SHIFT**2) - 1, 0.85),
    "least squares": (LeastSquares, integral(lambda p, q: (p - q) ** 2 / (p + q) / 2), 0.95),
    "hinge": (Hinge, math.erf(SHIFT / math.sqrt(8)), 0.85),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_trained_critic_finds_the_divergence_of_two_gaussians(name):
    """It is a lower bound, at a level of 3e-5 (four standard errors), and nearly tight."""
    make, exact, share = ESTIMATES[name]
    metric = make(partial(nets.Critic, hidden=(24,), activation="silu"))
    train(metric, gaussians)
    value, error = held_out_value(metric, gaussians)
    assert value < exact + 4 * error
    assert value > share * exact - 4 * error


@pytest.mark.parametrize("weight", [10.0, 40.0])
def test_a_trained_critic_finds_the_distance_of_a_shift(weight):
    """W_1 between a distribution and a shifted copy is the length d of the shift, 2.5.

    The penalty is soft: s d - weight (s - 1)^2 is largest at a gradient norm s = 1 + d / (2 weight); the value is s d.
    """
    shift = torch.tensor([1.5, 2.0])

    def sample(rows: int) -> tuple[Tensor, Tensor]:
        return torch.randn(rows, 2) + shift, torch.randn(rows, 2)

    metric = WassersteinDual(partial(nets.Critic, hidden=(24,)), penalty=GradientPenalty(weight))
    train(metric, sample)
    value, error = held_out_value(metric, sample)
    norm = 1 + 2.5 / (2 * weight)
    assert value == pytest.approx(2.5 * norm, rel=0.04, abs=4 * error)
    x, y = sample(2000)
    u = (y + torch.rand(2000, 1) * (x - y)).requires_grad_()
    norms = torch.autograd.grad(metric.network(u).sum(), u)[0].norm(dim=1)
    assert norms.mean() == pytest.approx(norm, abs=0.05)
    assert norms.quantile(0.99) < norm + 0.1


def test_a_trained_critic_ranks_one_distribution_above_the_other():
    """Relativistic pairing is zero for equal distributions, and increases with their distance up to log 2."""
    values = []
    for shift in (0.0, 1.0, 6.0):

        def sample(rows: int, shift: float = shift) -> tuple[Tensor, Tensor]:
            return torch.randn(rows, 1) + shift, torch.randn(rows, 1)

        metric = Relativistic(partial(nets.Critic, hidden=(24,)))
        train(metric, sample, steps=100)
        values.append(held_out_value(metric, sample, rows=300))
    (none, error), (some, _), (most, _) = values
    assert abs(none) < 0.01 + 4 * error
    assert none + 0.05 < some < most - 0.3 < math.log(2) - 0.3
