"""AutoFlow: its initial distribution, its draws, its fits and its errors, over every flow and kind of plate."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from torch import nn

import ppgen
from ppgen.flows import FLOWS
from ppgen.infer import AutoFlow
from ppgen.infer.parameters import ProgramState, snapshot
from ppgen.tracing.particles import log_weights
from ppgen.tracing.traces import Traces

SMALL = {"layers": 1, "hidden": (8,)}
DATA = torch.tensor([[0.5, -1.0], [1.5, 0.3], [-0.7, 2.0], [0.1, 0.2], [1.0, -1.0], [2.0, 0.5]])
SLOW_TO_SAMPLE = ("naf", "sum_of_squares", "bernstein", "continuous")  # drawn by bisection or by a solver


def constrained(x):
    """Latents of several supports and shapes, global and in two plates."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("features", x.shape[1], dim=-2), pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Normal(z + weights[..., :1], scale), obs=x.T)


def local(x):
    """Two latents of a row, one of them positive."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
        pyro.sample("x", dist.Normal(z, s[..., None]).to_event(1), obs=x)


def subsampled(x):
    """The rows are a batch out of 60."""
    with pyro.plate("data", 60, subsample=x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def drawn_rows(x):
    """The model subsamples its rows."""
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x[rows])


def outer_rows(x):
    """The plate of rows is not the last one of the model."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def gaussian():
    """N(loc, covariance), by its factor."""
    pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.8], [0.8, 2.0]])))


PROGRAMS = {
    "constrained": (constrained, None),
    "local": (local, None),
    "local, amortized": (local, "x"),
    "subsampled, amortized": (subsampled, "x"),
    "drawn rows, amortized": (drawn_rows, "x"),
    "outer rows, amortized": (outer_rows, ("x",)),
}
every_program = pytest.mark.parametrize("name", PROGRAMS)


def made(model, *args, **options) -> AutoFlow:
    guide = AutoFlow(model, **{**SMALL, **options})
    guide(*args)
    return guide


def moved(guide: AutoFlow, by: float = 0.1) -> AutoFlow:
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return guide


