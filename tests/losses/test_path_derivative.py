"""Path derivatives: the mean gradient of the ELBO, zero gradient where the guide is the posterior, errors."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, autoguide
from support import gaussian_pair
from torch import Tensor, nn

import ppgen
from ppgen.infer import AutoFlow

positive = partial(pyro.param, constraint=dist.constraints.positive)
X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1])


def curved(x: Tensor) -> None:
    """Latents global and of rows, of two supports, that depend on each other."""
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, s))
        pyro.sample("x", dist.Normal(z.square(), 1.0), obs=x)


def batch_of_many(x: Tensor) -> None:
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 50, subsample=x), poutine.mask(mask=x > 0):
        z = pyro.sample("z", dist.Normal(0.0, s))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_hand(x: Tensor) -> None:
    """z is drawn given s, and one parameter serves both."""
    shared = pyro.param("shared", torch.tensor(0.3))
    s = pyro.sample("s", dist.LogNormal(shared, positive("s_scale", torch.tensor(0.4))))
    with pyro.plate("data", len(x)):
        slope = pyro.param("slope", torch.tensor(0.5))
        pyro.sample("z", dist.Normal(shared + slope * x * s, 0.5 * s))


def of_batch(x: Tensor) -> None:
    s = pyro.sample("s", dist.LogNormal(pyro.param("loc", torch.tensor(0.1)), 0.4))
    with pyro.plate("data", 50, subsample=x), poutine.mask(mask=x > 0):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, s))


def two_guides(model: Callable) -> autoguide.AutoGuideList:
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["s"])))
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["s"]), init_scale=0.4))
    return guide


GUIDES: dict[str, tuple[Callable, Callable[[], Callable]]] = {
    "by hand": (curved, lambda: by_hand),
    "of a batch, masked": (batch_of_many, lambda: of_batch),
    "AutoNormal": (curved, lambda: autoguide.AutoNormal(curved, init_scale=0.4)),
    "AutoDiagonalNormal": (curved, lambda: autoguide.AutoDiagonalNormal(curved, init_scale=0.4)),
    "AutoMultivariateNormal": (curved, lambda: autoguide.AutoMultivariateNormal(curved, init_scale=0.4)),
    "AutoLowRank": (curved, lambda: autoguide.AutoLowRankMultivariateNormal(curved, init_scale=0.4)),
    "AutoIAFNormal": (curved, lambda: autoguide.AutoIAFNormal(curved, hidden_dim=[8])),
    "AutoGuideList": (curved, lambda: two_guides(curved)),
    "AutoFlow": (curved, lambda: AutoFlow(curved, flow="nsf", layers=1, hidden=(8,), init_scale=0.4)),
}


def gradients(loss, model, guide, *args) -> dict[str, Tensor]:
    store = pyro.get_param_store()
    for _, leaf in store.named_parameters():
        leaf.grad = None
    loss.loss_and_grads(model, guide, *args)
    return {k: leaf.grad.clone() for k, leaf in store.named_parameters() if leaf.grad is not None}


@pytest.mark.parametrize("name", GUIDES)
def test_the_mean_gradient_is_that_of_the_elbo(name):
    """Of 30 pairs of gradients, each of 40 draws: a sum over each parameter, whose mean difference stays within 5
    standard errors. Of Student's t with 29 degrees of freedom that is a level of 3e-5 a parameter."""
    model, make = GUIDES[name]
    guide = make()
    elbo = partial(Trace_ELBO, num_particles=40, vectorize_particles=True, max_plate_nesting=1)
    plain, path = ppgen.ELBO(elbo=elbo()), ppgen.ELBO(elbo=elbo(), path_derivative=True)
    assert plain.loss(model, guide, X) > -50  # makes the parameters
    weights: dict[str, Tensor] = {}
    pairs = []
    for seed in range(30):
        both = []
        for loss in (plain, path):
            pyro.set_rng_seed(seed)
            grads = gradients(loss, model, guide, X)
            for k, grad in grads.items():
                weights.setdefault(k, torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)))
            both.append(torch.stack([(grads[k] * w).sum() for k, w in weights.items()]))
        pairs.append(torch.stack(both))
    a, b = torch.stack(pairs).double().unbind(1)
    assert a.abs().max() > 1e-2
    error = (a - b).std(0) / 30**0.5
    assert ((a - b).mean(0).abs() <= 5 * error + 1e-5).all()
    if name != "AutoGuideList":  # where most of the gradient is of a point, which is the same in both
        assert (error > 0).any()


def test_the_value_is_that_of_the_elbo():
    for particles in (1, 3):
        values = []
        for path_derivative in (False, True):
            pyro.set_rng_seed(1)
            elbo = Trace_ELBO(num_particles=particles)
            loss = ppgen.ELBO(elbo=elbo, path_derivative=path_derivative)
            values += [loss.loss_and_grads(batch_of_many, of_batch, X), loss.loss(batch_of_many, of_batch, X)]
        assert values[:2] == pytest.approx(values[2:], rel=1e-5)
    assert str(loss) == "ELBO(path derivative)"
    assert loss.is_negative_elbo


