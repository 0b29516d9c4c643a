"""Simulators: their draws, `Sleep` on a table of simulations, and errors."""

from functools import partial
from inspect import signature

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn

import ppgen
from ppgen.diagnostics.checks.check import UNKNOWN
from ppgen.tracing.traces import Traces
from ppgen.training import chain


def one(x=None):
    """A scale on an interval and a vector, observed with noise: z = (a, b) of shapes () and (2,)."""
    a = pyro.sample("a", dist.Uniform(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", dist.Normal(a.unsqueeze(-1) * b, 0.1).to_event(1), obs=x)


def paths(x=None, y=None):
    """A program with a plate and two observed sites."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("time", 5, dim=-1):
        pyro.sample("x", dist.Normal(level, 1.0), obs=x)
        pyro.sample("y", dist.Poisson(level.exp()), obs=y)


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(self.layer(z), 0.1).to_event(1), obs=x)


def simulate(theta):  # code without torch
    return np.stack([theta[:, 0].numpy() ** 2, np.sign(theta[:, 1].numpy())], -1)


def implicit(x=None):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", ppgen.Implicit(simulate, theta, event_shape=(2,)), obs=x)


SHAPES = {
    "one": (one, {"x": (2,), "a": (), "b": (2,)}),
    "paths": (paths, {"x": (5,), "y": (5,), "level": (1,)}),
    "network": (Network(), {"x": (3,), "z": (2,)}),
    "implicit": (implicit, {"x": (2,), "theta": (2,)}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_draws_have_the_shapes_that_the_program_expects(name):
    model, shapes = SHAPES[name]
    simulator = ppgen.Simulator(model)
    before = torch.get_rng_state()
    table = simulator.draw(7, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert {k: tuple(v.shape) for k, v in table._asdict().items()} == {k: (7, *s) for k, s in shapes.items()}
    assert list(signature(simulator).parameters) == [*simulator.data, *simulator.latents] == list(shapes)
    for part, again in zip(table, simulator.draw(7, seed=1), strict=True):
        assert torch.equal(part, again)
        assert not part.requires_grad
    trace = poutine.trace(simulator).get_trace(*table)
    for observed in simulator.data:
        assert torch.equal(trace.nodes[observed]["value"], getattr(table, observed))
    assert Traces(simulator, lambda *_: None, tuple(table)).generated.nodes["data"]["value"].shape == (7,)


@pytest.mark.parametrize("name", ["one", "network"])
def test_each_row_has_the_density_of_a_single_datum(name):
    model, _ = SHAPES[name]
    simulator = ppgen.Simulator(model)
    table = simulator.draw(4, seed=0)
    values = table._asdict()
    rows = poutine.trace(poutine.condition(simulator, data=values)).get_trace(table.x)
    rows.compute_log_prob()
    for i in range(4):
        single = poutine.condition(model, data={k: v[i] for k, v in values.items()})
        trace = poutine.trace(single).get_trace(table.x[i])
        trace.compute_log_prob()
        for site in values:
            torch.testing.assert_close(rows.nodes[site]["log_prob"][i], trace.nodes[site]["log_prob"])


def guide(x, a=None, b=None):
    loc, scale = pyro.param("loc", torch.zeros(2)), pyro.param("scale", torch.ones(2), constraint=POSITIVE)
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Uniform(0.0, 2.0 + pyro.param("slack", torch.zeros(())) ** 2))
        pyro.sample("b", dist.Normal(loc * x, scale).to_event(1))


POSITIVE = dist.constraints.positive


def test_sleep_on_a_table_is_the_mean_log_density_without_simulation():
    simulator = ppgen.Simulator(one)
    table = simulator.draw(50, seed=5)
    before = torch.get_rng_state()
    value = ppgen.Sleep().loss(simulator, guide, *table)
    assert torch.equal(torch.get_rng_state(), before)
    expected = dist.Uniform(0.0, 2.0).log_prob(table.a) + dist.Normal(0.0, 1.0).log_prob(table.b).sum(-1)
    assert value == pytest.approx(-float(expected.mean()), rel=1e-5)
    values = {ppgen.Sleep().loss(simulator, guide, table.x) for _ in range(3)}
    assert len(values | {value}) == 4


@pytest.mark.parametrize("model", [one, implicit])
def test_a_flow_learns_from_a_table_with_early_stopping(model, monkeypatch):
    monkeypatch.setattr(chain, "PATIENCE_STEPS", 1)
    simulator = ppgen.Simulator(model)
    table = simulator.draw(300, seed=0)
    torch.manual_seed(0)
    flow = ppgen.AutoFlow(simulator, amortized="x", flow="maf", layers=1, hidden=(16,), init_scale=1.0)
    fit = ppgen.fit(
        *(simulator, flow, table),
        loss=ppgen.Sleep(),
        optim=partial(torch.optim.Adam, lr=0.05),
        batch_size=100,
        validation=0.2,
        patience=2,
        epochs=60,
        compile=False,
    )
    (trained,) = fit.chains
    losses = trained.validation["loss"]
    assert losses.min() < losses[0] - 0.2
    assert trained.stop_reason.startswith("the held-out loss has not improved since step")
    assert trained.final == losses.min()
    with fit.eval_mode():
        drawn = fit.guide(table.x[:1].expand(20, -1))
    assert set(drawn) == set(simulator.latents)
    assert all(len(part) == 20 for part in drawn.values())


def test_an_encoder_summarizes_the_data():
    """The mean of the data is a sufficient statistic."""

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(-1, keepdim=True)

    def model(x=None):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(level.unsqueeze(-1), 1.0).expand([*level.shape, 8]).to_event(1), obs=x)

    simulator = ppgen.Simulator(model)
    flow = ppgen.AutoFlow(simulator, amortized="x", flow="lu_linear", encoder=Mean(), init_scale=1.0)
    adam = partial(torch.optim.Adam, lr=0.05)
    x = simulator.draw(256, seed=0).x
    options = {"optim": adam, "steps": 200, "lr_scheduler": "cosine", "compile": False}
    ppgen.fit(simulator, flow, x, loss=ppgen.Sleep(), **options)
    distribution = flow.get_posterior(torch.stack([torch.zeros(8), torch.ones(8)]))  # N(8 mean / 9, 1 / 9)
    u = distribution.expand((4000, 2)).sample().squeeze(-1)
    assert u.mean(0).tolist() == pytest.approx([0.0, 8 / 9], abs=0.06)
    assert u.std(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.04)


# errors


def named_otherwise(data=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=data)


def no_latents(x=None):
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def with_plate(x=None):
    with pyro.plate("data", 3):
        one(x)


def first_row(x=None):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", dist.Normal(theta[0], 1.0), obs=x)


def summed(x=None):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", dist.Normal(theta.sum(), 1.0), obs=x)


REFUSED = {
    "no argument of the site's name": (named_otherwise, LookupError, r"arguments, 'data', has the name.*'z', 'x'"),
    "no latents": (no_latents, ValueError, r"has the sites 'x' and no latents"),
    "a plate of data": (with_plate, ValueError, r'has a plate "data"'),
    "an index from the left": (first_row, ValueError, r"the distribution of 'x' in one row depends.*z\[\.\.\., 0\]"),
    "a sum of all": (summed, ValueError, r"the distribution of 'x' in one row depends on the latents of the other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_are_no_simulators_are_refused(name):
    model, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        ppgen.Simulator(model)


def test_bad_arguments_are_refused():
    simulator = ppgen.Simulator(one)
    table = simulator.draw(3)
    with pytest.raises(
        ValueError, match=r"expected the same number of rows of 'x', got none; to simulate, call draw\(n\)"
    ):
        simulator()
    with pytest.raises(ValueError, match=r"got \{'x': 3, 'y': 2\}"):
        ppgen.Simulator(paths)(torch.zeros(3, 5), torch.zeros(2, 5))
    with pytest.raises(
        ValueError, match=r"of shape \(5,\) each, as the model simulates them, got \(5,\); .* x\[None\]"
    ):
        ppgen.Simulator(paths)(torch.zeros(5), torch.zeros(5, 5))  # would broadcast to five equal rows
    with pytest.raises(ValueError, match=r"at least one simulation, got n=0"):
        simulator.draw(0)
    with pytest.raises(LookupError, match=r"of the latents 'a', 'b' the simulations lack 'b'"):
        ppgen.Sleep().loss(simulator, guide, table.x, table.a)


def test_an_implicit_distribution_has_no_density_and_checks_shapes():
    theta = torch.zeros(3, 2)
    with pytest.raises(NotImplementedError, match=r"has no density; use Sleep\(\), which needs none"):
        ppgen.ELBO().loss(ppgen.Simulator(implicit), ppgen.AutoFlow(ppgen.Simulator(implicit), amortized="x"), theta)
    with pytest.raises(ValueError, match=r"expected draws of shape \(3, 5\) from the function, got \(3, 2\)"):
        ppgen.Implicit(simulate, theta, event_shape=(5,)).sample()
    assert ppgen.Implicit(simulate, theta, event_shape=(2,)).expand((4, 3)).sample().shape == (4, 3, 2)


def shifted(x=None):
    """A simulator without a density: theta + noise, NaN where theta[0] is above 0.9."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))

    def simulate(rows):
        return torch.where(rows[:, :1] > 0.9, torch.nan, rows + 0.1 * torch.randn_like(rows))

    pyro.sample("x", ppgen.Implicit(simulate, theta, event_shape=(2,)), obs=x)


def scaled(x, theta=None):
    """A guide that takes a simulation for its parameters."""
    with pyro.plate("data", len(x)):
        scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
        center = dist.Normal(x.nan_to_num(), scale).to_event(1)
        pyro.sample("theta", dist.TransformedDistribution(center, [dist.transforms.SigmoidTransform()]))


def test_a_posterior_of_a_simulator_has_draws_and_no_weights():
    simulator = ppgen.Simulator(shifted)
    table = simulator.draw(64, seed=0)
    ok = ~table.x.isnan().any(1)
    fit = ppgen.fit(simulator, scaled, tuple(part[ok] for part in table), loss=ppgen.Sleep(), steps=2, progress=False)
    x = torch.tensor([[0.2, 0.4], [0.3, 0.1]])
    idata = fit.to_arviz(x, draws=50)
    assert idata.posterior["theta"].shape == (1, 50, 2, 2)
    assert np.allclose(idata.posterior["theta"].values.mean((0, 1)), x.sigmoid(), atol=0.1)  # the guide's own
    assert idata.posterior_predictive["x"].shape == (1, 50, 2, 2)
    error = idata.posterior_predictive["x"].values - idata.posterior["theta"].values
    assert np.nanstd(error) == pytest.approx(0.1, abs=0.02)  # each draw is simulated at its own parameters
    assert "Implicit" in idata.posterior.attrs["density"]
    verdict = fit.diagnose(x, draws=50)
    assert verdict.level == UNKNOWN
    assert "sbc" in str(verdict)


def test_simulations_with_nan_are_reported():
    simulator = ppgen.Simulator(shifted)
    table = simulator.draw(64, seed=0)
    count = int(table.x.isnan().any(1).sum())
    with pytest.warns(UserWarning, match=rf"data\[0\]: {count} of 64 simulations of 'x' have NaN .*isnan"):
        ppgen.fit(simulator, scaled, table, loss=ppgen.Sleep(), steps=1, compile=False, progress=False)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda rows: {"x": rows}, "expected a tensor or an array.*got dict"),
        (torch.Tensor.cfloat, "expected real draws"),
    ],
)
def test_draws_that_are_no_real_tensors_are_refused(draw, message):
    with pytest.raises(TypeError, match=message):
        ppgen.Implicit(draw, torch.zeros(3, 2), event_shape=(2,)).sample()
