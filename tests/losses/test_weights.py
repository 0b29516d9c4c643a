"""Schedules: properties of all of them, closed forms, and tracing."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.losses import weights as schedules
from ppgen.losses.weights import Anneal, Ramp, Schedule

ALL = [
    Ramp(1.0, steps=40),
    Ramp(0.1, start=0.9, steps=40),
    Ramp(1.0, start=-2.0, steps=40, shape="sigmoid"),
    Ramp(1.0, steps=40, shape="cubic"),
    Anneal(1.0, steps=40, cycles=1, rise=0.7, shape="cubic"),
    Anneal(1.0, steps=40),
    Anneal(-1.0, start=3.0, steps=40, cycles=2, rise=1.0),
]
each = pytest.mark.parametrize("schedule", ALL, ids=str)


def path(schedule: Schedule, steps: int = 60) -> torch.Tensor:
    return torch.stack([schedule(torch.tensor(step)) for step in range(steps)])


def test_every_schedule_is_tested():
    members = {getattr(schedules, name) for name in schedules.__all__} - {Schedule}
    assert members == {type(schedule) for schedule in ALL}


@each
def test_a_schedule_goes_from_start_to_end_and_stays_there(schedule):
    weights = path(schedule)
    low, high = sorted((schedule.start, schedule.end))
    assert weights.shape == (60,)
    assert weights[0] == pytest.approx(schedule.start)
    assert (weights[40:] - schedule.end).abs().max() < 1e-6
    assert weights.min() >= low - 1e-6
    assert weights.max() <= high + 1e-6


@each
def test_ramps_are_monotone_and_cycles_are_except_at_their_starts(schedule):
    toward = path(schedule, 41).diff() * (schedule.end - schedule.start)
    falls = int((toward < -1e-6).sum())
    assert falls == (schedule.cycles - 1 if isinstance(schedule, Anneal) else 0)


@each
def test_a_traced_schedule_depends_on_the_step(schedule):
    traced = make_fx(lambda step: schedule(step))(torch.tensor(3))
    for step in (0, 7, 12, 33, 90):
        assert torch.equal(traced(torch.tensor(step)), schedule(torch.tensor(step)))
    assert traced(torch.tensor(7)) != traced(torch.tensor(12))


@each
def test_the_length_of_the_run_is_the_default_length(schedule):
    options = {k: x for k, x in vars(schedule).items() if k not in ("steps", "end")}
    open_ended = type(schedule)(schedule.end, **options)
    for step in (0, 13, 40):
        assert torch.equal(open_ended(torch.tensor(step), 40), schedule(torch.tensor(step), 99))
    with pytest.raises(ValueError, match=r"needs the length of the run: give it steps="):
        open_ended(torch.tensor(1))


def test_closed_forms():
    progress = torch.linspace(0, 1, 11)
    torch.testing.assert_close(Ramp(3.0, start=1.0).at(progress), 1 + 2 * progress)
    sigmoid = Ramp(1.0, shape="sigmoid").at(progress)
    ganin = 2 / (1 + torch.exp(-10 * progress)) - 1
    torch.testing.assert_close(sigmoid, ganin / math.tanh(5))
    assert (sigmoid - ganin).abs().max() < 1e-4
    # four cycles of ten steps: up within five, flat for five, and so on
    cycle = [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    torch.testing.assert_close(path(Anneal(1.0, steps=40), 41), torch.tensor(cycle * 4 + [1.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(1.0, shape="cosine"), "'linear', 'sigmoid', 'cubic', got 'cosine'"),
        (lambda: Ramp(1.0, steps=0), "steps must be a whole number of at least 1, got 0"),
        (lambda: Anneal(1.0, steps=2.5), "steps must be a whole number of at least 1, got 2.5"),
        (lambda: Anneal(1.0, cycles=0), "cycles=0"),
        (lambda: Anneal(1.0, cycles=1.5), "cycles=1.5"),
        (lambda: Anneal(1.0, rise=0), "rise=0"),
        (lambda: Anneal(1.0, rise=1.1), "rise=1.1"),
    ],
)
def test_an_invalid_option_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
