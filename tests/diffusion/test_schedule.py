"""Schedules and the bridge between two of their levels."""

import math

import pytest
import torch

from ppgen.diffusion import SCHEDULES, LearnedSchedule, Schedule, bridge, make_schedule

NAMES = [*SCHEDULES, "learned"]
T = torch.linspace(0, 1, 101, dtype=torch.float64)


def schedule(name):
    return make_schedule(name).double().requires_grad_(False)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_monotone_and_end_as_specified(name):
    made = schedule(name)
    level = made(T)
    assert (level.log_snr.diff() < 0).all()
    assert (level.noise.diff() > 0).all()
    assert (level.signal.diff() <= 1e-12).all()
    ratio = level.noise / level.signal
    assert ratio[0] == pytest.approx(made.sigma_min, rel=1e-6)
    assert ratio[-1] == pytest.approx(made.sigma_max, rel=1e-6)
    inner = slice(0, -1 if math.isinf(made.sigma_max) else None)
    torch.testing.assert_close(2 * (level.signal / level.noise).log()[inner], level.log_snr[inner])


@pytest.mark.parametrize("name", NAMES)
def test_options_move_the_ends(name):
    made = make_schedule(name, sigma_min=0.02, sigma_max=None if name == "straight" else 30.0).double()
    level = made.requires_grad_(False)(T)
    assert level.noise[0] / level.signal[0] == pytest.approx(0.02, rel=1e-6)
    if name != "straight":
        assert level.noise[-1] / level.signal[-1] == pytest.approx(30.0, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_of_log_snr_is_that_of_finite_differences(name):
    made, t, h = schedule(name), T[5:95], 1e-6
    difference = (made(t + h).log_snr - made(t - h).log_snr) / (2 * h)
    torch.testing.assert_close(made.log_snr_derivative(t).detach(), difference, rtol=1e-5, atol=1e-5)


def test_paths_preserve_the_variance_or_the_signal():
    for name in ("linear", "cosine", "learned"):
        level = schedule(name)(T)
        torch.testing.assert_close(level.signal**2 + level.noise**2, torch.ones_like(T))
    for name in ("exponential", "karras"):
        assert (schedule(name)(T).signal == 1).all()
    level = schedule("straight")(T)
    torch.testing.assert_close(level.signal + level.noise, torch.ones_like(T))


def test_the_linear_schedule_is_that_of_ho_et_al():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    signal = (1 - beta).cumprod(0).sqrt()
    made = schedule("linear")
    # at its thousand steps, from s = 0.01 on, their product and our integral differ by at most one per cent
    torch.testing.assert_close(
        made(torch.linspace(0, 1, 1000, dtype=torch.float64)).signal, signal, rtol=0.02, atol=2e-3
    )


def test_a_learned_schedule_has_gradients():
    made = LearnedSchedule()
    before = made(T.float()).log_snr
    before.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_bridge_maps_one_marginal_to_the_other(name):
    made = schedule(name)
    for r, t in ((0.0, 1.0), (0.2, 0.3), (0.0, 0.5), (0.9, 1.0)):
        early, late = made(torch.tensor(r).double()), made(torch.tensor(t).double())
        from_z, from_x, scale = bridge(early, late)
        torch.testing.assert_close(from_z * late.signal + from_x, early.signal)
        torch.testing.assert_close((from_z * late.noise).square() + scale**2, early.noise.square())


def test_a_bridge_has_the_variance_of_ho_et_al():
    made = schedule("linear")
    early, late = made(torch.tensor(0.4).double()), made(torch.tensor(0.41).double())
    beta = 1 - (late.signal / early.signal) ** 2
    tilde = early.noise**2 / late.noise**2 * beta
    torch.testing.assert_close(bridge(early, late).scale, tilde.sqrt())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("quadratic"), "expected schedule to be one of"),
        (lambda: Schedule("cosine", sigma_min=2.0, sigma_max=1.0), "expected 0 < sigma_min < sigma_max"),
        (lambda: Schedule("straight", sigma_max=5.0), "ends in pure noise"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