def exact_joint() -> tuple[Callable, Callable]:
    """z ~ N(0, I) and x ~ N(z, noise), the posterior whole."""

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", 0.8 * x)
        tril = pyro.param("tril", 0.2**0.5 * torch.eye(3), constraint=dist.constraints.lower_cholesky)
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

    return model, guide


def exact_in_turn() -> tuple[Callable, Callable]:
    """A chain a -> b -> x whose guide draws b given a: the second distribution depends on the first draw."""

    def model(x):
        a = pyro.sample("a", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x)

    def guide(x):
        a = pyro.sample(
            "a", dist.Normal(pyro.param("u", x / 3), positive("s", torch.tensor((2 / 3) ** 0.5))).to_event(1)
        )
        mean = pyro.param("v", torch.tensor(0.5)) * (a + x)
        pyro.sample("b", dist.Normal(mean, positive("t", torch.tensor(0.5**0.5))).to_event(1))

    return model, guide


def exact_mapped() -> tuple[Callable, Callable]:
    """A log-normal posterior, for an autoguide that samples its logarithm."""

    def model(x):
        pyro.sample("z", dist.LogNormal(x.new_zeros(3), 0.7).to_event(1))

    init = autoguide.init_to_value(values={"z": torch.ones(3)})
    return model, autoguide.AutoMultivariateNormal(model, init_loc_fn=init, init_scale=0.7)


def exact_flow() -> tuple[Callable, Callable]:
    """A flow at its start, the identity."""
    model, _ = exact_mapped()
    init = autoguide.init_to_value(values={"z": torch.ones(3)})
    return model, AutoFlow(model, flow="maf", hidden=(8,), init_loc_fn=init, init_scale=0.7)


@pytest.fixture
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("exact", [exact_joint, exact_in_turn, exact_mapped, exact_flow])
@pytest.mark.usefixtures("_double")
def test_the_gradient_is_zero_for_every_draw_at_the_posterior(exact):
    model, guide = exact()
    x = torch.tensor([0.4, -1.0, 2.0])
    pyro.set_rng_seed(0)
    ppgen.ELBO().loss(model, guide, x)
    for _ in range(3):
        assert max(s.abs().max() for s in gradients(ppgen.ELBO(), model, guide, x).values()) > 1e-2
        grads = gradients(ppgen.ELBO(path_derivative=True), model, guide, x)
        assert grads
        assert max(s.abs().max() for s in grads.values()) < 1e-10


def trained(kind, model, guide, x, **options) -> list[float]:
    pyro.set_rng_seed(0)
    loss = 0.5 * ppgen.ELBO(path_derivative=True) + 0.5 * ppgen.ELBO(path_derivative=True)
    svi = kind(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss, **options)
    return [svi.step(x) for _ in range(8)]


@pytest.mark.parametrize("make", [gaussian_pair, lambda: (curved, GUIDES["AutoFlow"][1](), (X,))])
def test_pyros_svi_ppgens_svi_and_a_compiled_step_agree(make, builds):
    losses = []
    for kind, options in ((pyro.infer.SVI, {}), (ppgen.SVI, {"compile": False}), (ppgen.SVI, {"compile": True})):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide, (x, *_), *_ = make()
        losses.append(trained(kind, model, guide, x, **options))
    assert len(builds) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


# what has no path


def scored(x: Tensor) -> tuple[Callable, Callable]:
    def model(x):
        pyro.sample("c", dist.Bernoulli(0.5))

    return model, lambda x: pyro.sample("c", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.1))))


def dropping(x: Tensor) -> tuple[Callable, Callable]:
    network = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        pyro.module("network", network)
        pyro.sample("z", dist.Normal(network(x[:1])[0], 1.0))

    return model, guide


def mapped(x: Tensor) -> tuple[Callable, Callable]:
    """The map of a flow, its Jacobian in a Delta."""

    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        scale = positive("scale", torch.tensor(2.0))
        pyro.sample("z", dist.Delta(scale * e, log_density=-scale.log()))

    return model, guide


@pytest.mark.parametrize(
    ("programs", "error", "message"),
    [
        (scored, ValueError, "site 'c' has no rsample"),
        (dropping, ValueError, "random numbers outside of its sample sites"),
        (mapped, ValueError, "site 'z', a Delta, depends on parameters"),
        (lambda x: (curved, autoguide.AutoStructured(curved)), ValueError, "depends on parameters"),
        (
            lambda x: (curved, autoguide.AutoNormalMessenger(curved)),
            TypeError,
            "AutoNormalMessenger runs model and guide",
        ),
    ],
)
def test_a_guide_without_a_path_derivative_is_an_error(programs, error, message):
    model, guide = programs(X)
    with pytest.raises(error, match=message):
        ppgen.ELBO(path_derivative=True).loss_and_grads(model, guide, X)


@pytest.mark.parametrize("elbo", [RenyiELBO(num_particles=2), TraceMeanField_ELBO(), TraceEnum_ELBO()])
def test_an_elbo_without_a_path_derivative_is_an_error(elbo):
    with pytest.raises(TypeError, match=f"needs Trace_ELBO, got {type(elbo).__name__}"):
        ppgen.ELBO(elbo=elbo, path_derivative=True)
