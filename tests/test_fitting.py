"""`fit`: reproducible from the seed, for every kind of data; validation, averaging, callbacks, early ends, errors."""

import functools
import io
import math
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import bits, frozen_in_training, list_of_guides
from pyro import infer
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from support import gaussian_pair
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import ppgen
from ppgen.models import VAE
from ppgen.training import chain as chain_trainer
from ppgen.training.callbacks import TrainingStep
from ppgen.training.recovery import IN_A_ROW, RETURNS

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(7)) + 1


def networks() -> tuple[Callable, Callable]:
    torch.manual_seed(0)
    pair = gaussian_pair()
    return pair.model, pair.guide


def schools(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau).expand([3]).to_event(1), obs=x)


def hidden_guide() -> Callable:
    auto = AutoNormal(schools)

    def guide(x: Tensor) -> None:
        auto(x)

    return guide


def random_start() -> tuple[Callable, Callable]:
    """A guide whose parameters have random initial values."""

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 1.0))
        pyro.sample("tau", dist.LogNormal(pyro.param("log_tau", lambda: torch.randn(())), 1.0))

    return schools, guide


PROGRAMS: dict[str, Callable] = {
    "networks": networks,
    "random start": random_start,
    "autoguide": lambda: (schools, AutoMultivariateNormal(schools)),  # its start is a median of draws
    "list of guides": lambda: (schools, list_of_guides(schools)),
    "autoguide in a function": lambda: (schools, hidden_guide()),
}


def fit(programs: tuple[Callable, Callable], data: Any = X, **options: Any) -> ppgen.Fit:
    length = {} if "epochs" in options else {"steps": 4}
    options = {"progress": False, "optim": functools.partial(torch.optim.Adam, lr=0.01), **length, **options}
    return ppgen.fit(*programs, data, **options)


def same(one: ppgen.Fit, other: ppgen.Fit) -> bool:
    """Whether two fits are equal, bit for bit."""
    a, b = (
        [
            (*chain.history.values(), *chain.validation.values(), *map(np.asarray, chain.weights.values()))
            for chain in f.chains
        ]
        for f in (one, other)
    )
    return len(a) == len(b) and all(
        len(p) == len(q) and all(map(np.array_equal, p, q)) for p, q in zip(a, b, strict=True)
    )


# Programs with one parameter w, and the loss (w - mean of x)^2.


def holder(start: float = 1.0) -> tuple[Callable, Callable]:
    def model(x: Tensor) -> None:
        pyro.param("w", torch.tensor(start))

    return model, lambda x: None


def distance(model: Callable, guide: Callable, x: Tensor) -> Tensor:
    model(x)
    return (pyro.param("w") - x.mean()) ** 2


def w() -> float:
    return pyro.param("w").item()


HALVING = functools.partial(torch.optim.SGD, lr=0.25)  # moves w half of the way to the mean of x
ZERO, ONE = torch.zeros(6, 1), torch.ones(6, 1)


# Reproducibility.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(X.numpy(), id="array"),
        pytest.param(pd.DataFrame(X.numpy()), id="frame"),
        pytest.param((X,), id="tuple"),
        pytest.param(TensorDataset(X), id="dataset"),
    ],
)
def test_every_kind_of_data_gives_the_same_run(data):
    options = {"batch_size": 8, "epochs": 2, "validation": 0.3}
    assert same(fit(networks(), data, **options), fit(networks(), X, **options))


def global_random_state() -> tuple:
    return torch.random.get_rng_state().tolist(), str(np.random.get_state(legacy=False)), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_depends_on_its_seed_and_not_on_the_random_state_of_the_caller(program):
    def run(callers_seed: int, **options: Any) -> ppgen.Fit:
        pyro.clear_param_store()
        programs = PROGRAMS[program]()
        pyro.set_rng_seed(callers_seed)
        before = global_random_state()
        result = fit(programs, batch_size=6, restarts=2, validation=0.2, **options)
        assert global_random_state() == before
        return result

    first = run(1, seed=3)
    assert same(first, run(2, seed=3))
    assert not same(first, run(1, seed=4))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_hold_the_best_chain_and_can_select_each(program):
    programs = PROGRAMS[program]()
    result = fit(programs, restarts=3)
    assert len(result.chains) == 3
    assert result.best == int(np.argmin([chain.final for chain in result.chains]))
    held = list(result._state().tensors.values())
    assert bits(held) == bits(result.chains[result.best].weights.values())
    for i, chain in enumerate(result.chains):
        result.select_chain(i)
        assert bits(held) == bits(chain.weights.values())
    for i in (-1, 3):
        with pytest.raises(IndexError, match="there are chains 0 to 2"):
            result.select_chain(i)


