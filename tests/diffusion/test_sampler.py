"""Samplers against data whose posterior mean is known: N(m, diag d^2), of which z = a v + s e gives E[v | z] in closed
form, and along whose probability-flow ODE (z - a m) / (s^2 + a^2 d^2)^(1/2) stays as it is.
"""

import math
from functools import partial

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO

from ppgen.diffusion import SAMPLERS, SCHEDULES, NoiseLevel, Schedule, sample
from ppgen.models import Diffusion

M, D = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)

# the order each deterministic sampler claims, and the options that make it one
ORDERS = {"ddim": (1, {}), "euler": (1, {}), "heun": (2, {}), "dpm++2m": (2, {}), "edm": (2, {"churn": 0.0})}
STOCHASTIC = [
    ("ancestral", {}),
    ("ancestral", {"variance": "large", "sigma_data": 1.0}),
    ("ddim", {"eta": 1.0}),
    ("ddim", {"eta": 0.5}),
    ("edm", {}),
    ("edm", {"churn": 200.0, "s_min": 0.01, "s_max": 1000.0}),
]
ALL = [(name, options) for name, (_, options) in ORDERS.items()] + [("adaptive", {}), *STOCHASTIC]


def denoise(z, level, m=M, d=D):
    a, s, _ = level
    return m + a * d**2 / (s**2 + (a * d) ** 2) * (z - a * m)


def deviation(level):
    """Of z, for each number."""
    return (level.noise**2 + (level.signal * D) ** 2).sqrt()


def at(levels, i):
    return NoiseLevel(*(rate[i] for rate in levels))


def problem(schedule, count, rows=32):
    """Levels, draws from the exact law at the first, and where the ODE takes them: E[v | z] at the last."""
    levels = Schedule(schedule).grid(count, M)
    first, last = at(levels, 0), at(levels, -1)
    generator = torch.Generator().manual_seed(99)  # other numbers than the samplers' own
    unit = torch.randn(rows, 2, dtype=M.dtype, generator=generator)
    z, end = (level.signal * M + deviation(level) * unit for level in (first, last))
    return levels, z, denoise(end, last)


def test_every_sampler_is_tested():
    assert {name for name, _ in ALL} == set(SAMPLERS)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ORDERS)
def test_deterministic_samplers_converge_to_the_ode_at_the_order_they_claim(sampler, schedule):
    order, options = ORDERS[sampler]
    errors = []
    for steps in (128, 256):
        levels, z, exact = problem(schedule, steps + 1)
        errors.append((sample(denoise, z, levels, sampler=sampler, **options) - exact).abs().max())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert errors[1] < (0.05 if order == 1 else 0.005)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_adaptive_one_keeps_to_its_tolerance(schedule):
    levels, z, exact = problem(schedule, 3)
    fine, rough = (
        (sample(denoise, z, levels, sampler="adaptive", tolerance=tolerance) - exact).abs().max()
        for tolerance in (1e-8, 1e-3)
    )
    assert fine < 1e-6 < rough < 0.1


