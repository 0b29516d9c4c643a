"""Predictions on new data: against closed forms, in any dtype, for any fit, and where they are refused."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from support import gaussian_pair

import ppgen

SD = 0.5
X = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
Y = X @ torch.tensor([1.0, -2.0]) + SD * torch.randn(30, generator=torch.Generator().manual_seed(4))
NEW = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]])


def regression(x, y=None):
    """A linear regression with known noise."""
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ b, SD), obs=y)


def both(x, y):
    """As `regression`, without a default for the response."""
    regression(x, y)


def rows(x, y=None):
    """A latent of each row, y_i ~ N(x_i + z_i, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + z, 1.0), obs=y)


def auto(model, *data):
    return ppgen.fit(model, "auto", data, progress=False)


def by_guide(model, guide, *data, steps=2, restarts=1):
    options = {"steps": steps, "restarts": restarts, "compile": False, "progress": False}
    return ppgen.fit(model, guide, data or None, **options)


@pytest.fixture(scope="module")
def fitted():
    return auto(regression, X, Y)


def exact(x):
    """The mean and the standard deviation of y at new x, in closed form."""
    precision = torch.eye(2) + X.mT @ X / SD**2
    mean = torch.linalg.solve(precision, X.mT @ Y / SD**2)
    variance = SD**2 + (x @ torch.linalg.inv(precision) * x).sum(-1)
    return (x @ mean).numpy(), variance.sqrt().numpy()


def assert_moments(found, x):
    """Within five standard errors, of a mean and of a standard deviation of normal draws."""
    draws = found.shape[1]
    mean, sd = exact(x)
    assert (np.abs(found.values[0].mean(0) - mean) < 5 * sd / draws**0.5).all()
    assert (np.abs(found.values[0].std(0) - sd) < 5 * sd / (2 * draws) ** 0.5).all()


@pytest.mark.parametrize(
    "arguments",
    [(NEW,), (NEW, None), ((NEW, None),), (NEW.double(),), (NEW.numpy(),), (NEW.int(),), (NEW.long().numpy(),)],
    ids=lambda a: f"{len(a)} {type(a[0]).__name__} {getattr(a[0], 'dtype', '')}",
)
def test_predictions_at_new_rows_have_the_exact_distribution(fitted, arguments):
    found = fitted.predict(*arguments, draws=2000, seed=1)
    assert set(found.data_vars) == {"y"}
    assert found.y.dims == ("chain", "draw", "data")
    assert_moments(found.y, NEW)


def test_arviz_has_predictions_where_the_response_is_absent(fitted):
    idata = fitted.to_arviz(NEW, draws=500, chunk=250)
    assert_moments(idata["posterior_predictive"].y.sel(chain=[fitted.best]), NEW)
    assert idata["posterior"].b.shape == (1, 500, 2)  # all starts reach one mode
    assert idata["prior_predictive"].y.shape == (1, 500, 3)
    assert np.abs(idata["prior"].b.values.std((0, 1)) - 1).max() < 5 / 4000**0.5
    for group in ("sample_stats", "observed_data", "log_likelihood", "posterior_resampled"):
        assert not hasattr(idata, group)
    assert idata["posterior"].attrs["density"].startswith("none: 'y' is not given")


def test_a_verdict_needs_the_response(fitted, tmp_path):
    for call in (fitted.diagnose, lambda x: fitted.report(tmp_path / "r.html", x)):
        with pytest.raises(ValueError, match="judged on the data of the fit, and 'y' is not given"):
            call(X)