def test_restarts_start_at_different_points_and_the_first_at_the_current_weights():
    starts: list[float] = []
    fit(
        holder(),
        ZERO,
        loss=distance,
        optim=HALVING,
        restarts=3,
        callbacks=[lambda step: starts.append(w()) if step.number == 1 else None],
    )
    assert starts[0] == 0.5
    assert len(set(starts)) == 3
    assert all(abs(start - 0.5) <= 1.0 for start in starts[1:])  # half of 1 + U(-2, 2)


def test_an_optimizer_can_be_used_for_several_runs():
    optim = pyro.optim.Adam({"lr": 0.01})
    assert same(fit(networks(), optim=optim), fit(networks(), optim=optim))


def test_programs_and_batches_move_to_the_device():
    assert same(fit(networks(), device="cpu"), fit(networks()))
    module = VAE((3,), latent_dim=2, hidden=(4,))
    result = fit((module.model, module.guide), device="cpu")
    assert all(tensor.device.type == "cpu" for tensor in result.chains[0].weights.values())


# The length of a run.


def test_steps_or_epochs_set_the_length_of_the_run():
    for options, steps in (({"steps": 7}, 7), ({"epochs": 3}, 3), ({"epochs": 3, "batch_size": 6}, 12)):
        result = fit(networks(), **options)
        assert len(result.history["loss"]) == steps
        assert result.chains[0].best_step == steps
        assert result.chains[0].stop_reason == f"completed {steps} steps"
    loss = ppgen.ELBO()
    fit(networks(), steps=None, loss=loss, callbacks=[lambda step: step.stop("enough")])
    assert loss.total == 1000


