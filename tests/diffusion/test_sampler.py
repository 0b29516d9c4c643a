"""Samplers on Gaussian data N(m, diag d^2).

E[v | z] for z = a v + s e has a closed form, and (z - a m) / (s^2 + a^2 d^2)^(1/2) is constant along solutions of the
probability-flow ODE.
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

# the order of each deterministic sampler, and the options that make it deterministic
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


def marginal_std(level):
    """The standard deviation of each number of z."""
    return (level.noise**2 + (level.signal * D) ** 2).sqrt()


def at(levels, i):
    return NoiseLevel(*(rate[i] for rate in levels))


def problem(schedule, count, rows=32):
    """Levels, exact samples at the first level, and the exact result of the ODE: E[v | z] at the last level."""
    levels = Schedule(schedule).grid(count, M)
    first, last = at(levels, 0), at(levels, -1)
    generator = torch.Generator().manual_seed(99)  # independent of the samplers' random numbers
    unit = torch.randn(rows, 2, dtype=M.dtype, generator=generator)
    z, end = (level.signal * M + marginal_std(level) * unit for level in (first, last))
    return levels, z, denoise(end, last)


def test_every_sampler_is_tested():
    assert {name for name, _ in ALL} == set(SAMPLERS)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ORDERS)
def test_deterministic_samplers_converge_to_the_ode_at_their_order(sampler, schedule):
    order, options = ORDERS[sampler]
    errors = []
    for steps in (128, 256):
        levels, z, exact = problem(schedule, steps + 1)
        errors.append((sample(denoise, z, levels, sampler=sampler, **options) - exact).abs().max())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert errors[1] < (0.05 if order == 1 else 0.005)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_adaptive_sampler_meets_its_tolerance(schedule):
    levels, z, exact = problem(schedule, 3)
    fine, rough = (
        (sample(denoise, z, levels, sampler="adaptive", tolerance=tolerance) - exact).abs().max()
        for tolerance in (1e-8, 1e-3)
    )
    assert fine < 1e-6 < rough < 0.1


@pytest.mark.parametrize("schedule", ["cosine", "karras", "straight"])
@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC, ids=str)
def test_stochastic_samplers_sample_from_the_marginal(sampler, options, schedule):
    torch.manual_seed(0)
    n = 4000
    levels, z, _ = problem(schedule, 400, rows=n)
    v = sample(denoise, z, levels, sampler=sampler, **options)
    last = at(levels, -1)
    std = last.signal * D**2 / marginal_std(last)  # of E[v | z]
    # 72 numbers within 4.5 standard errors, plus the bias of 400 steps (p-value 1 / 2000)
    assert ((v.mean(0) - M).abs() < 4.5 * std / n**0.5 + 0.01 * std).all()
    assert ((v.var(0) / std**2 - 1).abs() < 4.5 * (2 / n) ** 0.5 + 0.03).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_sampling_with_the_exact_variance_is_exact_for_any_number_of_steps(schedule):
    torch.manual_seed(0)
    n = 20000
    levels, z, _ = problem(schedule, 4, rows=n)

    def posterior(z, level):
        return (D * level.noise / marginal_std(level)).expand(z.shape)

    path = sample(denoise, z, levels, sampler="ancestral", variance=posterior, return_path=True)
    for i, state in enumerate(path[:-1]):
        level = at(levels, i)
        # 4 levels, 2 numbers, 5 schedules, mean and variance: 80 numbers at 4.5 standard errors (p-value 1 / 2000)
        assert ((state.mean(0) - level.signal * M).abs() < 4.5 * marginal_std(level) / n**0.5).all()
        assert ((state.var(0) / marginal_std(level) ** 2 - 1).abs() < 4.5 * (2 / n) ** 0.5).all()
    small = sample(denoise, z, levels, sampler="ancestral")
    assert ((small.var(0) / D**2 - 1).abs() > 0.1).any()  # the small variance is not exact


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
def test_samplers_that_are_equivalent(one, other, schedule):
    levels, z, _ = problem(schedule, 10)
    draws = []
    for sampler, options in (one, other):
        torch.manual_seed(3)
        draws.append(sample(denoise, z, levels, sampler=sampler, **options))
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("schedule", ["cosine", "karras"])
@pytest.mark.parametrize(("sampler", "options"), ALL, ids=str)
def test_a_rescaled_path_has_the_same_samples(sampler, options, schedule):
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
def test_one_level_gives_the_mean_and_single_precision_is_finite(sampler, options, schedule):
    levels, z, _ = problem(schedule, 1)
    torch.testing.assert_close(sample(denoise, z, levels, sampler=sampler, **options), denoise(z, at(levels, 0)))
    levels, z, _ = problem(schedule, 30)
    single = partial(denoise, m=M.float(), d=D.float())
    v = sample(single, z.float(), NoiseLevel(*(rate.float() for rate in levels)), sampler=sampler, **options)
    assert v.dtype == torch.float32
    assert v.isfinite().all()


@pytest.mark.parametrize(("sampler", "options"), ALL, ids=str)
def test_the_path_and_the_number_of_evaluations_of_the_denoiser(sampler, options):
    levels_seen = []

    def counted(z, level):
        levels_seen.append(level)
        return denoise(z, level)

    levels, z, _ = problem("straight", 6)
    torch.manual_seed(3)
    path = sample(counted, z, levels, sampler=sampler, return_path=True, **options)
    assert len(path) == 7
    torch.testing.assert_close(path[0], z)
    torch.testing.assert_close(path[-1], denoise(path[-2], at(levels, -1)))
    if sampler != "adaptive":
        assert len(levels_seen) == (11 if sampler in ("heun", "edm") else 6)
    for level in levels_seen:  # those with added noise too
        torch.testing.assert_close(level.log_snr, 2 * (level.signal / level.noise).log())
    torch.manual_seed(3)
    near = (
        {"rtol": 1e-3, "atol": 1e-3} if sampler == "adaptive" else {}
    )  # without the path it does not stop at the levels
    torch.testing.assert_close(sample(denoise, z, levels, sampler=sampler, **options), path[-1], **near)


def test_samples_are_differentiable_in_the_noise():
    levels, z, _ = problem("cosine", 6)
    z.requires_grad_()
    for sampler in SAMPLERS:
        (gradient,) = torch.autograd.grad(sample(denoise, z, levels, sampler=sampler).sum(), z)
        assert (gradient > 0).all()


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
def test_bad_options_raise(options, message):
    levels, z, _ = problem("straight", 6)
    with pytest.raises(ValueError, match=message):
        sample(denoise, z, levels, **options)


def test_levels_in_the_wrong_order_or_without_noise_raise():
    levels, z, _ = problem("cosine", 6)
    backward = NoiseLevel(*(rate.flip(0) for rate in levels))
    noiseless = NoiseLevel(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.0, math.inf]))
    for wrong in (backward, noiseless):
        with pytest.raises(ValueError, match="expected levels from the most noise to the least"):
            sample(denoise, z, wrong)
    with pytest.raises(ValueError, match=r"expected levels of shape \(n,\)"):
        sample(denoise, z, at(levels, 0))


# Samples of a model


def diffusion(**options):
    torch.manual_seed(0)
    model = Diffusion((2,), hidden=(8,), **options)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_samples_of_a_model_are_those_of_its_program(variance):
    model = diffusion(steps=5, variance=variance)
    torch.manual_seed(1)
    path = model.sample(20, sampler="ancestral", steps=6, return_path=True)
    torch.manual_seed(1)
    with torch.no_grad():
        trace = poutine.trace(model.model).get_trace(torch.zeros(20, 2))
    for i, state in enumerate(path[:-1]):
        torch.testing.assert_close(state, trace.nodes[f"z_{5 - i}"]["value"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_model_with_levels_and_labels(sampler):
    model = diffusion(levels=5, num_classes=3, steps=None, schedule="straight").train()
    y = torch.tensor([0, 1, 2, 2])
    x = model.sample(4, y, sampler=sampler, steps=7)
    assert x.dtype == torch.int64
    assert tuple(x.shape) == (4, 2)
    assert ((x >= 0) & (x < 5)).all()
    assert model.training


def test_guidance_extrapolates_from_the_mean_without_labels():
    model = diffusion(num_classes=3)
    y, draws = torch.tensor([0, 1, 2, 2]), []
    for guidance in (0.0, 1.0, 3.0):
        torch.manual_seed(2)
        draws.append(model.sample(4, y, steps=1, guidance=guidance))
    assert (draws[0] - draws[1]).abs().min() > 1e-4
    torch.testing.assert_close(draws[2], draws[0] + 3 * (draws[1] - draws[0]))


def test_samples_of_a_model_with_contexts():
    model = diffusion(context_dim=2)
    torch.manual_seed(2)
    x = model.sample(2, torch.tensor([[0.0, 1.0], [2.0, 0.0]]), guidance=2.0)
    assert x.isfinite().all()
    with pytest.raises(ValueError, match=r"expected contexts y of shape \(3, 2\)"):
        model.sample(3, torch.zeros(2, 2))


def test_bad_options_of_a_model_raise():
    plain, sure = diffusion(), diffusion(num_classes=3, label_dropout=0.0)
    with pytest.raises(ValueError, match="trained with labels or contexts, and also without them"):
        plain.sample(2, guidance=2.0)
    with pytest.raises(ValueError, match="trained with labels or contexts, and also without them"):
        sure.sample(2, torch.tensor([0, 1]), guidance=2.0)
    with pytest.raises(ValueError, match="the last step of a sampler returns the mean"):
        plain.sample(2, mean=True)
    with pytest.raises(ValueError, match="expected n and steps of at least 1, got 2 and 0"):
        plain.sample(2, steps=0)
    with pytest.raises(ValueError, match="has no such option"):
        plain.sample(2, churn=3.0)
    with pytest.raises(ValueError, match="expected particles of at least 1, got 0"):
        plain.bound(torch.zeros(2, 2), particles=0)


@pytest.mark.parametrize("levels", [None, 4])
def test_the_bound_is_the_elbo_of_the_chain(levels):
    pyro.clear_param_store()
    model = diffusion(steps=4, levels=levels, options={"sigma_min": 0.2}).eval()
    x = torch.tensor([[0.3, -1.0], [1.0, 0.5]]) if levels is None else torch.tensor([[0, 3], [1, 2]])
    many = x.repeat(200, 1)
    with torch.no_grad():
        elbo = torch.tensor([-Trace_ELBO().loss(model.model, model.guide, many) for _ in range(20)]) / 200
        bounds = torch.stack([model.bound(many, particles=2).sum() for _ in range(20)]) / 200
    error = (elbo.var() / len(elbo) + bounds.var() / len(bounds)).sqrt()
    # two tests at 4.5 standard errors from 20 values each (p-value 1 / 3000)
    assert (elbo.mean() - bounds.mean()).abs() < 4.5 * error
    assert error < 0.3