# initialization


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("amortized", [None, "x"])
def test_initial_distribution_is_the_given_gaussian(name, amortized):
    """Exactly where a flow can start at the identity, in mean and standard deviation otherwise.

    Those are judged on 4000 draws: 5 standard errors, a level of 1e-6 a number.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    small = SMALL if name not in ("lu_linear", "continuous") else {"hidden": (8,)}
    at = pyro.infer.autoguide.init_to_value(values={"z": torch.tensor([[0.5, -2.0]]).expand(1, 2)})
    guide = AutoFlow(model, flow=name, amortized=amortized, init_scale=0.3, init_loc_fn=at, **small)
    guide(x := torch.zeros(1, 1))
    distribution = guide.get_posterior(x)
    start = dist.Normal(torch.tensor([0.5, -2.0]), 0.3).to_event(1)
    u = distribution.expand((4000, 1) if amortized else (4000,)).sample().reshape(-1, 2)
    torch.testing.assert_close(u.mean(0), torch.tensor([0.5, -2.0]), atol=5 * 0.3 / 4000**0.5, rtol=0)
    torch.testing.assert_close(u.std(0), torch.full((2,), 0.3), atol=5 * 0.3 / 8000**0.5 * 1.5, rtol=0)
    if name not in ("naf", "sum_of_squares"):
        torch.testing.assert_close(distribution.log_prob(u), start.log_prob(u), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in FLOWS if name not in SLOW_TO_SAMPLE])
def test_every_weight_has_a_gradient_at_the_start(name):
    guide = made(gaussian, flow=name, **({} if name != "lu_linear" else {"layers": None}))
    pyro.set_rng_seed(0)
    svi = ppgen.SVI(gaussian, guide, partial(torch.optim.Adam, lr=0.01), ppgen.ELBO(), compile=False)
    before = [parameter.detach().clone() for parameter in guide.flow.parameters()]
    for _ in range(3):
        svi.step()
    still = [p for p, old in zip(guide.flow.parameters(), before, strict=True) if torch.equal(p, old)]
    assert len(still) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsf_autoregressive", "naf"])
@pytest.mark.parametrize("amortized", [None, "x"])
def test_after_a_restart_it_is_a_gaussian_again(name, amortized):
    """Of the same width, where it was if amortized and within 2 of it if not, its networks drawn again.

    Judged on 4000 draws: 5 standard errors of each mean are .04.
    """
    model, args = (subsampled, (DATA,)) if amortized else (gaussian, ())
    guide = made(model, *args, flow=name, amortized=amortized, init_scale=0.5)
    state = ProgramState.from_programs(model, guide, args)
    start = snapshot(state.tensors)
    before = guide.get_posterior(*args).expand((4000, len(DATA)) if amortized else (4000,)).sample().mean(0)
    moved(guide, by=1.0)
    state.restart(start)
    distribution = guide.get_posterior(*args)
    u = distribution.expand((4000, *distribution.batch_shape)).sample()
    move = float((u.mean(0) - before).abs().max())
    assert float((u.std(0) - 0.5).abs().max()) < 0.05
    assert move < 0.08 if amortized else 0.1 < move < 2.1
    correlations = u.flatten(1).T.corrcoef() - torch.eye(u[0].numel())
    assert float(correlations.abs().max()) < 0.1
    if name != "naf":  # exactly so
        exact = dist.Normal(guide.loc, 0.5).to_event(1)
        torch.testing.assert_close(distribution.log_prob(u), exact.log_prob(u))
    drawn = [key for key in start if key.endswith(("hyper.0.weight", "network.0.weight"))]
    assert drawn
    assert not any(torch.equal(state.tensors[key], start[key]) for key in drawn)


# draws


@every_program
def test_draws_have_the_shapes_of_their_plates(name):
    model, amortized = PROGRAMS[name]
    guide = moved(made(model, DATA, amortized=amortized))
    draws = Traces(model, guide, (DATA,))
    draws.with_log_probs  # noqa: B018
    shapes = {k: s["value"].shape for k, s in draws.guide_trace.nodes.items() if k in ("weights", "scale", "z", "s")}
    rows = 4 if model is drawn_rows else 6
    expected = {
        constrained: {"weights": (3,), "scale": (), "z": (2, 6)},
        local: {"z": (6, 2), "s": (6,)},
        outer_rows: {"z": (6, 1)},
    }
    assert shapes == expected.get(model, {"z": (rows, 2)})


@every_program
def test_density_of_a_draw_equals_that_by_the_inverse(name):
    """The density of a draw is known from the forward pass; that of a copy needs the inverse."""
    model, amortized = PROGRAMS[name]
    guide = moved(made(model, DATA.double(), amortized=amortized)).double()
    distribution = guide.get_posterior(DATA.double())
    u = distribution.rsample((5,))
    torch.testing.assert_close(distribution.log_prob(u), distribution.log_prob(u.clone()), atol=1e-8, rtol=1e-8)
    assert u.shape == (5, *distribution.batch_shape, *distribution.event_shape)


@every_program
def test_density_is_that_of_its_draws(name):
    """E_q[b(z) / q(z)] = 1 for a distribution b inside of q: 4000 draws, at 5 standard errors (a level of 1e-6)."""
    model, amortized = PROGRAMS[name]
    guide = moved(made(model, DATA, amortized=amortized), 0.02)
    distribution = guide.get_posterior(DATA)
    u = distribution.expand((4000, *distribution.batch_shape)).sample()
    inside = dist.Normal(u.mean(0), 0.8 * u.std(0)).to_event(1)
    weights = (inside.log_prob(u) - distribution.log_prob(u.clone())).exp()
    assert ((weights.mean(0) - 1).abs() < 5 * weights.std(0) / 4000**0.5 + 1e-2).all()


@pytest.mark.parametrize("name", ["local, amortized", "subsampled, amortized"])
def test_distribution_of_a_row_does_not_depend_on_other_rows(name):
    """In batches of any size."""
    model, amortized = PROGRAMS[name]
    guide = moved(made(model, DATA, amortized=amortized))
    distribution, part = guide.get_posterior(DATA), guide.get_posterior(DATA[2:4])
    u = distribution.sample()
    torch.testing.assert_close(distribution.log_prob(u)[2:4], part.log_prob(u[2:4]))
    assert not torch.allclose(distribution.loc[0], distribution.loc[1])
    # and it has the scale that the model gives it
    for rows in (6, 2):
        model_trace, guide_trace = Traces(model, guide, (DATA[:rows],)).with_log_probs
        assert (
            guide_trace.nodes["z"]["scale"]
            == model_trace.nodes["z"]["scale"]
            == (60 / rows if model is subsampled else 1)
        )


def test_subsampled_rows_have_their_own_contexts():
    guide = moved(made(drawn_rows, DATA, amortized="x"))
    draws = Traces(drawn_rows, guide, (DATA,))
    rows = draws.model_trace.nodes["data"]["value"]
    assert len(rows) == 4
    name = next(k for k in draws.guide_trace.nodes if k.endswith("_latent"))
    torch.testing.assert_close(draws.guide_trace.nodes[name]["fn"].loc, guide.get_posterior(DATA).loc[rows])


# fits


def learn(model, guide, *data, steps=300, lr=0.02, **options):
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=2)
    adam = partial(torch.optim.Adam, lr=lr)
    loss = ppgen.ELBO(elbo=elbo, path_derivative=True)
    return ppgen.fit(
        *(model, guide, data or None),
        loss=loss,
        optim=adam,
        steps=steps,
        lr_scheduler="cosine",
        compile=False,
        **options,
    )


def test_fit_finds_a_gaussian_exactly():
    """Whose evidence, log 1, every draw then gives: path derivatives have no variance there."""
    fit = learn(gaussian, AutoFlow(gaussian, flow="maf", init_scale=1.0, **SMALL))
    weights = log_weights(gaussian, fit.guide, (), particles=200)
    assert weights.std() < 0.05
    assert float(weights.mean()) == pytest.approx(0.0, abs=0.01)


def test_amortized_fit_finds_the_posterior_of_each_row():
    """z_i given x_i is N(.8 x_i, .2 I)."""
    x = torch.randn(40, 2)
    fit = learn(subsampled, AutoFlow(subsampled, flow="maf", amortized="x", **SMALL), x, batch_size=20)
    distribution = fit.guide.get_posterior(DATA[:4])
    u = distribution.expand((2000, 4)).sample()
    exact = dist.Normal(0.8 * DATA[:4], 0.2**0.5).to_event(1)
    assert float((distribution.log_prob(u) - exact.log_prob(u)).detach().mean(0).max()) < 0.1


def test_linear_posterior_is_learned_from_few_simulations():
    """theta ~ N(0, I) of ten numbers, x ~ N(theta, I): theta given x is N(x / 2, I / 2). A linear regression on as many
    rows is behind by 165 parameters / 2 / 1000 rows = .08 nats.
    """

    def model(x=None):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
        pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    simulator = ppgen.Simulator(model)
    guide = AutoFlow(simulator, flow="maf", layers=1, hidden=(32, 32), amortized="x", init_scale=1.0)
    adam = partial(torch.optim.Adam, lr=3e-3)
    options = {"epochs": 12, "batch_size": 100, "lr_scheduler": "cosine", "ema": 0.99, "progress": False}
    options |= {"compile": False, "restarts": 2}
    fit = ppgen.fit(simulator, guide, simulator.draw(1000, seed=1), loss=ppgen.Sleep(), optim=adam, **options)
    new = simulator.draw(5000, seed=2)
    exact = dist.Normal(new.x / 2, 0.5**0.5).to_event(1).log_prob(new.theta).mean()
    for chain in (0, 1):
        with torch.no_grad(), fit.eval_mode(chain):
            behind = exact - guide.get_posterior(new.x).log_prob(new.theta).mean()
        assert 0.05 < float(behind) < 0.2


@pytest.mark.parametrize("amortized", [None, "x"])
def test_fit_is_exported_to_arviz_and_saved(amortized, tmp_path):
    x = DATA
    fit = learn(local, AutoFlow(local, flow="nsf", amortized=amortized, **SMALL), x, steps=5, restarts=2)
    stats = fit.to_arviz(x, draws=50).vi_stats
    assert stats.pareto_k.shape == ((2, 6) if amortized else (2,))
    fit.save(tmp_path / "fit.safetensors")
    again = ppgen.Fit.load(
        tmp_path / "fit.safetensors", local, AutoFlow(local, flow="nsf", amortized=amortized, **SMALL)
    )
    first, second = fit.guide.get_posterior(x), again.guide.get_posterior(x)
    u = first.sample()
    torch.testing.assert_close(first.log_prob(u.clone()), second.log_prob(u.clone()))


def test_compiled_steps_equal_eager_ones(builds):
    """Without inductor; batches of two sizes, path derivatives."""
    histories = []
    for compile in (True, False):
        pyro.set_rng_seed(0)
        guide = AutoFlow(local, flow="nsf", amortized="x", **SMALL)
        loss = ppgen.ELBO(path_derivative=True)
        adam = partial(torch.optim.Adam, lr=0.01)
        fit = ppgen.fit(local, guide, DATA, loss=loss, optim=adam, batch_size=4, steps=16, compile=compile)
        histories.append(torch.as_tensor(fit.history["loss"]))
    assert len(builds) == 2
    torch.testing.assert_close(*histories, rtol=1e-5, atol=1e-5)


def test_two_guides_can_share_a_model():
    """Global latents by one, the rows' by another."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["w"])))
    guide.append(AutoFlow(poutine.block(model, hide=["w"]), flow="maf", amortized="x", **SMALL))
    fit = ppgen.fit(model, guide, DATA, steps=3, compile=False)
    assert math.isfinite(fit.chains[0].final)
    assert any("head" in name for name in fit.chains[0].weights)