@pytest.mark.parametrize("schedule", ["cosine", "karras", "straight"])
@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC, ids=str)
def test_stochastic_samplers_draw_from_the_marginal(sampler, options, schedule):
    torch.manual_seed(0)
    n = 4000
    levels, z, _ = problem(schedule, 400, rows=n)
    v = sample(denoise, z, levels, sampler=sampler, **options)
    last = at(levels, -1)
    std = last.signal * D**2 / deviation(last)  # of E[v | z]
    # each of 72 numbers within 4.5 deviations of its mean, and the bias of 400 steps: fails once in 2000 times at most
    assert ((v.mean(0) - M).abs() < 4.5 * std / n**0.5 + 0.01 * std).all()
    assert ((v.var(0) / std**2 - 1).abs() < 4.5 * (2 / n) ** 0.5 + 0.03).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_draws_of_the_right_variance_are_exact_at_any_number_of_steps(schedule):
    torch.manual_seed(0)
    n = 20000
    levels, z, _ = problem(schedule, 4, rows=n)

    def posterior(z, level):
        return (D * level.noise / deviation(level)).expand(z.shape)

    path = sample(denoise, z, levels, sampler="ancestral", variance=posterior, return_path=True)
    for i, state in enumerate(path[:-1]):
        level = at(levels, i)
        # 4 levels, 2 numbers, 5 schedules, mean and deviation: 80 at 4.5 deviations, fails once in 2000 times
        assert ((state.mean(0) - level.signal * M).abs() < 4.5 * deviation(level) / n**0.5).all()
        assert ((state.var(0) / deviation(level) ** 2 - 1).abs() < 4.5 * (2 / n) ** 0.5).all()
    small = sample(denoise, z, levels, sampler="ancestral")
    assert ((small.var(0) / D**2 - 1).abs() > 0.1).any()  # which the small variance is not


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ddim", {"eta": 1.0}), ("ancestral", {"variance": "small"})),
        (("ddim", {"eta": 0.0}), ("euler", {})),
        (("edm", {"churn": 0.0}), ("heun", {})),
    ],
    ids=str,
)
def test_samplers_that_are_one(one, other, schedule):
    levels, z, _ = problem(schedule, 10)
    draws = []
    for sampler, options in (one, other):
        torch.manual_seed(3)
        draws.append(sample(denoise, z, levels, sampler=sampler, **options))
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "karras"])
@pytest.mark.parametrize(("sampler", "options"), ALL, ids=str)
def test_a_rescaled_path_has_the_same_draws(sampler, options, schedule):
    levels, z, _ = problem(schedule, 12)
    size = levels.signal + levels.noise
    draws = []
    for start, level in (
        (z, levels),
        (z / size[0], NoiseLevel(levels.signal / size, levels.noise / size, levels.log_snr)),
    ):
        torch.manual_seed(3)
        draws.append(sample(denoise, start, level, sampler=sampler, **options))
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("sampler", "options"), ALL, ids=str)
def test_one_level_is_the_mean_and_single_precision_is_enough(sampler, options, schedule):
    levels, z, _ = problem(schedule, 1)
    torch.testing.assert_close(sample(denoise, z, levels, sampler=sampler, **options), denoise(z, at(levels, 0)))
    levels, z, _ = problem(schedule, 30)
    single = partial(denoise, m=M.float(), d=D.float())
    v = sample(single, z.float(), NoiseLevel(*(rate.float() for rate in levels)), sampler=sampler, **options)
    assert v.dtype == torch.float32
    assert v.isfinite().all()


@pytest.mark.parametrize(("sampler", "options"), ALL, ids=str)
def test_paths_and_how_often_a_sampler_asks(sampler, options):
    asked = []

    def counted(z, level):
        asked.append(level)
        return denoise(z, level)

    levels, z, _ = problem("straight", 6)
    torch.manual_seed(3)
    path = sample(counted, z, levels, sampler=sampler, return_path=True, **options)
    assert len(path) == 7
    torch.testing.assert_close(path[0], z)
    torch.testing.assert_close(path[-1], denoise(path[-2], at(levels, -1)))
    if sampler != "adaptive":
        assert len(asked) == (11 if sampler in ("heun", "edm") else 6)
    for level in asked:  # churned ones too are rates of a path
        torch.testing.assert_close(level.log_snr, 2 * (level.signal / level.noise).log())
    torch.manual_seed(3)
    near = {"rtol": 1e-3, "atol": 1e-3} if sampler == "adaptive" else {}  # it does not stop at the levels now
    torch.testing.assert_close(sample(denoise, z, levels, sampler=sampler, **options), path[-1], **near)


def test_gradients_pass():
    levels, z, _ = problem("cosine", 6)
    z.requires_grad_()
    for sampler in SAMPLERS:
        (slope,) = torch.autograd.grad(sample(denoise, z, levels, sampler=sampler).sum(), z)
        assert (slope > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "plms"}, r"expected sampler to be one of 'ancestral', .*, got 'plms'"),
        ({"sampler": "heun", "eta": 0.5}, r"sampler='heun' has no such option: .*'eta'"),
        ({"sampler": "ddim", "eta": 1.5}, r"expected eta in \[0, 1\], got 1.5"),
        ({"sampler": "ancestral", "variance": "wide"}, r"expected variance to be 'small', 'large' or a function"),
        ({"sampler": "ancestral", "sigma_data": 0.0}, r"expected sigma_data > 0, got 0.0"),
        ({"sampler": "edm", "churn": -1.0}, r"expected churn of at least 0"),
        ({"sampler": "edm", "s_max": math.inf}, r"sampler='edm' adds noise .* infinite at the first level"),
        ({"sampler": "adaptive", "tolerance": 0.0}, r"expected tolerance > 0, got 0.0"),
    ],
)
def test_samplers_refuse(options, message):
    levels, z, _ = problem("straight", 6)
    with pytest.raises(ValueError, match=message):
        sample(denoise, z, levels, **options)


