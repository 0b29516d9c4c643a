"""Wake and sleep: what the terms are where that is known, whom their gradients reach, and what they refuse."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger
from support import gaussian_pair
from torch import nn

import ppgen
from ppgen import recipes
from ppgen.tracing.particles import log_weights

X = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.1]])
EXACT = 0.2**0.5  # z ~ N(0, 1), x ~ N(z, .5): z given x is N(.8 x, .2), two of each a row
ENTROPY = 2 * 0.5 * (1 + math.log(2 * math.pi * 0.2))


def conjugate(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def linear(x):
    slope, scale = pyro.param("slope", torch.tensor(0.8)), pyro.param("scale", torch.tensor(EXACT))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale).to_event(1))


def gradients(loss, model, guide, *args, seed=0) -> dict[str, torch.Tensor]:
    pyro.set_rng_seed(seed)
    for _, leaf in pyro.get_param_store().named_parameters():
        leaf.grad = None
    loss.loss_and_grads(model, guide, *args)
    return {k: leaf.grad for k, leaf in pyro.get_param_store().named_parameters()}


TERMS = {
    "wake": (ppgen.Wake, "decoder"),
    "wake of five": (partial(ppgen.Wake, particles=5), "decoder"),
    "wake of the guide": (partial(ppgen.WakeInference, particles=5), "encoder"),
    "sleep": (ppgen.Sleep, "encoder"),
}


@pytest.mark.parametrize("name", TERMS)
def test_each_term_has_gradients_in_one_program(vae, name):
    make, moves = TERMS[name]
    found = gradients(make(), vae.model, vae.guide, *vae.args)
    assert len(found) == 4
    for leaf, gradient in found.items():
        reached = gradient is not None and bool((gradient != 0).any())
        assert reached is leaf.startswith(moves), leaf


# A guide whose distribution is a module with a detached draw and a density with gradients.
@pytest.mark.parametrize("name", ["wake", "wake of five"])
def test_a_density_computed_by_a_network_is_detached(name):
    guide = ppgen.AutoFlow(conjugate, amortized="x", flow="maf", layers=1, hidden=(4,))
    guide(X)
    TERMS[name][0]().differentiable_loss(conjugate, guide, X)
    assert not TERMS[name][0]().differentiable_loss(conjugate, guide, X).requires_grad


# what they are


def test_wake_is_the_elbo_with_its_gradient_in_the_model(vae):
    ours = gradients(ppgen.Wake(), vae.model, vae.guide, *vae.args)
    theirs = gradients(ppgen.ELBO(), vae.model, vae.guide, *vae.args)
    for name in ours:
        if name.startswith("decoder"):
            torch.testing.assert_close(ours[name], theirs[name])
    pyro.set_rng_seed(0)
    value = ppgen.Wake().loss(vae.model, vae.guide, *vae.args)
    pyro.set_rng_seed(0)
    assert value == pytest.approx(ppgen.ELBO().loss(vae.model, vae.guide, *vae.args), rel=1e-5)


def test_wake_with_many_particles_is_the_mean_log_of_the_mean_weight(vae):
    pyro.set_rng_seed(0)
    value = ppgen.Wake(particles=5).loss(vae.model, vae.guide, *vae.args)
    pyro.set_rng_seed(0)
    weights = log_weights(vae.model, vae.guide, vae.args, particles=5).exp()
    assert value == pytest.approx(-float(weights.mean(0).log().mean()), rel=1e-5)


@pytest.mark.parametrize("insomnia", [1.0, 0.0])
def test_for_one_datum_the_terms_equal_pyros_reweighted_wake_sleep(insomnia):
    """Pyro weighs all data together, and its guide takes observations in an argument of that name."""
    pair = gaussian_pair(rows=1)
    (x,) = pair.args

    def guide(x, observations=None):
        pair.guide(x if observations is None else observations["x"])

    theirs = infer.ReweightedWakeSleep(num_particles=4, insomnia=insomnia, max_plate_nesting=1, num_sleep_particles=1)
    ours = ppgen.Wake(particles=4) + (ppgen.WakeInference(particles=4) if insomnia else ppgen.Sleep())
    ours.terms[0].term._vectorized.max_plate_nesting = 2  # of both terms, so that no run is spent on guessing it
    one, other = (gradients(loss, pair.model, guide, x) for loss in (ours, theirs))
    for name in one:
        if insomnia or name.startswith("decoder"):  # otherwise the sleep phase uses other random numbers
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_at_the_posterior_sleep_is_the_entropy_with_zero_gradient():
    """Means of 100 draws of 50 rows; within 4 standard errors, level 6e-5 each."""
    x, loss = torch.zeros(50, 2), ppgen.Sleep()
    values, grads = [], []
    for seed in range(100):
        found = gradients(loss, conjugate, linear, x, seed=seed)
        grads.append(torch.stack([found["slope"], found["scale"]]))
        values.append(loss.loss(conjugate, linear, x))
    values, grads = torch.tensor(values), torch.stack(grads)
    assert abs(values.mean() - ENTROPY) < 4 * values.std() / 100**0.5
    assert (grads.mean(0).abs() < 4 * grads.std(0) / 100**0.5).all()


@pytest.mark.parametrize(("slope", "scale"), [(0.6, EXACT), (1.0, EXACT), (0.8, 0.6 * EXACT), (0.8, 1.5 * EXACT)])
def test_away_from_the_posterior_sleep_is_larger_by_the_kl(slope, scale):
    """E KL(p(z | x), q(z | x)), x ~ N(0, 1.25), two numbers a row; of 40,000 rows, within 4 standard errors of 0.02."""
    kl = math.log(scale / EXACT) + (0.2 + (0.8 - slope) ** 2 * 1.25) / (2 * scale**2) - 0.5
    guide = poutine.lift(linear, {"slope": dist.Delta(torch.tensor(slope)), "scale": dist.Delta(torch.tensor(scale))})
    guide = poutine.block(guide, hide=["slope", "scale"])
    value = ppgen.Sleep().loss(conjugate, guide, torch.zeros(40_000, 2))
    assert value == pytest.approx(ENTROPY + 2 * kl, abs=0.08)


def test_wake_inference_has_the_gradient_of_the_inclusive_kl_at_data():
    """-E_{p(z | x)} d log q(z | x), in closed form; 4000 weighted draws from a guide twice too wide, 20 times."""
    pyro.param("slope", torch.tensor(0.5))
    pyro.param("scale", torch.tensor(2 * EXACT))
    found = [gradients(ppgen.WakeInference(particles=4000), conjugate, linear, X, seed=seed) for seed in range(20)]
    found = torch.stack([torch.stack([one["slope"], one["scale"]]) for one in found])
    slope, scale = torch.tensor(0.5, requires_grad=True), torch.tensor(2 * EXACT, requires_grad=True)
    exact = ((((0.8 - slope) * X) ** 2 + 0.2) / (2 * scale**2) + scale.log()).sum(-1).mean()
    expected = torch.stack(torch.autograd.grad(exact, (slope, scale)))
    error = found.std(0) / 20**0.5
    assert ((found.mean(0) - expected).abs() < 4 * error + 0.005).all()  # level 6e-5, and the weights' bias
    assert (error < 0.05).all()


def test_sleep_finds_the_posterior_by_an_amortized_flow():
    """Whose fit leaves less than .01 nats of KL a number, and moments to the third digit or so."""
    guide = ppgen.AutoFlow(conjugate, amortized="x", flow="maf", layers=1, hidden=(16,), init_scale=1.0)
    options = {"optim": partial(torch.optim.Adam, lr=0.05), "lr_scheduler": "cosine", "compile": False}
    ppgen.fit(conjugate, guide, torch.randn(256, 2), loss=ppgen.Sleep(), steps=150, **options)
    distribution = guide.get_posterior(X)
    u = distribution.expand((4000, 3)).sample()
    exact = dist.Normal(0.8 * X, EXACT).to_event(1)
    kl = (exact.log_prob(z := exact.sample((4000,))) - distribution.log_prob(z)).detach().mean(0)
    assert (kl < 0.02).all()
    torch.testing.assert_close(u.mean(0), 0.8 * X, atol=0.1, rtol=0.0)


def test_wake_sleep_finds_model_and_posterior():
    """A linear Gaussian model: N(m, 1 + s²) has data's mean and variance at its best."""
    data = torch.randn(400, 1) * 1.5 + 2.0

    def model(x):
        loc, scale = pyro.param("loc", torch.zeros(1)), pyro.param("noise", torch.ones(1), constraint=POSITIVE)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + loc, scale).to_event(1), obs=x)

    def guide(x):
        a, b = pyro.param("a", torch.zeros(1)), pyro.param("b", torch.zeros(1))
        scale = pyro.param("s", torch.ones(1), constraint=POSITIVE)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x + b, scale).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=recipes.wake_sleep())
    for _ in range(150):
        svi.step(data)
    variance = 1 + pyro.param("noise") ** 2
    assert float(pyro.param("loc").detach()) == pytest.approx(float(data.mean()), abs=0.1)
    assert float(variance.detach()) == pytest.approx(float(data.var()), rel=0.1)
    assert float(pyro.param("a").detach()) == pytest.approx(1 / float(variance.detach()), abs=0.05)


