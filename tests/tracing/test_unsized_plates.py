"""Plates without a size, ``with pyro.plate("data"):``, as in Pyro's tutorials: programs with the size of their data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from support import untrained_fit

import ppgen

X = torch.tensor([0.3, -1.2, 0.8, 2.0])


def local(*size):
    def model(x):
        with pyro.plate("data", *size):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", *size):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return model, guide


def summed_out(*size):
    def model(x):
        with pyro.plate("data", *size):
            c = pyro.sample("c", dist.Bernoulli(torch.full((len(x),), 0.3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)

    return model, lambda x: None


def test_the_loss_is_per_datum_and_has_its_sign():
    """A size of -1 as the number of data would turn the loss around."""
    exact = -dist.Normal(0.0, 2**0.5).log_prob(X).mean()
    for programs in (local(), local(4)):
        assert ppgen.ELBO().loss(*programs, X) == pytest.approx(float(exact), rel=1e-5)


def test_a_loss_that_enumerates_is_per_datum():
    loss = ppgen.ELBO(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    assert loss.loss(*summed_out(), X) == pytest.approx(loss.loss(*summed_out(4), X))


def test_arviz_and_predictions_have_the_rows_of_the_data():
    fit = untrained_fit(*local(), X)
    idata = fit.to_arviz(X, draws=30)
    assert idata["posterior"]["z"].shape == (1, 30, 4)
    assert idata["vi_stats"]["log_marginal"].dims == ("chain", "data")
    assert fit.predict(X[:2], draws=30)["x"].shape == (1, 30, 2)


def test_observations_of_a_regression_with_a_posterior_to_find():
    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data"):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    x = torch.tensor([[1.0, 0.2], [0.5, -1.0], [0.1, 0.7]], dtype=torch.double)
    y = torch.tensor([0.9, -0.3, 1.4], dtype=torch.double)
    fit = ppgen.fit(model, "auto", (x, y), restarts=1, progress=False)
    covariance = torch.linalg.inv(x.T @ x + torch.eye(2) / 25)
    draws = torch.from_numpy(fit.to_arviz(x, y, draws=2000)["posterior"]["b"].values[0])
    torch.testing.assert_close(draws.mean(0), covariance @ (x.T @ y), rtol=0, atol=0.1)
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.15, atol=0.05)
