"""`TrainingOptions`: the length of a run, learning-rate schedulers, and the options that were given."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

import ppgen
from ppgen.training.convergence import MAX_STEPS
from ppgen.training.options import DECAYS, TrainingOptions


def test_the_length_is_steps_or_epochs_or_a_ceiling():
    assert TrainingOptions(steps=7).total_steps(range(3)) == 7
    assert TrainingOptions(epochs=7).total_steps(range(3)) == 21
    assert TrainingOptions().total_steps(range(3)) == MAX_STEPS
    assert TrainingOptions(max_steps=7).total_steps(range(3)) == 7
    with pytest.raises(ValueError, match="max_steps=7 is the ceiling of a run until convergence"):
        TrainingOptions(epochs=2, max_steps=7)


@pytest.mark.parametrize("name", DECAYS)
def test_a_decay_falls_from_the_initial_learning_rate_to_zero(name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = TrainingOptions(lr_scheduler=name, steps=10).scheduler(10)(optimizer)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0.5
    assert rates[:11] == sorted(rates[:11], reverse=True)
    assert rates[10:] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_scheduler_function_is_used_as_it_is():
    scheduler = partial(ExponentialLR, gamma=0.5)
    assert TrainingOptions(lr_scheduler=scheduler).scheduler(10) is scheduler
    assert TrainingOptions().scheduler(10) is None


@pytest.mark.parametrize("name", ["steps", "epochs", "batch_size", "restarts", "patience", "seed"])
def test_a_count_is_an_integer(name):
    with pytest.raises(TypeError, match=rf"fit: {name} must be an integer, got 10.0; int\(10.0\)"):
        TrainingOptions(**{"validation": 0.1, name: 1e1})
    TrainingOptions(**{"validation": 0.1, name: np.int64(10)})


def test_given_options_are_neither_none_nor_empty():
    defaults = {"seed", "progress", "compile"}
    assert set(TrainingOptions(callbacks=[]).given()) == defaults
    options = TrainingOptions(loss=ppgen.ELBO(), validation=torch.zeros(3), callbacks=[print])
    assert set(options.given()) == defaults | {"loss", "validation", "callbacks"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": ppgen.ProgressiveGrowing(), "steps": 9, "patience": 2}, "patience compares losses"),
        (
            {"growth": ppgen.ProgressiveGrowing()},
            "growth divides the length of a run into stages",
        ),
        ({"validation": 0, "patience": 2, "steps": 9}, "patience needs held-out rows, and validation=0 holds none out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


@pytest.mark.parametrize("name", DECAYS)
def test_without_a_length_a_decay_waits_for_convergence(name):
    assert TrainingOptions(lr_scheduler=name).scheduler(10) is None
    assert TrainingOptions(lr_scheduler=name).decay is DECAYS[name]
    assert TrainingOptions(lr_scheduler=name, steps=3).decay is None