POSITIVE = dist.constraints.positive


# programs of all kinds


def bounded(x):
    """Latents on an interval, the positive line and a simplex."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Uniform(-1.0, 2.0).expand([2]).to_event(1))
        b = pyro.sample("b", dist.LogNormal(0.0, 0.5))
        c = pyro.sample("c", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(a + c[..., :2], b.unsqueeze(-1)).to_event(1), obs=x)


def test_latents_are_mapped_back_through_their_supports():
    """Sleep of a flow is the density that `get_posterior` has on the real line, times the maps' Jacobians."""
    guide = ppgen.AutoFlow(bounded, amortized="x", flow="maf", layers=1, hidden=(8,), init_scale=1.0)
    guide(X)
    pyro.set_rng_seed(3)
    value = ppgen.Sleep().loss(bounded, guide, X)
    pyro.set_rng_seed(3)
    trace = poutine.trace(poutine.uncondition(bounded)).get_trace(X)
    maps = {k: dist.transforms.biject_to(trace.nodes[k]["fn"].support) for k in "abc"}
    values = {k: trace.nodes[k]["value"] for k in "abc"}
    u = {k: maps[k].inv(values[k]) for k in "abc"}
    jacobians = [maps[k].log_abs_det_jacobian(u[k], values[k]).reshape(3, -1).sum(-1) for k in "abc"]
    distribution = guide.get_posterior(trace.nodes["x"]["value"])
    expected = distribution.log_prob(torch.cat([u[k].reshape(3, -1) for k in "abc"], -1)) - sum(jacobians)
    assert value == pytest.approx(-float(expected.detach().mean()), rel=1e-4)