def test_given_flow_keeps_its_weights():
    flow = FLOWS["maf"](2, hidden=(8,))
    guide = AutoFlow(gaussian, flow=flow, init_scale=1.0)
    guide()
    e = torch.randn(5, 2)
    torch.testing.assert_close(guide.get_posterior().log_prob(e), FlowAt(flow, guide.loc)(e))
    state = ProgramState.from_programs(gaussian, guide, ())
    assert {id(p) for p in flow.parameters()} <= {id(leaf) for leaf in state.parameters.values()}


class FlowAt(nn.Module):
    def __init__(self, flow, loc):
        super().__init__()
        self.flow, self.loc = flow, loc

    def forward(self, x):
        return self.flow().log_prob(x - self.loc)


# errors


def discrete(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x[:, 0])


def empty(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, 0])


def mixed(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def optional(x, y=None):
    local(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AutoFlow(local, flow="nfs"), ValueError, r"no flow 'nfs'; did you mean 'nsf'"),
        (lambda: AutoFlow(local, init_scale=0.0), ValueError, "init_scale must be above 0, got 0.0"),
        (lambda: AutoFlow(local, amortized="data"), ValueError, "'data' is no argument of the model; there are 'x'"),
        (lambda: AutoFlow(local, amortized="x", hidden=()), ValueError, "is the width of contexts"),
        (lambda: AutoFlow(local, encoder=nn.Identity()), ValueError, "an encoder needs the names of the arguments"),
        (lambda: made(local, DATA, flow="lu_linear"), ValueError, "flow='lu_linear' has no such option"),
        (lambda: made(local, DATA, flow=FLOWS["maf"](3)), ValueError, r"events of shape \(18,\) .* shape \(3,\)"),
        (lambda: made(discrete, DATA), ValueError, "discrete sample site 'c'"),
        (lambda: made(empty, DATA), RuntimeError, "no latent variables"),
        (lambda: made(mixed, DATA, amortized="x"), ValueError, r"'w' in none, 'z' in \['data'\].* AutoGuideList"),
        (lambda: made(constrained, DATA, amortized="x"), ValueError, r"'z' in .*'features'"),
        (lambda: made(optional, DATA, amortized="y"), ValueError, "argument 'y', .* to be a tensor of rows.* got None"),
        (lambda: made(optional, DATA, DATA[:2], amortized=("x", "y")), ValueError, r"'y', .* shape \(2, 2\)"),
        (lambda: made(lambda x, y: local(x), DATA, DATA[:2], amortized="y"), ValueError, "expected 6 rows of 'y'"),
    ],
)
def test_errors_name_the_cause(make, error, message):
    with pytest.raises(error, match=message):
        make()