def test_predictions_are_seeded_and_keep_the_random_state(fitted):
    state = torch.get_rng_state()
    first, second, other = (fitted.predict(NEW, draws=5, seed=seed).y.values for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_response_without_a_default_is_given_as_none():
    fit = by_guide(both, AutoNormal(both), X, Y)
    assert fit.predict(NEW, None, draws=7).y.shape == (1, 7, 3)
    with pytest.raises(ValueError, match=r"missing 1 required .* 'y'; give None for an argument that the program only"):
        fit.predict(NEW)


def test_given_responses_are_replicated(fitted):
    assert_moments(fitted.predict(X, Y, draws=2000).y, X)


def test_every_fit_predicts():
    model, guide, (x,) = gaussian_pair(6)[:3]
    fit = by_guide(model, guide, x)
    assert fit.predict(x[:4], draws=3)["x"].shape == (1, 3, 4, 3)
    fit = by_guide(rows, ppgen.AutoFlow(rows, amortized="x"), X[:, 0], Y)
    assert fit.predict(NEW[:, 0], draws=3).y.shape == (1, 3, 3)

    def closed():
        regression(X, Y)

    fit = by_guide(closed, AutoNormal(closed))
    assert fit.predict(draws=3).y.shape == (1, 3, 30)


def test_draws_come_from_one_chain(fitted):
    fit = by_guide(regression, AutoNormal(regression), X, Y, restarts=3)
    found = fit.predict(NEW, draws=3, chain=2)
    assert found.chain.values.tolist() == [2]
    with pytest.raises(IndexError, match="chain 9: there are chains 0 to 2"):
        fit.predict(NEW, chain=9)


def test_discrete_latents_of_an_absent_response_come_from_their_prior():
    def mixture(n, y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(n)):
            c = pyro.sample("c", dist.Bernoulli(0.25))
            pyro.sample("y", dist.Normal(mean + 20 * c, 1.0), obs=y)

    rng = np.random.default_rng(0)
    data = (torch.zeros(20), torch.as_tensor(rng.normal(20.0 * (np.arange(20) % 4 == 0))).float())
    fit = auto(mixture, *data)
    y = fit.predict(torch.zeros(5), draws=100).y.values
    share = (y > 10).mean()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / y.size) ** 0.5
    fit.to_arviz(torch.zeros(5), draws=25)


def test_a_latent_that_bounds_the_response_is_no_obstacle():
    def bounded(x, y=None):
        u = pyro.sample("u", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Uniform(0.0, u), obs=y)

    guide = AutoNormal(bounded, init_loc_fn=pyro.infer.autoguide.init_to_value(values={"u": torch.tensor(9.0)}))
    fit = by_guide(bounded, guide, torch.zeros(10), torch.rand(10))
    idata = fit.to_arviz(torch.zeros(4), draws=200)
    assert (idata["posterior_predictive"].y <= idata["posterior"].u).all()


# Refusals


def test_latents_of_the_rows_of_the_fit_are_refused_for_other_rows():
    for fit in (by_guide(rows, AutoNormal(rows), X[:, 0], Y), auto(rows, X[:, 0], Y)):
        for call in (fit.predict, fit.to_arviz):
            for data in ((NEW[:, 0],), (NEW[:, 0], Y[:3])):
                with pytest.raises(ValueError, match=r"the guide has 'z' .* shape \(30,\); these data ask for \(3,\)"):
                    call(*data)
        assert fit.predict(X[:, 0], draws=3).y.shape == (1, 3, 30)
        with pytest.warns(UserWarning, match="one value of 'z' for each row .* row i of these data"):
            fit.predict(X[:, 0] + 1, draws=3)


def test_the_remedy_for_latents_of_new_rows_works():
    def masked(x, y, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(x + z, 1.0), obs=y)

    x, y, seen = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([2.0, 1.0, 0.0]), torch.tensor([True, True, False])
    found = auto(masked, x, y, seen).predict(x, y, seen, draws=2000).y.values[0]
    # z | y ~ N((y - x) / 2, 1/2) in seen rows, N(0, 1) in others; five standard errors
    mean, variance = np.array([1.0, 1.0, 5.0]), np.array([1.5, 1.5, 2.0])
    assert (np.abs(found.mean(0) - mean) < 5 * (variance / 2000) ** 0.5).all()
    assert (np.abs(found.var(0) - variance) < 5 * variance * (2 / 2000) ** 0.5).all()


def test_a_number_of_groups_that_follows_from_the_data_is_refused_by_its_plate():
    def grouped(g, y=None):
        with pyro.plate("groups", int(g.max()) + 1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(g)):
            pyro.sample("y", dist.Normal(a[g], 1.0), obs=y)

    g = torch.arange(30) % 5
    fit = by_guide(grouped, AutoNormal(grouped), g, Y)
    assert fit.predict(torch.tensor([4, 0, 1]), draws=3).y.shape == (1, 3, 3)
    with pytest.raises(
        ValueError, match=r"'a' .* \(5,\); these data ask for \(2,\): make the size of the plate 'groups'"
    ):
        fit.predict(torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"data\[0\]: 1 values, such as 0.5, are not exact in torch.int64"):
        fit.predict(torch.tensor([0.5, 1.0]))


def test_bad_arguments_are_refused(fitted):
    with pytest.raises(ValueError, match=r"do not run on these data, \(3, 5\) torch.float64: .*size"):
        fitted.predict(torch.ones(3, 5))
    with pytest.raises(ValueError, match="at least 1 draw, in chunks of at least 1, got 0 in 50"):
        fitted.predict(NEW, draws=0)

    def nothing(x):
        pyro.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="observes nothing"):
        by_guide(nothing, AutoNormal(nothing), X).predict(X)