def test_a_subsample_has_its_own_rows():
    """The guide reads the rows of its plate off an argument that holds all."""
    x = torch.full((20, 2), math.nan)  # of which no value enters

    def model(x):
        with pyro.plate("data", 20, subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1e-3).to_event(1), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 20, subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows], 1e-3).to_event(1))

    expected = 2 * 0.5 * (1 + math.log(2 * math.pi * 1e-6))
    with poutine.block():
        values = [ppgen.Sleep().loss(model, guide, x) for _ in range(100)]
    assert sum(values) / 100 == pytest.approx(expected, abs=0.3)  # 6 standard errors


def test_a_global_latent_counts_once_per_data_set():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    pyro.set_rng_seed(5)
    value = ppgen.Sleep().loss(model, guide, torch.zeros(10))
    pyro.set_rng_seed(5)
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    assert value == pytest.approx(-float(dist.Normal(0.0, 1.0).log_prob(w)) / 10, rel=1e-5)


@pytest.mark.parametrize("loss", [recipes.wake_sleep(), recipes.reweighted_wake_sleep(5)], ids=str)
def test_discrete_latents_need_no_enumeration(loss):
    """Two clusters, whose labels the guide learns without reparameterization; chance is log 2 = .69."""
    net = nn.Linear(1, 2)
    x = torch.cat([torch.randn(40) - 3, torch.randn(40) + 3]).unsqueeze(-1)

    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[c].unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=net(x)))

    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
    for _ in range(100):
        svi.step(x)
    assert pyro.param("loc").detach().sort().values.tolist() == pytest.approx([-3.0, 3.0], abs=0.5)
    right = net(x).argmax(-1).reshape(2, 40).float().mean(-1)
    assert abs(float((right[1] - right[0]).detach())) > 0.95


def test_data_maps_an_argument_to_a_site_of_another_name():
    def model(rows):
        conjugate(rows)

    pyro.set_rng_seed(0)
    value = ppgen.Sleep(data={"rows": "x"}).loss(model, linear, X)
    pyro.set_rng_seed(0)
    assert value == ppgen.Sleep().loss(conjugate, linear, X)
    pyro.set_rng_seed(0)
    assert value == ppgen.Sleep(data={"rows": "x"}).loss(model, lambda rows: linear(rows), rows=X)


