"""The annealed ELBO: a path from a base distribution to the posterior, and the modes that it keeps."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

import ppgen
from ppgen import recipes
from ppgen.infer import AutoFlow


def between(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(y, 0.5), obs=x)


def between_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.3)), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(pyro.param("b", torch.tensor(0.7)) * x, 0.4))


def between_base(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(0.0, 3.0))
    pyro.sample("z", dist.StudentT(3.0))


X = torch.tensor([0.5, -1.0, 2.0])


def between_prior(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(z, 1.0))


@pytest.mark.parametrize("path_derivative", [False, True])
@pytest.mark.parametrize("base", [None, between_base])
def test_the_objective_interpolates_between_the_elbos_of_base_and_posterior(base, path_derivative):
    """On one sample, t log p + (1 - t) log b - log q mixes the ELBOs of p and b, and so do the gradients."""
    store = pyro.get_param_store()

    def evaluated(loss, model):
        pyro.set_rng_seed(1)
        for _, leaf in store.named_parameters():
            leaf.grad = None
        value = loss.loss_and_grads(model, between_guide, X)
        return np.array([value, *(float(store._params[name].grad) for name in ("a", "b"))])

    evidence = ppgen.ELBO(path_derivative=path_derivative)
    at_model, at_base = evaluated(evidence, between), evaluated(evidence, base or between_prior)
    assert not np.allclose(at_model, at_base)
    for step, t in ((0, 0.0), (3, 0.3), (10, 1.0), (25, 1.0)):
        loss = ppgen.AnnealedELBO(base, schedule=ppgen.Ramp(1.0, steps=10), path_derivative=path_derivative)
        loss.step.fill_(step)
        np.testing.assert_allclose(evaluated(loss, between), t * at_model + (1 - t) * at_base, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_follows_the_schedule(builds):
    losses = []
    for compile in (True, False):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        loss = ppgen.AnnealedELBO(between_base, path_derivative=True)
        fit = ppgen.fit(between, between_guide, X, loss=loss, steps=12, compile=compile)
        losses.append(fit.history["loss"])
    assert len(builds) == 1
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_the_base_sees_the_rows_that_the_model_subsampled():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            y = pyro.sample("y", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(y, 0.5), obs=x[rows])

    def other(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(x[rows], 3.0))

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(x[rows], pyro.param("s", torch.tensor(0.4))))

    pyro.set_rng_seed(0)
    loss = ppgen.AnnealedELBO(other, schedule=ppgen.Ramp(1.0, steps=10))
    # at t = 0, of q = N(x, .4) against N(x, 3), one sample a row: the rows must be the same
    values = [loss.loss(model, guide, X) for _ in range(200)]
    exact = float(torch.distributions.kl_divergence(dist.Normal(0.0, 0.4), dist.Normal(0.0, 3.0)))
    assert np.mean(values) == pytest.approx(exact, abs=5 * np.std(values) / 200**0.5)


def missing_base(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def added_base(x):
    between_base(x)
    pyro.sample("zz", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ppgen.AnnealedELBO(elbo=TraceMeanField_ELBO()),
            TypeError,
            "needs Trace_ELBO, got TraceMeanField_ELBO",
        ),
        (lambda: ppgen.AnnealedELBO(schedule=0.5), TypeError, "schedule must be a Ramp or an Anneal, got 0.5"),
        (lambda: ppgen.AnnealedELBO().loss(between, between_guide, X), ValueError, "needs the length of the run"),
        (
            lambda: ppgen.AnnealedELBO(missing_base, schedule=ppgen.Ramp(1.0, steps=2)).loss(between, between_guide, X),
            LookupError,
            "the base does not draw 'y'",
        ),
        (
            lambda: ppgen.AnnealedELBO(added_base, schedule=ppgen.Ramp(1.0, steps=2)).loss(between, between_guide, X),
            LookupError,
            "the base draws 'zz', which is no latent of the model; did you mean 'z'",
        ),
    ],
)
def test_arguments_that_cannot_be_annealed_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_is_not_a_bound_before_the_end_of_annealing():
    loss = ppgen.AnnealedELBO(between_base, path_derivative=True)
    assert not loss.is_negative_elbo
    assert str(loss) == "AnnealedELBO(path derivative)[Ramp(0 -> 1)]"
    assert str(recipes.reverse_kl(anneal=0.5)) == "AnnealedELBO(path derivative)[Anneal(0 -> 1, 1 cycles)]"
    assert str(recipes.reverse_kl(path_derivative=False)) == "ELBO"


APART = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-3.0, 3.0]), 0.5))


def two_modes():
    x = pyro.sample("x", dist.Normal(0.0, 3.0).mask(False))
    pyro.factor("energy", APART.log_prob(x))


def wide():
    pyro.sample("x", dist.Normal(0.0, 3.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_annealing_keeps_a_mode_that_is_dropped_without_it(seed):
    """Both fits have the same guide, seed and learning rate."""
    shares = {}
    for anneal, steps in ((0.0, 100), (0.7, 250)):
        guide = AutoFlow(two_modes, layers=2, init_scale=1.0)
        loss = recipes.reverse_kl(wide, particles=128, anneal=anneal, path_derivative=False, max_plate_nesting=0)
        adam = partial(torch.optim.Adam, lr=0.03)
        options = {"optim": adam, "lr_scheduler": "cosine", "seed": seed, "compile": False}
        ppgen.fit(two_modes, guide, None, loss=loss, steps=steps, **options)
        with torch.no_grad(), pyro.plate("draws", 2000):
            x = guide()["x"]
        shares[anneal] = float((x > 0).float().mean())
        assert float((x.abs() - 3).abs().mean()) < 1.0  # samples are at the modes
    assert min(shares[0.0], 1 - shares[0.0]) < 0.01
    assert min(shares[0.7], 1 - shares[0.7]) > 0.1
