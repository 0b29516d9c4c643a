"""The length of runs: convergence on held-out rows, on the loss of the steps, by a score; what counted runs say."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import ppgen
from ppgen.losses.match import without_critics
from ppgen.training import chain as chain_trainer
from ppgen.training import convergence
from ppgen.training.callbacks import TrainingStep
from ppgen.training.convergence import Convergence, drifts, falls, improves, standard_error
from ppgen.training.held_out import default_share, part_rows, rows_are_independent
from ppgen.training.monitor import TrainingMonitor

WIDTH = 130  # columns of a regression, which overfits 135 rows
ADAM = partial(torch.optim.Adam, lr=0.05)
OPTIONS: dict[str, Any] = {"optim": ADAM, "compile": False, "progress": False}


@pytest.fixture
def quick(monkeypatch):
    """Shorter patience, so that tests take hundreds of steps and not thousands."""
    for name in ("PATIENCE_STEPS", "FLAT_STEPS"):
        monkeypatch.setattr(chain_trainer, name, 20)
    monkeypatch.setattr(chain_trainer, "CHECK_STEPS", (5, 1000))
    monkeypatch.setattr(convergence, "WINDOW", 60)


class Regression(nn.Module):
    """Linear regression without latents, whose weights overfit when there are as many as rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, 1)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("regression", self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.linear(x).squeeze(-1), 1.0), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """The program without latents."""


def rows(n: int = 150, width: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator)
    return x, x[:, 0] + torch.randn(n, generator=generator)


def regress(width: int = WIDTH, **options: Any) -> ppgen.Fit:
    programs = Regression(width)
    return ppgen.fit(programs.model, programs.guide, rows(width=width), **OPTIONS | options)


def same(a: ppgen.Fit, b: ppgen.Fit) -> bool:
    chains = list(zip(a.chains, b.chains, strict=True))
    return all(
        x.stop_reason == y.stop_reason
        and np.array_equal(x.history["loss"], y.history["loss"])
        and all(torch.equal(x.weights[name], y.weights[name]) for name in x.weights)
        for x, y in chains
    )


# Rules.


def test_an_improvement_is_above_the_noise_of_the_difference():
    before = [1.0, 3.0, 5.0, 7.0]
    assert improves([], before, [1] * 4)
    assert improves(before, [v - 0.2 for v in before], [1] * 4)  # every part is better, however different they are
    assert not improves(before, before, [1] * 4)
    assert not improves(before, [0.6, 3.3, 4.6, 7.3], [1] * 4)  # the mean is better by .05, its error is .2
    assert not improves(before, [v - 0.01 for v in before], [1] * 4)  # a hundredth of the error of the loss, 1.3
    assert not improves(before, [math.nan] * 4, [1] * 4)
    assert improves([math.inf], [1.0], [4])


def test_the_standard_error_of_equal_parts_is_the_usual_one():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert standard_error(values, np.full(4, 0.25)) == pytest.approx(values.std(ddof=1) / 2)
    assert standard_error(values[:1], np.ones(1)) == 0


def test_a_loss_falls_where_a_window_has_a_trend():
    noise = np.random.default_rng(0).normal(size=(200, 400))
    trend = np.linspace(0, 1.5, 400)
    flat = [falls(*np.array_split(row, 2)) for row in noise]
    assert np.mean(flat) < 0.08  # the one-sided level of two standard errors, by Student's t with 8 degrees, is .04
    assert np.mean([falls(*np.array_split(row - trend, 2)) for row in noise]) > 0.95
    assert not falls(np.ones(50), np.ones(50))
    assert not falls(np.ones(50), np.full(50, 2.0))


def test_numbers_drift_however_slowly_and_noise_does_not():
    generator = np.random.default_rng(0)
    assert drifts(np.linspace(0, 1e-3, 10)[:, None] + np.ones((1, 3)))
    assert np.mean([drifts(generator.normal(size=(10, 20))) for _ in range(100)]) < 0.2
    assert not drifts(np.ones((10, 4)))
    assert not drifts(np.zeros((10, 0)))


def test_plateaus_lower_the_rates_and_then_end_the_run():
    followed = Convergence(patience=30, lowers=True)
    ends = []
    for step in range(10, 200, 10):
        followed.check(step, [1.0 / min(step, 50)], [1])
        if followed.plateau(step, []):
            ends.append((step, followed.ended, followed.rate(step)))
    assert ends[:3] == [(80, False, 0.2), (100, False, pytest.approx(0.04)), (120, True, pytest.approx(0.04))]


@pytest.mark.parametrize("decay", [None, lambda progress: 1 - progress])
@pytest.mark.parametrize("held_out", [True, False])
def test_a_loss_that_never_improves_takes_the_least_number_of_steps(decay, held_out):
    followed = Convergence(patience=30, lowers=True, decay=decay, held_out=held_out)
    losses: list[float] = []
    while not followed.ended:
        losses.append(1.0)
        followed.plateau(len(losses), losses)
    assert len(losses) == followed.least_steps