@pytest.mark.parametrize("make", [recipes.wake_sleep, partial(recipes.reweighted_wake_sleep, 3, sleep=0.5)])
def test_compiled_steps_equal_eager_steps(builds, make):
    """Under the stand-in for inductor, and of stock SVI."""
    histories = []
    for compile in (True, False, None):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = gaussian_pair()
        optim = pyro.optim.Adam({"lr": 0.02})
        stock = compile is None
        svi = (infer.SVI if stock else partial(ppgen.SVI, compile=compile))(pair.model, pair.guide, optim, loss=make())
        pyro.set_rng_seed(1)
        histories.append(torch.tensor([svi.step(*pair.args) for _ in range(12)]))
    assert len(builds) == 1
    assert len(set(histories[0].tolist())) == 12
    for other in histories[1:]:
        torch.testing.assert_close(histories[0], other, rtol=1e-4, atol=1e-4)


# bad input


def no_data(y):
    conjugate(y)


def with_factor(x):
    conjugate(x)
    pyro.factor("penalty", torch.zeros(()))


def optional(x=None):
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def reshaped(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z[:, :1], 0.5).expand([len(x), 1]).to_event(1), obs=x[:, :1])


def empty(x):
    pass


def more(x):
    linear(x)
    pyro.sample("w", dist.Normal(0.0, 1.0))


def point(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(pyro.param("where", torch.zeros(2)), event_dim=1))


SLEEP, GUIDED = ppgen.Sleep, partial(ppgen.WakeInference, particles=2)
REFUSED = {
    "no argument of the site's name": (
        SLEEP,
        no_data,
        lambda y: linear(y),
        LookupError,
        r"site 'x'.*'y'.*Sleep\(data=",
    ),
    "data names no argument": (
        *(partial(SLEEP, data={"xs": "x"}), conjugate, linear, LookupError),
        r"the argument 'xs'; did you mean 'x'",
    ),
    "data names no site": (
        *(partial(SLEEP, data={"x": "y"}), conjugate, linear, LookupError),
        r"the site 'y'; there are 'x'",
    ),
    "a factor": (SLEEP, with_factor, linear, ValueError, "the factor 'penalty'"),
    "another shape": (
        SLEEP,
        reshaped,
        linear,
        ValueError,
        r"'x' of shape \(3, 1\) where the argument 'x' has \(3, 2\)",
    ),
    "a latent missed": (SLEEP, conjugate, empty, LookupError, "the guide does not draw 'z'"),
    "a latent added": (SLEEP, conjugate, more, LookupError, "the guide draws 'w', which is no latent"),
    "a point": (SLEEP, conjugate, point, ValueError, "the guide's 'z' is deterministic"),
    "a guide of points": (SLEEP, conjugate, AutoDelta(conjugate), ValueError, "the guide's 'z' is deterministic"),
    "an autoguide": (
        SLEEP,
        conjugate,
        AutoNormal(conjugate),
        ValueError,
        "'z_unconstrained' cannot be computed.*AutoFlow",
    ),
    "a messenger": (SLEEP, conjugate, AutoNormalMessenger(conjugate), TypeError, "AutoNormalMessenger runs model and"),
    "a messenger awake": (ppgen.Wake, conjugate, AutoNormalMessenger(conjugate), TypeError, "Wake: AutoNormalMess"),
    "points awake": (GUIDED, conjugate, point, ValueError, "the guide's draws are deterministic"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_programs_are_an_error_with_the_reason(name):
    make, model, guide, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        make().loss(model, guide, X)


def test_a_missing_argument_is_an_error_that_names_it():
    with pytest.raises(LookupError, match=r"the argument 'x' was not given.*whose number of rows"):
        ppgen.Sleep().loss(optional, lambda x=None: linear(X))


@pytest.mark.parametrize("make", [ppgen.Wake, ppgen.WakeInference])
def test_an_invalid_number_of_particles_is_an_error(make):
    for particles in (0, 1.5):
        with pytest.raises(ValueError, match="particles must be a whole number of at least"):
            make(particles=particles)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        ppgen.WakeInference(particles=1)


def test_str_of_the_recipes_is_their_formula():
    assert str(recipes.wake_sleep()) == "Wake + Sleep"
    assert str(recipes.npe()) == "Sleep"
    assert str(recipes.reweighted_wake_sleep(5)) == "Wake(5) + WakeInference(5)"
    assert str(recipes.reweighted_wake_sleep(5, sleep=0.5)) == "Wake(5) + WakeInference(5) + 0.5 * Sleep"
