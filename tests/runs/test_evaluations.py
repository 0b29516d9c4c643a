"""Evaluations within a time: means of simple random samples of rows, their standard errors, sizes of batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppgen.runs.evaluations import HeldOut, by_rows, evaluate
from ppgen.utils.budget import MAX_NUMBERS, Budget

N, SHAPE = 600, (1, 16, 16)
LIKELIHOOD = "held-out log-likelihood (nats per datum)"


class Clock:
    """A clock that work advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Density:
    """A density whose log is the first number of a row; each row costs a second."""

    def __init__(self, clock: Clock):
        self.clock, self.sizes = clock, []

    def log_prob(self, x, y=None):
        self.sizes.append(len(x))
        self.clock.now += len(x)
        return x.flatten(1)[:, 0]


class LatentVariables:
    """A model whose bound is by 1 / k too low, with particles that cost 0.01 s, and calls that cost 0.1 s."""

    def __init__(self, clock: Clock):
        self.clock, self.calls = clock, []

    def log_evidence(self, x, y=None, *, particles=100):
        self.calls.append((len(x), particles))
        self.clock.now += 0.01 * (10 + len(x) * particles)
        return x.flatten(1)[:, 0] - 1 / particles


def held_out(model, *, particles=None, seed=0, batch=100, shape=SHAPE) -> HeldOut:
    x = torch.randn(N, *shape, generator=torch.Generator().manual_seed(7))
    fit = SimpleNamespace(
        example=(torch.zeros(batch, *shape),), breakdown=lambda x: {"ELBO": -float(x.flatten(1)[:, 0].mean())}
    )
    data = SimpleNamespace(event_shape=shape, form="continuous", levels=None)
    return HeldOut(model, fit, data, (x,), particles, seed)


def first(rows: HeldOut) -> np.ndarray:
    return rows.rows[0].flatten(1)[:, 0].double().numpy()


@pytest.mark.parametrize("seconds", [math.inf, 1e6])
def test_with_time_enough_numbers_are_those_of_all_rows(seconds):
    clock = Clock()
    rows = held_out(Density(clock))
    numbers = evaluate(rows, Budget(seconds, clock=clock))
    mean, error = first(rows).mean(), first(rows).std(ddof=1) / N**0.5
    assert numbers[LIKELIHOOD] == pytest.approx((mean, error), rel=1e-5)
    bit = math.log(2) * 256
    assert numbers["held-out bits per dimension"] == pytest.approx((-mean / bit, error / bit), rel=1e-5)
    assert numbers["held-out rows"] == N
    assert not [name for name in numbers if "rows behind" in name]
    assert max(rows.model.sizes) * 256 <= MAX_NUMBERS


def test_large_rows_are_evaluated_few_at_a_time():
    clock = Clock()
    rows = held_out(Density(clock), shape=(1, 128, 128))
    evaluate(rows, Budget(clock=clock))
    assert max(rows.model.sizes) == MAX_NUMBERS // 128**2


def test_a_sample_of_rows_has_the_mean_and_the_error_of_a_simple_random_sample():
    """Means of k of N rows without replacement: their variance is that of the reported error, times 1 - k / N."""
    z, counts = [], set()
    for seed in range(200):
        clock = Clock()
        rows = held_out(Density(clock), seed=seed)
        sample = by_rows(rows.model.log_prob, rows, Budget(150, clock=clock))
        mean, error = sample.mean_and_error
        counts.add(len(sample.values))
        z.append((mean - first(rows).mean()) / (error * (1 - len(sample.values) / N) ** 0.5))
    (count,) = counts  # the fake clock is the same for all seeds
    assert 140 < count <= 150
    assert abs(np.mean(z)) < 3 / 200**0.5
    assert 0.8 < np.std(z) < 1.2


def test_numbers_of_a_part_say_how_many_rows():
    clock = Clock()
    rows = held_out(Density(clock))
    budget = Budget(100, clock=clock)
    numbers = evaluate(rows, budget)
    done = sum(rows.model.sizes)
    assert 35 < done <= 50  # the share of log_likelihood is a half
    assert numbers["held-out rows behind the log-likelihood"] == f"{done} of {N}"
    order = rows.order.numpy()[:done]
    assert numbers[LIKELIHOOD][0] == pytest.approx(first(rows)[order].mean(), rel=1e-5)
    assert budget.cut


def test_without_time_what_is_costly_is_left_out():
    clock = Clock()
    rows = held_out(Density(clock))
    assert set(evaluate(rows, Budget(0, clock=clock))) == {
        *("held-out rows", "held-out loss term ELBO", "held-out rows behind the loss terms")
    }


def test_particles_are_as_many_as_leave_time_for_enough_rows():
    found = {}
    for seconds in (20, 600, 4000, math.inf):
        clock = Clock()
        rows = held_out(LatentVariables(clock))
        numbers = evaluate(rows, Budget(seconds, clock=clock))
        (name,) = (name for name in numbers if "log evidence" in name and "nats" in name)
        found[seconds] = int(name.split()[3])
        assert max(n * particles for n, particles in rows.model.calls) * 256 <= MAX_NUMBERS
        done = int(numbers.get("held-out rows behind the log evidence", f"{N} of {N}").split()[0])
        assert clock.now <= seconds
        if seconds >= 600:
            assert done > 400
    assert found == {20: 10, 600: 50, 4000: 500, math.inf: 500}


def test_particles_that_are_given_are_kept():
    clock = Clock()
    rows = held_out(LatentVariables(clock), particles=70)
    numbers = evaluate(rows, Budget(100, clock=clock))
    assert {particles for _, particles in rows.model.calls} == {70}
    done = sum(n for n, _ in rows.model.calls)
    assert numbers["held-out rows behind the log evidence"] == f"{done} of {N}"
    assert 80 / 0.7 - 10 < done <= 80 / 0.7


@pytest.mark.parametrize("batch", [100, 64, 5000])
def test_loss_terms_are_means_over_batches_of_the_training_size(batch):
    rows = held_out(object(), batch=batch)
    found = evaluate(rows, Budget(clock=Clock()))["held-out loss term ELBO"]
    parts = np.array_split(first(rows)[rows.order.numpy()], math.ceil(N / batch))
    if batch == 5000:
        assert found == pytest.approx(-first(rows).mean(), rel=1e-5)
    else:
        means = -np.array([part.mean() for part in parts])
        assert found == pytest.approx((means.mean(), means.std(ddof=1) / len(means) ** 0.5), rel=1e-5)