def test_a_run_that_overfits_waits_a_third_as_long():
    def first_plateau(worse: float) -> int:
        followed = Convergence(patience=100, lowers=True)
        for step in range(10, 200, 10):
            followed.check(step, [1.0 + worse * (step > 10) + noise for noise in (-0.1, 0.1, 0.0)], [1] * 3)
            if followed.plateau(step, []):
                return step
        raise AssertionError

    assert (first_plateau(0.0), first_plateau(1.0)) == (110, 50)


def test_a_decay_begins_at_the_first_plateau():
    followed = Convergence(patience=30, lowers=True, decay=lambda progress: 1 - progress)
    rates = {}
    for step in range(10, 200, 10):
        followed.check(step, [1.0], [1])
        if followed.plateau(step, []) and followed.ended:
            break
        rates[step] = followed.rate(step)
    assert step == 70
    assert [rates[s] for s in (30, 40, 50, 60)] == pytest.approx([1, 1, 2 / 3, 1 / 3])


# Which rows are held out.


@pytest.mark.parametrize(("n", "share"), [(100, 0.1), (10_000, 0.1), (200_000, 0.025)])
def test_a_tenth_is_held_out_and_at_most_5000_rows(n, share):
    assert default_share(n) == pytest.approx(share)


@pytest.mark.parametrize(("n", "part"), [(2, 2), (10, 4), (80, 10), (5000, 625), (100_000, 1024)])
def test_held_out_rows_come_in_about_eight_parts(n, part):
    assert part_rows(n) == part


def shared(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def jointly(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0))
    pyro.sample("x", dist.Normal(0.0, scale).expand([len(x)]).to_event(1), obs=x)


def per_row(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def amortized(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 1.0))


def nothing(x: Tensor) -> None:
    """A guide without latents."""


@pytest.mark.parametrize(
    ("model", "guide", "expected"),
    [
        (shared, AutoNormal(shared), False),
        (local, AutoNormal(local), False),
        (local, per_row, False),
        (jointly, nothing, False),
        (local, amortized, True),
        (local, ppgen.AutoFlow(local, amortized="x"), True),
    ],
    ids=["global latents", "an autoguide of rows", "a parameter per row", "no plate", "amortized", "amortized flow"],
)
def test_rows_are_independent_where_no_latent_or_parameter_is_shared_or_owned(model, guide, expected):
    assert rows_are_independent(model, guide, (torch.randn(20),)) is expected
    assert rows_are_independent(model, guide, (torch.randn(5),)) is False


# Runs.


def test_a_default_run_ends_with_its_best_check_and_the_ceiling_changes_nothing(quick):
    fit = regress()
    (chain,) = fit.chains
    assert chain.stop_reason.startswith("converged: the held-out loss has not improved since step ")
    assert fit.metadata["length"].startswith("15 of 150 rows are held out")
    assert chain.final == chain.validation["loss"].min()
    assert chain.best_step < len(chain.history["loss"]) < 300
    longer = regress(max_steps=2 * convergence.MAX_STEPS)
    assert same(longer, fit)
    with pytest.warns(UserWarning, match="long after the best held-out loss.*give patience= to keep the best weights"):
        counted = regress(steps=300, validation=0.1)
    assert "completed 300 steps, long after the best held-out loss" in counted.chains[0].stop_reason
    assert chain.final < counted.chains[0].final - 0.1


@pytest.mark.parametrize("stop", [20, 38, 58], ids=["before a plateau", "after one", "after two"])
def test_a_run_that_was_stopped_converges_as_the_uninterrupted_one(quick, stop, tmp_path):
    def interrupt(step: TrainingStep) -> None:
        if step.number == stop:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"ema": 0.5, "checkpoint": tmp_path / "run"}
    first = regress(**options, callbacks=[interrupt])
    assert first.chains[0].interrupted
    resumed = regress(**options)
    assert same(resumed, regress(ema=0.5))
    assert len(resumed.history["loss"]) > 60


def test_the_ceiling_is_named_and_warned_of(quick):
    with pytest.warns(UserWarning, match="before it had converged: give a larger max_steps, or a larger learning rate"):
        fit = regress(2, max_steps=60, optim=partial(torch.optim.Adam, lr=1e-3))
    assert fit.chains[0].stop_reason == "reached the ceiling of 60 steps, before it had converged"


def test_a_counted_run_that_was_still_improving_says_so(quick):
    with pytest.warns(UserWarning, match="was still improving.*give more steps, or neither steps nor epochs"):
        fit = regress(2, steps=60, validation=0.2, optim=partial(torch.optim.Adam, lr=1e-3))
    assert "completed 60 steps, while the held-out loss was still improving" in fit.chains[0].stop_reason


