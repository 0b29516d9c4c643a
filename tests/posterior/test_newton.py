"""`find_modes`: densities that are unbounded, flat or undefined somewhere."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import SCHOOLS, schools

import ppgen
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import LocalGaussians, find_modes
from ppgen.posterior.starts import initial_points


def modes_of(target: UnconstrainedLogDensity) -> LocalGaussians:
    generator = torch.Generator().manual_seed(0)
    return find_modes(target, initial_points(target, 4, generator), generator)


def test_an_unbounded_density_does_not_lead_the_search_astray():
    """The joint density of eight schools is unbounded as tau goes to 0, so Gaussians are compared by ELBO."""
    target = UnconstrainedLogDensity(schools, (SCHOOLS,))
    found = modes_of(target)
    assert (found.center[:, target.labels.index("tau")] > -2).all()
    assert found.elbo.isfinite().all()


def test_a_flat_direction_is_named():
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def model(x, y):
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real_vector, (), (5,)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"no posterior: its density is constant along the direction \(.*b\[\d\]"):
        ppgen.fit(model, "auto", (x, y), progress=False)


def test_points_where_a_cholesky_factorization_fails_do_not_stop_the_others():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -torch.linalg.cholesky(torch.eye(2) * (z + 0.5)).diagonal().square().sum())

    assert modes_of(UnconstrainedLogDensity(model)).elbo.isfinite().any()


def test_the_local_gaussian_of_a_gaussian_is_exact():
    covariance = torch.tensor([[4.0, 1.5], [1.5, 1.0]], dtype=torch.float64)
    mean = torch.tensor([100.0, -3.0], dtype=torch.float64)

    def model():
        pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    found = modes_of(UnconstrainedLogDensity(model))
    torch.testing.assert_close(found.center, mean.expand(4, 2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.root @ found.root.mT, covariance.expand(4, 2, 2), rtol=1e-4, atol=1e-4)
    assert found.elbo.abs().max() < 1.0  # four standard errors of 16 draws; the exact ELBO is 0


def truncated_above_zero(log_tail):
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            pyro.factor("above_zero", -log_tail(mean))

    return UnconstrainedLogDensity(model, (torch.linspace(0.1, 2.0, 12),))


def test_the_search_does_not_follow_a_density_that_rounds_to_infinity():
    """log(1 - cdf(0)) is -inf below a mean of -8, where it should be -36; modes are those of the exact formula."""
    rounding = truncated_above_zero(lambda mean: torch.log1p(-dist.Normal(mean, 1.0).cdf(torch.tensor(0.0))))
    with pytest.warns(UserWarning, match=r"does not go where log p is \+inf at mean = -.*log_ndtr"):
        found = modes_of(rounding)
    exact = modes_of(truncated_above_zero(torch.special.log_ndtr))
    torch.testing.assert_close(found.center, exact.center, rtol=0, atol=1e-3)


def test_a_loss_of_digits_far_from_the_data_is_no_mode():
    """Where s is tiny, a filter's covariance may round to zero, and log p to +inf."""

    def model():
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.factor("digits", torch.where(s < 1e-3, torch.inf, -s))

    target = UnconstrainedLogDensity(model, ())
    starts = torch.tensor([[-3.0], [4.0]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # given once in a process
        found = find_modes(target, starts, torch.Generator().manual_seed(0))
    mode = found.center.squeeze(-1)
    torch.testing.assert_close(mode + mode.exp(), torch.zeros(2).double(), rtol=0, atol=1e-3)  # u = -e^u