def test_every_epoch_has_each_row_once():
    seen: list[list[float]] = []

    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        seen.append(x[:, 0].tolist())
        return distance(model, guide, x)

    rows = torch.arange(10.0)[:, None]
    fit(holder(), rows, loss=loss, optim=HALVING, epochs=3, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    epochs = [sorted(sum(seen[i : i + 3], start=[])) for i in (0, 3, 6)]  # noqa: RUF017
    assert epochs == [rows[:, 0].tolist()] * 3
    assert seen[:3] != seen[3:6]


def test_history_has_one_number_per_step_for_every_term():
    loss = ppgen.Reconstruction() + 0.5 * ppgen.Rate()
    history = fit(networks(), loss=loss, steps=5).history
    assert set(history) == {"loss", "Reconstruction", "Rate"}
    assert all(values.shape == (5,) for values in history.values())
    assert history["Reconstruction"] + history["Rate"] == pytest.approx(history["loss"])
    assert set(fit(networks(), loss=ppgen.ELBO()).history) == {"loss"}


LOSSES: dict[str, Callable] = {
    "objective": ppgen.ELBO,
    "stock": infer.Trace_ELBO,
    "own gradients": infer.TraceGraph_ELBO,
    "in parts": lambda: infer.ReweightedWakeSleep(num_particles=2, vectorize_particles=False, max_plate_nesting=1),
    "function": lambda: infer.Trace_ELBO().differentiable_loss,
}


@pytest.mark.parametrize("kind", LOSSES)
def test_any_loss_trains_and_validates(kind):
    programs = networks()
    result = fit(programs, loss=LOSSES[kind](), validation=0.25, batch_size=8, epochs=2)
    assert result.history["loss"].shape == (4,)
    assert result.chains[0].validation["step"].tolist() == [2, 4]
    if kind in ("stock", "function"):  # Pyro's sum over 5 rows, where ours is a mean
        pyro.clear_param_store()
        mean = fit(networks(), validation=0.25, batch_size=8, epochs=2)
        assert result.chains[0].validation["loss"] == pytest.approx(5 * mean.chains[0].validation["loss"], rel=0.05)


# Validation.


def parts_seen(**options: Any) -> tuple[list[float], list[float]]:
    """The rows that were trained on, and those validated on."""
    trained: set[float] = set()
    validated: set[float] = set()

    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        (trained if torch.is_grad_enabled() else validated).update(x[:, 0].tolist())
        return distance(model, guide, x)

    fit(holder(), torch.arange(10.0)[:, None], loss=loss, optim=HALVING, **options)
    return sorted(trained), sorted(validated)


def test_held_out_and_training_rows_together_are_the_data():
    trained, validated = parts_seen(validation=0.3)
    assert len(validated) == 3
    assert sorted(trained + validated) == list(range(10))
    assert parts_seen(validation=0.3, seed=1)[1] != validated


def test_validation_data_may_be_given():
    assert parts_seen(validation=np.array([[99.0]], dtype=np.float32)) == (list(range(10)), [99.0])


def test_validation_repeats_its_random_numbers_and_does_not_change_training():
    frozen = functools.partial(torch.optim.SGD, lr=1e-12)
    with_check = fit(networks(), optim=frozen, validation=X[:5])
    losses = with_check.chains[0].validation["loss"]
    assert len(losses) == 4
    assert losses == pytest.approx(losses[:1].repeat(4))
    assert np.array_equal(with_check.history["loss"], fit(networks(), optim=frozen).history["loss"])


@pytest.fixture
def impatient(monkeypatch):
    """Patience is counted in passes, however few steps those are."""
    monkeypatch.setattr(chain_trainer, "PATIENCE_STEPS", 1)


def test_early_stopping_returns_to_the_best_weights(impatient):
    """w halves from 1 toward 0; on data at 0.3 it is best after two steps, at 0.25."""
    held_out = torch.full((4, 1), 0.3)
    result = fit(holder(), ZERO, loss=distance, optim=HALVING, validation=held_out, patience=3, steps=50)
    chain = result.chains[0]
    assert chain.stop_reason == "the held-out loss has not improved since step 2, at step 5"
    assert chain.validation["step"].tolist() == [1, 2, 3, 4, 5]
    assert chain.validation["loss"] == pytest.approx([(0.5**t - 0.3) ** 2 for t in range(1, 6)])
    assert len(chain.history["loss"]) == 5
    assert chain.best_step == 2
    assert w() == 0.25
    assert chain.final == pytest.approx(distance(*holder(), held_out).item())


def test_without_patience_the_last_weights_are_kept():
    result = fit(holder(), ZERO, loss=distance, optim=HALVING, validation=torch.full((4, 1), 0.3), steps=5)
    assert result.chains[0].best_step == 5
    assert w() == 0.5**5
    assert result.chains[0].final == pytest.approx((0.5**5 - 0.3) ** 2)


def test_a_validation_that_is_nan_is_never_the_best(impatient):
    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        value = distance(model, guide, x)
        return value if torch.is_grad_enabled() or 0.1 < w() < 0.4 else value * math.nan

    result = fit(holder(), ZERO, loss=loss, optim=HALVING, validation=torch.full((4, 1), 0.3), patience=3, steps=50)
    assert np.isnan(result.chains[0].validation["loss"]).tolist() == [True, False, False, True, True]
    assert result.chains[0].best_step == 2
    assert w() == 0.25


class Normed(PyroModule):
    """With batch norm, whose moments are part of the state, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


def centered(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_validation_is_in_eval_mode_and_restores_the_modes():
    model = Normed()
    model.net[0].eval()
    modes: list[list[bool]] = []

    def loss(*args: Any) -> Tensor:
        value = infer.Trace_ELBO().differentiable_loss(*args)
        modes.append([torch.is_grad_enabled(), *(m.training for m in model.net)])
        return value

    fit((model, centered), loss=loss, steps=2, validation=0.2)
    assert modes == [[True, False, True, True], [False, False, False, False]] * 2
    assert [m.training for m in model.net] == [False, True, True]


def test_batch_norm_statistics_are_restored_with_the_weights():
    model = Normed()
    seen: dict[int, bytes] = {}

    def watch(step: TrainingStep) -> None:
        seen[step.number] = bits([model.net[1].running_mean])[0]
        if step.number == 6:
            step.stop("enough")

    # a large rate makes the loss worse, so that an early step is the best
    optim = functools.partial(torch.optim.SGD, lr=5.0)
    result = fit((model, centered), optim=optim, steps=20, validation=X, patience=10, compile=False, callbacks=[watch])
    assert result.chains[0].best_step < 6
    assert len(set(seen.values())) == 6
    assert bits([model.net[1].running_mean])[0] == seen[result.chains[0].best_step]


# The moving average.


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_the_moving_average_equals_its_formula(decay):
    path: list[float] = []
    fit(holder(), ZERO, loss=distance, optim=HALVING, ema=decay, steps=6, callbacks=[lambda step: path.append(w())])
    assert path == [0.5**t for t in range(1, 7)]
    average = 1.0
    for step, value in enumerate(path, start=1):
        rate = min(decay, (1 + step) / (10 + step))
        average = rate * average + (1 - rate) * value
    assert w() == pytest.approx(average)


def test_validation_and_early_stopping_use_the_averaged_weights():
    options = {"loss": distance, "optim": HALVING, "ema": 0.3, "validation": torch.full((4, 1), 0.4), "steps": 20}
    chain = fit(holder(), ZERO, patience=2, **options).chains[0]
    best = w()
    assert chain.history["loss"] == pytest.approx([0.25**t for t in range(len(chain.history["loss"]))])
    assert (best - 0.4) ** 2 == pytest.approx(chain.validation["loss"].min())
    pyro.clear_param_store()
    fit(holder(), ZERO, **{**options, "steps": chain.best_step})
    assert w() == best


def test_averaged_weights_have_the_last_batch_norm_statistics():
    model = Normed()
    last: list[bytes] = []
    fit((model, centered), ema=0.9, callbacks=[lambda step: last.append(bits([model.net[1].running_mean])[0])])
    assert bits([model.net[1].running_mean])[0] == last[-1]


# Callbacks, and runs that end early.


def test_a_callback_is_called_after_every_step():
    steps: list[TrainingStep] = []
    losses: list[float] = []

    def note(step: TrainingStep) -> None:
        steps.append(step)
        losses.append(step.loss)

    result = fit(networks(), batch_size=5, steps=6, restarts=2, callbacks=[note])
    assert [(s.chain, s.number, s.epoch) for s in steps] == [(c, n, (n - 1) // 4) for c in (0, 1) for n in range(1, 7)]
    assert losses == pytest.approx(np.concatenate([chain.history["loss"] for chain in result.chains]))
    assert isinstance(steps[0].svi, ppgen.SVI)


def test_a_callback_can_stop_a_chain_and_the_next_one_runs():
    result = fit(
        networks(),
        steps=9,
        restarts=2,
        callbacks=[lambda step: step.stop("enough") if step.chain == 0 and step.number == 3 else None],
    )
    assert [chain.stop_reason for chain in result.chains] == ["enough, at step 3", "completed 9 steps"]
    assert [len(chain.history["loss"]) for chain in result.chains] == [3, 9]
    assert not result.chains[0].interrupted


@pytest.mark.parametrize("where", ["callback", "step", "validation"])
def test_an_interrupt_ends_the_run_with_the_current_weights(where):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def at_fourth(step: TrainingStep) -> None:
        if step.number == 4 and where == "callback":
            interrupt()

    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        trains = torch.is_grad_enabled()
        if abs(w() - 0.5**4) < 1e-6 and where == ("step" if trains else "validation"):
            interrupt()
        return distance(model, guide, x)

    # not compiled: "auto" reports .item() where the machine is slow
    options: dict[str, Any] = {"steps": 100, "restarts": 3, "compile": False}
    result = fit(holder(), ZERO, loss=loss, optim=HALVING, validation=ONE, callbacks=[at_fourth], **options)
    (chain,) = result.chains
    assert chain.stop_reason == "interrupted at step 4"
    assert chain.interrupted
    assert chain.history["loss"] == pytest.approx([0.25**t for t in range(4)])
    assert chain.best_step == 4
    assert w() == 0.5**4
    assert chain.weights["w"].item() == 0.5**4


def test_an_interrupt_before_the_first_step_changes_no_weights():
    def interrupt(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    result = fit(holder(), ZERO, loss=interrupt, optim=HALVING)
    assert result.chains[0].stop_reason == "interrupted at step 0"
    assert result.chains[0].history["loss"].shape == (0,)
    assert w() == 1.0


def nan_at(steps: set[int]) -> Callable:
    """A loss that is NaN at some of its training steps, counted over all chains."""
    count = 0

    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        nonlocal count
        count += torch.is_grad_enabled()
        return distance(model, guide, x) * (math.nan if count in steps else 1.0)

    return loss


def test_a_step_whose_loss_is_nan_is_skipped():
    """The loss counts in Python, which a compiled step would not see: on a slow machine "auto" would look into it."""
    with pytest.warns(UserWarning, match="the loss is nan at step 8, and the step is skipped: ") as caught:
        result = fit(holder(), ZERO, loss=nan_at({8}), optim=HALVING, steps=12, compile=False)
    assert len(caught) == 1
    (chain,) = result.chains
    assert (chain.stop_reason, chain.skipped, chain.failed, chain.best_step) == ("completed 12 steps", 1, False, 12)
    assert w() == 0.5**11
    expected = [0.25**t for t in range(7)] + [math.nan] + [0.25**t for t in range(7, 11)]
    np.testing.assert_allclose(chain.history["loss"], expected)
    assert chain.final == pytest.approx(0.25**10)


def test_nan_in_every_step_ends_with_the_last_good_weights():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(holder(), ZERO, loss=nan_at(range(5, 400)), optim=HALVING, steps=300, compile=False)
    (chain,) = result.chains
    assert chain.failed
    assert chain.skipped == len(chain.history["loss"]) - 4 == (RETURNS + 1) * IN_A_ROW
    assert (chain.best_step, w()) == (1, 0.5)
    assert "5 steps in a row are not finite: the loss is nan at step 24" in chain.stop_reason
    messages = [str(warning.message) for warning in caught]
    assert sum("training goes back to step 1" in message for message in messages) == RETURNS
    assert "the weights are those of step 1" in messages[-2]
    assert messages[-1] == "20 of 24 steps were skipped, since they were not finite"


def test_a_loss_that_is_nan_at_once_is_an_error_and_changes_no_weights():
    with pytest.raises(FloatingPointError, match="no step was completed, and the weights are unchanged"):
        fit(holder(), ZERO, loss=nan_at({1}), optim=HALVING, compile=False)
    assert "w" not in pyro.get_param_store()


def test_programs_without_a_trainable_parameter_are_an_error():
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"fit: the loss depends on no trainable parameter.*pyro\.module"):
        ppgen.fit(program, program, torch.randn(4), steps=3, progress=False)


def test_infinite_weights_are_an_error_that_names_them():
    with pytest.raises(FloatingPointError, match="no longer finite after step 1: w"):
        fit(holder(), ONE * 3, loss=distance, optim=functools.partial(torch.optim.SGD, lr=3e38))
    assert "w" not in pyro.get_param_store()


def test_a_restart_that_fails_at_once_is_left_out():
    with pytest.warns(UserWarning, match="restart 2 of 3 is left out: the loss is nan"):
        result = fit(holder(), ZERO, loss=nan_at({5}), optim=HALVING, steps=4, compile=False, restarts=3)
    assert len(result.chains) == 2
    assert w() == result.chains[result.best].weights["w"].item()


def test_buffers_may_be_infinite():
    class Masked(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -math.inf]))

        def forward(self, x: Tensor) -> None:
            assert self.mask is not None
            super().forward(x)

    assert len(fit((Masked(), centered)).history["loss"]) == 4


def test_parameters_that_appear_late_give_a_warning():
    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        return distance(model, guide, x) + pyro.param("late", torch.tensor(1.0)) ** 2

    with pytest.warns(UserWarning, match="parameters appeared after the first batch: late; they were trained, but"):
        fit(holder(), ZERO, loss=loss, optim=HALVING)


# Learning rates, frozen parameters, schedules.


def test_a_learning_rate_schedule_advances_every_step():
    decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    fit(holder(), ZERO, loss=distance, optim=HALVING, steps=3, lr_scheduler=decay)
    assert w() == pytest.approx((1 - 0.5) * (1 - 0.25) * (1 - 0.125))


def test_a_pyro_scheduler_advances_by_a_callback():
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.25}, "gamma": 0.5})
    fit(holder(), ZERO, loss=distance, optim=optim, steps=3, callbacks=[lambda step: optim.step()])
    assert w() == pytest.approx((1 - 0.5) * (1 - 0.25) * (1 - 0.125))


def test_schedules_of_weights_know_the_length_of_the_run():
    loss = ppgen.Reconstruction() + ppgen.Ramp(1.0) * ppgen.Rate()
    result = fit(networks(), loss=loss, steps=5, restarts=2)
    for chain in result.chains:
        assert chain.history["Rate"][0] == 0.0
        assert (chain.history["Rate"][1:] > 0).all()
    assert loss.total == 5
    assert int(loss.step) == 5


@frozen_in_training
def test_frozen_weights_do_not_change_in_any_chain_and_are_stored():
    model = Normed()
    model.net[0].requires_grad_(False)
    before = bits(model.net[0].parameters())
    result = fit((model, centered), restarts=3, ema=0.5, validation=0.2, patience=5)
    for i, chain in enumerate(result.chains):
        result.select_chain(i)
        assert bits(model.net[0].parameters()) == before
        assert bits([chain.weights["net$$$0.weight"]]) == before[:1]
    result.breakdown(X)
    assert not any(p.requires_grad for p in model.net[0].parameters())


@frozen_in_training
def test_a_callback_may_unfreeze_weights():
    model = Normed()
    model.net[0].requires_grad_(False)
    before = bits(model.net[0].parameters())

    def thaw(step: TrainingStep) -> None:
        if step.number == 2:
            assert bits(model.net[0].parameters()) == before
            model.net[0].requires_grad_(True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is late
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")
        result = fit((model, centered), callbacks=[thaw])
    assert bits(model.net[0].parameters()) != before
    result.select_chain(0)


# Progress.


class Terminal:
    def __init__(self, *, tty: bool) -> None:
        self.text, self.tty, self.encoding = "", tty, "utf-8"

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(("tty", "progress", "shown"), [(True, True, True), (True, False, False), (False, True, False)])
def test_progress_is_shown_only_on_a_terminal(monkeypatch, tty, progress, shown):
    terminal = Terminal(tty=tty)
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(networks(), progress=progress, restarts=2, validation=0.2)
    assert bool(terminal.text) == shown
    if shown:
        for word in ("fit 1/2", "fit 2/2", "4/4", "step", "loss", "validation"):
            assert word in terminal.text


# Invalid options and data are an error before anything changes.


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "steps and epochs": ({"steps": 3, "epochs": 2}, r"steps or epochs, not both \(got steps=3, epochs=2\)"),
    "no steps": ({"steps": 0}, "steps must be at least 1, got 0"),
    "no epochs": ({"epochs": 0}, "epochs must be at least 1"),
    "no restarts": ({"restarts": 0}, "restarts must be at least 1"),
    "no patience": ({"patience": 0, "validation": 0.2}, "patience must be at least 1"),
    "patience without validation": (
        {"patience": 3},
        "patience needs held-out data, and nothing is held out of fewer",
    ),
    "no batch": ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    "all held out": ({"validation": 1.0}, "leaves 0 for training and 20 for validation"),
    "none held out": ({"validation": 0.01}, "leaves 20 for training and 0 for validation"),
    "a negative fraction": ({"validation": -0.1}, "leaves 22 for training"),
    "more than all held out": ({"validation": 2}, "leaves -20 for training"),
    "bad validation data": ({"validation": X * math.nan}, "validation: 60 of 60 values"),
    "a negative seed": ({"seed": -1}, "seed must be at least 0, got -1"),
    "an average of nothing": ({"ema": 1.0}, r"ema must be a decay in \[0, 1\), such as 0.99, got 1.0"),
    "a clip of nothing": ({"clip_norm": 0.0}, "clip_norm must be a positive bound"),
}


def untouched(run: Callable, module: VAE, error: type[Exception], message: str) -> None:
    before, state = bits(module.state_dict().values()), torch.random.get_rng_state()
    with pytest.raises(error, match=message):
        run()
    assert bits(module.state_dict().values()) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_an_error(case):
    options, message = BAD_OPTIONS[case]
    module = VAE((3,), latent_dim=2, hidden=(4,))
    untouched(lambda: fit((module.model, module.guide), **options), module, ValueError, message)


def test_an_optimizer_already_built_is_an_error():
    module = VAE((3,), latent_dim=2, hidden=(4,))
    optim = torch.optim.Adam(module.parameters())
    untouched(lambda: fit((module.model, module.guide), optim=optim), module, TypeError, "already built")


BAD_DATA: dict[str, tuple[Callable, type[Exception], str]] = {
    "nan": (lambda: X.masked_fill(X > 2, math.nan), ValueError, r"data: \d+ of 60 values, in \d+ of 20 rows.*NaN"),
    "the model's own check": (lambda: X[:, :2], ValueError, r"expected x of shape \(n, 3\), got \(20, 2\)"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_an_error(case):
    data, error, message = BAD_DATA[case]
    module = VAE((3,), latent_dim=2, hidden=(4,))
    untouched(lambda: fit((module.model, module.guide), data()), module, error, message)


def test_the_check_of_the_model_gets_training_and_validation_data():
    module = VAE((3,), latent_dim=2, hidden=(4,), likelihood="bernoulli")
    programs, binary, bad = (module.model, module.guide), (X > 1).float(), torch.full((2, 3), 0.5)
    untouched(lambda: fit(programs, torch.cat([binary, bad]), batch_size=4), module, ValueError, "0.5|Bernoulli|0 or 1")
    untouched(lambda: fit(programs, binary, validation=bad), module, ValueError, "0.5|Bernoulli|0 or 1")


def test_batches_that_are_too_large_or_have_one_row_give_a_warning():
    with pytest.warns(UserWarning, match="batch_size 99 is more than the 20 rows"):
        fit(networks(), batch_size=99)
    with pytest.warns(UserWarning, match="leave a last batch of one row"):
        result = fit(networks(), batch_size=19, epochs=2)
    assert len(result.history["loss"]) == 2


def test_float64_data_are_cast_to_the_dtype_of_the_programs():
    with pytest.warns(UserWarning, match=r"data: float64 cast to torch\.float32"):
        assert same(fit(networks(), X.double()), fit(networks(), X))
    module = VAE((3,), latent_dim=2, hidden=(4,)).double()
    result = fit((module.model, module.guide), X.double().numpy())
    assert result.example[0].dtype == torch.float64


# The compiled step


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_fit_equals_the_eager_fit_and_compiles_once_per_shape(builds):
    options: dict = {"batch_size": 8, "epochs": 10, "restarts": 3, "ema": 0.9, "validation": X[:6], "progress": False}
    fits = {
        compile: ppgen.fit(*networks(), X, loss=ppgen.recipes.vae(beta=ppgen.Ramp(1.0)), compile=compile, **options)
        for compile in (False, True)
    }
    assert len(builds) == 2  # for a whole batch of 8 rows and the last of 4, in all chains
    for eager, compiled in zip(fits[False].chains, fits[True].chains, strict=True):
        assert compiled.compiled.startswith("compiled at step")
        assert eager.compiled == ""
        close(compiled.validation["loss"], eager.validation["loss"])
        for name, values in eager.history.items():
            close(compiled.history[name], values)
        for name, weight in eager.weights.items():
            close(compiled.weights[name], weight)


def test_auto_does_not_compile_a_short_fit(builds):
    fit = ppgen.fit(*networks(), X, steps=20, progress=False)
    assert (builds, fit.chains[0].compiled) == ([], "")


def test_a_fit_saved_compiled_continues_eagerly_and_conversely(builds, tmp_path):
    for first, then in ((True, False), (False, True)):
        programs = networks()
        ppgen.fit(*programs, X, steps=10, compile=first, progress=False).save(tmp_path / "fit.safetensors")
        on = ppgen.fit(*programs, X, steps=10, compile=then, seed=1, progress=False)
        again = networks()
        ppgen.Fit.load(tmp_path / "fit.safetensors", *again)
        loaded = ppgen.fit(*again, X, steps=10, compile=first, seed=1, progress=False)
        close(loaded.chains[0].history["loss"], on.chains[0].history["loss"])


def test_the_progress_bar_reports_compilation_once(builds, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    ppgen.fit(*networks(), X, steps=30, compile=True)
    assert screen.getvalue().count("compiled at step 3") == 1