@pytest.mark.parametrize(("best", "words"), [(850, "long after the best held-out loss"), (980, "still improving")])
def test_a_best_check_in_the_last_tenth_of_a_counted_run_is_not_long_ago(best, words):
    run = SimpleNamespace(steps=1000, selects=False, validation={"loss": [3.0, 1.0, 2.0]}, convergence=Convergence())
    run.convergence.since = best
    vars(run).update(_best=best, _best_loss=1.0, _best_parts=[0.9, 1.1], _last_parts=[1.9, 2.1], _rows=[1, 1])
    assert words in TrainingMonitor.unfinished.fget(run)


def test_patience_is_the_same_whatever_epochs_is(quick):
    fits = [regress(epochs=epochs, patience=30) for epochs in (500, 1000)]
    assert same(*fits)
    assert fits[0].chains[0].stop_reason.startswith("the held-out loss has not improved since step")


def test_global_latents_converge_to_the_posterior_with_all_rows(quick):
    """Normal data and prior: the posterior of the mean is N(sum x / (n + 1/100), 1 / (n + 1/100))."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 3
    guide = AutoNormal(shared)
    fit = ppgen.fit(shared, guide, x, **OPTIONS)
    (chain,) = fit.chains
    assert "all rows count for the posterior" in fit.metadata["length"]
    assert not len(chain.validation["loss"])
    assert chain.stop_reason.startswith("converged: the loss has not improved beyond its noise")
    deviation = 1 / math.sqrt(200.01)
    with fit.eval_mode():
        assert float(guide.median()["mean"]) == pytest.approx(float(x.sum() / 200.01), abs=0.2 * deviation)


def test_a_score_chooses_the_weights(quick):
    """The score is least where the first weight is .5, which the loss passes on its way to 1."""
    programs, asked = Regression(WIDTH), []

    def score() -> list[float]:
        programs.linear(torch.zeros(1, WIDTH))
        asked.append(programs.linear.training)
        return [abs(programs.linear.weight[0, 0].item() - 0.5)] * 3

    fit = ppgen.fit(programs.model, programs.guide, rows(), score=score, **OPTIONS)
    assert not any(asked)
    assert programs.linear.weight[0, 0].item() == pytest.approx(0.5, abs=0.1)
    assert fit.chains[0].final == fit.chains[0].validation["loss"].min()
    with pytest.raises(ValueError, match="score takes the place of the loss on validation data"):
        regress(score=score, validation=0.1)


def test_schedules_end_before_checks_count(quick, monkeypatch):
    for name in ("SCHEDULE_STEPS", "SCHEDULE_PASSES"):
        monkeypatch.setattr(f"ppgen.training.loop.{name}", 60)
    loss = ppgen.Ramp(1.0) * ppgen.ELBO()
    fit = regress(loss=loss)
    assert loss.total == 60
    assert fit.chains[0].best_step >= 60
    assert fit.chains[0].validation["loss"][0] < fit.chains[0].final  # of a loss whose weight is near zero


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rates_decay_at_the_end_of_a_run_without_a_length(quick, schedule):
    rates: list[float] = []
    fit = regress(lr_scheduler=schedule, callbacks=[lambda step: rates.append(step.svi.optimizer.rate_factor)])
    assert fit.chains[0].stop_reason.endswith(f"and learning rates fell to zero, at step {len(rates)}")
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1] < 0.1) == (1.0, True)


class Shift(nn.Module):
    """A generator x = z + b, whose data have mean 2."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def model(self, x: Tensor) -> None:
        pyro.module("shift", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z + self.shift, event_dim=1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_a_game_is_judged_by_held_out_samples(quick):
    torch.manual_seed(0)
    x, programs = torch.randn(1000, 2) + 2, Shift()
    loss = ppgen.recipes.r1_gan(hidden=(8,), optim=partial(torch.optim.Adam, lr=0.02))
    fit = ppgen.fit(programs.model, programs.guide, x, loss=loss, batch_size=100, **OPTIONS)
    (chain,) = fit.chains
    assert chain.final == chain.validation["loss"].min() < 0.1 * chain.validation["loss"][0]
    assert programs.shift.detach().tolist() == pytest.approx([2, 2], abs=0.4)
    counted = ppgen.fit(
        programs.model, programs.guide, x, loss=loss, batch_size=100, steps=40, validation=0.2, **OPTIONS
    )
    assert counted.chains[0].stop_reason == "completed 40 steps"  # its loss does not tell whether samples get better
    judge = without_critics(loss)
    assert not judge.critics
    assert list(judge.breakdown(programs.model, programs.guide, x)) == ["EnergyDistance(x)"]
    few = x[:10]
    once = ppgen.match(ppgen.views.data("x"), ppgen.views.generated("x"), ppgen.metrics.EnergyDistance())
    noise = [np.std([by.loss(programs.model, programs.guide, few) for _ in range(20)]) for by in (judge, once)]
    assert noise[0] < 0.4 * noise[1]  # few rows are compared with many draws
    with pytest.raises(ValueError, match="nothing is held out of fewer than 100 rows: give steps, epochs, validation"):
        ppgen.fit(programs.model, programs.guide, x[:50], loss=loss, **OPTIONS)
