"""A posterior within a budget of seconds, by a clock that counts evaluations of log p."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen.fitting import _sample_if_refused
from ppgen.posterior.auto import find_posterior
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.utils.budget import Budget

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
A_GRADIENT, A_VALUE = 3e-3, 1e-3  # seconds that an evaluation takes


def schools(y):
    mean, scale = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + scale * z, ERRORS), obs=y)


def within(monkeypatch, seconds: float) -> tuple[ppgen.training.result.Fitted, float]:
    """The fit within a budget, and the seconds that its evaluations took."""
    from ppgen.posterior import auto

    targets = []

    class Watched(auto.UnconstrainedLogDensity):
        def __init__(self, *args):
            super().__init__(*args)
            targets.append(self)

    def clock() -> float:
        if not targets:
            return 0.0
        done = targets[-1].evaluations
        return A_GRADIENT * done["gradients"] + A_VALUE * done["values"]

    monkeypatch.setattr(auto, "UnconstrainedLogDensity", Watched)
    fit = find_posterior(schools, (EFFECTS,), budget=Budget(seconds, clock=clock))
    return fit, clock()


@pytest.mark.parametrize("seconds", [4.0, 20.0])
def test_a_budget_is_kept(monkeypatch, seconds):
    """Within a tenth, or what a single step of each stage takes."""
    with pytest.warns(UserWarning, match=f"the budget of {seconds:g} s was over: this is a"):
        fit, taken = within(monkeypatch, seconds)
    assert seconds <= taken < 1.1 * seconds + 3.0
    assert fit.metadata["evaluations"]["gradients"] > 0


@pytest.mark.slow
def test_a_sampler_after_a_refusal_keeps_the_budget_too(monkeypatch):
    """The verdict, the search for modes and the sampler together; within a tenth, or a single step of each."""
    seconds = 4.0
    density, targets = UnconstrainedLogDensity, []
    create = density.__init__

    def watched(self, *args, **kwargs):
        create(self, *args, **kwargs)
        targets.append(self)

    def clock() -> float:
        count = {kind: sum(target.evaluations[kind] for target in targets) for kind in ("gradients", "values")}
        return A_GRADIENT * count["gradients"] / 100 + A_VALUE * count["values"] / 100

    centered = AutoNormal(schools)
    fit = ppgen.fit(schools, centered, EFFECTS.float(), steps=1, compile=False, progress=False)
    monkeypatch.setattr(density, "__init__", watched)
    refined = _sample_if_refused(fit, (EFFECTS,), 0, Budget(seconds, clock=clock))
    assert refined.stored_draws
    assert clock() < 1.1 * seconds + 1.5
    assert "the budget of" in refined.chains[0].stop_reason


def test_a_budget_that_suffices_changes_nothing():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double()

    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(4.0, mean, 1.0).to_event(1), obs=x)

    free, limited = (ppgen.fit(model, "auto", x, budget=seconds, progress=False) for seconds in (None, 1e4))
    for name, value in free.chains[0].weights.items():
        assert torch.equal(value, limited.chains[0].weights[name])


def test_a_budget_that_is_too_small_or_not_for_this_guide_is_refused():
    with pytest.raises(ValueError, match="budget of 1e-09 s was over before the search began"):
        ppgen.fit(schools, "auto", EFFECTS, budget=1e-9, progress=False)
    with pytest.raises(ValueError, match="budget must be a positive number of seconds, got 0"):
        ppgen.fit(schools, "auto", EFFECTS, budget=0, progress=False)
    with pytest.raises(ValueError, match='budget is for guide="auto"'):
        ppgen.fit(schools, lambda y: None, EFFECTS, budget=5, steps=1, progress=False)