def test_levels_that_no_sampler_serves():
    levels, z, _ = problem("cosine", 6)
    backward = NoiseLevel(*(rate.flip(0) for rate in levels))
    noiseless = NoiseLevel(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.0, math.inf]))
    for wrong in (backward, noiseless):
        with pytest.raises(ValueError, match="expected levels from the most noise to the least"):
            sample(denoise, z, wrong)
    with pytest.raises(ValueError, match=r"expected levels of shape \(n,\)"):
        sample(denoise, z, at(levels, 0))


# draws of a model


def diffusion(**options):
    torch.manual_seed(0)
    model = Diffusion((2,), hidden=(8,), **options)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_draws_of_a_model_are_those_of_its_program(variance):
    model = diffusion(steps=5, variance=variance)
    torch.manual_seed(1)
    path = model.sample(20, sampler="ancestral", steps=6, return_path=True)
    torch.manual_seed(1)
    with torch.no_grad():
        trace = poutine.trace(model.model).get_trace(torch.zeros(20, 2))
    for i, state in enumerate(path[:-1]):
        torch.testing.assert_close(state, trace.nodes[f"z_{5 - i}"]["value"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_of_levels_and_labels(sampler):
    model = diffusion(levels=5, num_classes=3, steps=None, schedule="straight").train()
    y = torch.tensor([0, 1, 2, 2])
    x = model.sample(4, y, sampler=sampler, steps=7)
    assert x.dtype == torch.int64
    assert tuple(x.shape) == (4, 2)
    assert ((x >= 0) & (x < 5)).all()
    assert model.training


def test_guidance_goes_on_from_the_mean_without_labels():
    model = diffusion(num_classes=3)
    y, draws = torch.tensor([0, 1, 2, 2]), []
    for guidance in (0.0, 1.0, 3.0):
        torch.manual_seed(2)
        draws.append(model.sample(4, y, steps=1, guidance=guidance))
    assert (draws[0] - draws[1]).abs().min() > 1e-4
    torch.testing.assert_close(draws[2], draws[0] + 3 * (draws[1] - draws[0]))


def test_draws_of_contexts():
    model = diffusion(context_dim=2)
    torch.manual_seed(2)
    x = model.sample(2, torch.tensor([[0.0, 1.0], [2.0, 0.0]]), guidance=2.0)
    assert x.isfinite().all()
    with pytest.raises(ValueError, match=r"expected contexts y of shape \(3, 2\)"):
        model.sample(3, torch.zeros(2, 2))


def test_models_refuse():
    plain, sure = diffusion(), diffusion(num_classes=3, label_dropout=0.0)
    with pytest.raises(ValueError, match="guidance without a conditional training"):
        plain.sample(2, guidance=2.0)
    with pytest.raises(ValueError, match="guidance without a conditional training"):
        sure.sample(2, torch.tensor([0, 1]), guidance=2.0)
    with pytest.raises(ValueError, match="end in means already"):
        plain.sample(2, mean=True)
    with pytest.raises(ValueError, match="expected n and steps of at least 1, got 2 and 0"):
        plain.sample(2, steps=0)
    with pytest.raises(ValueError, match="has no such option"):
        plain.sample(2, churn=3.0)
    with pytest.raises(ValueError, match="expected particles of at least 1, got 0"):
        plain.bound(torch.zeros(2, 2), particles=0)


@pytest.mark.parametrize("levels", [None, 4])
def test_the_bound_is_the_chains_evidence(levels):
    pyro.clear_param_store()
    model = diffusion(steps=4, levels=levels, options={"sigma_min": 0.2}).eval()
    x = torch.tensor([[0.3, -1.0], [1.0, 0.5]]) if levels is None else torch.tensor([[0, 3], [1, 2]])
    many = x.repeat(200, 1)
    with torch.no_grad():
        elbo = torch.tensor([-Trace_ELBO().loss(model.model, model.guide, many) for _ in range(20)]) / 200
        bounds = torch.stack([model.bound(many, particles=2).sum() for _ in range(20)]) / 200
    error = (elbo.var() / len(elbo) + bounds.var() / len(bounds)).sqrt()
    # 2 such at 4.5 deviations, of 20 each: fails once in 3000 times
    assert (elbo.mean() - bounds.mean()).abs() < 4.5 * error
    assert error < 0.3
