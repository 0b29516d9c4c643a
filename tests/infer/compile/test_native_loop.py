"""`SVI.run`: many steps, also as one call of a loop, are the same steps as one after the other."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen.infer.compile.building import Build
from ppgen.infer.compile.native_loop import NativeLoop

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCALE = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(y, scale):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + spread * effect, scale), obs=y)


def svi(optim, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return ppgen.SVI(eight_schools, AutoNormal(eight_schools), optim, ppgen.ELBO(), **options)


def scaled(y):
    scale = pyro.sample("scale", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0 + scale), obs=y)


def scaled_guide(y):
    factor = pyro.param("factor", torch.tensor(1.0), constraint=dist.constraints.positive)
    noise = pyro.sample("noise", dist.Exponential(1.0), infer={"is_auxiliary": True})
    pyro.sample("scale", dist.Delta(factor * noise, log_density=-factor.log()))


ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def test_steps_that_are_not_compiled_are_those_of_step():
    run = svi(ADAM, compile=False).run(20, Y, SCALE, progress=False)
    stepped = svi(ADAM, compile=False)
    assert run.losses.tolist() == [stepped.step(Y, SCALE) for _ in range(20)]
    for name, value in stepped.optimizer.parameters.items():
        torch.testing.assert_close(run.params[name], value.detach(), rtol=0, atol=0)


def test_a_run_of_no_steps_is_an_error():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        svi(ADAM, compile=False).run(0, Y, SCALE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optim",
    [
        pytest.param(ADAM, id="adam"),
        pytest.param(functools.partial(torch.optim.SGD, lr=0.001, momentum=0.5), id="momentum"),
        pytest.param(pyro.optim.ClippedAdam({"lr": 0.01, "clip_norm": 1.0}), id="pyro"),
    ],
)
def test_a_loop_takes_the_steps_of_compiled_ones(optim, monkeypatch):
    """The losses, the parameters and torch's random state after 300 steps, of which 285 are in loops; then 50 more."""
    looped, stepped = svi(optim, compile=True), None
    found = [looped.run(300, Y, SCALE, progress=False), looped.run(50, Y, SCALE, progress=False)]
    assert looped.compile_status.startswith("many steps a call")
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:  # a later run finds the library, even if it is short
        patch.setattr(NativeLoop, "compile", None)
        patch.setattr(Build, "now", None)
        again = svi(optim, compile=True).run(300, Y, SCALE, progress=False)
        torch.testing.assert_close(again.losses, found[0].losses, rtol=0, atol=0)
    torch.set_rng_state(state)
    stepped = svi(optim, compile=True)
    losses = torch.tensor([stepped.step(Y, SCALE) for _ in range(350)])
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(torch.cat([part.losses for part in found]), losses, rtol=1e-5, atol=1e-5)
    for name, value in stepped.optimizer.parameters.items():
        torch.testing.assert_close(found[-1].params[name], value.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_a_loop_cannot_do_is_done_step_by_step():
    halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=50, gamma=0.5)
    scheduled = svi(ADAM, compile=True, lr_scheduler=halving)
    scheduled.run(60, Y, SCALE, progress=False)
    assert scheduled.optimizer.torch_optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    pyro.clear_param_store()
    other = ppgen.SVI(scaled, scaled_guide, ADAM, ppgen.ELBO(), compile=True)
    assert len(other.run(60, Y, progress=False).losses) == 60
    assert "one by one" in other.compile_status
