"""Priors that are mixtures of continuous components: their supports, and posteriors against grids."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to, constraints, transform_to

import ppgen
from ppgen.tracing.mixture_supports import shared_support

WEIGHTS = dist.Categorical(torch.tensor([0.3, 0.7]))
ROWS = dist.Categorical(torch.ones(4, 2))
NORMALS = dist.MixtureSameFamily(WEIGHTS, dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
CASES = {
    "normal": NORMALS,
    "gamma": dist.MixtureSameFamily(WEIGHTS, dist.Gamma(torch.tensor([1.0, 3.0]), 1.0)),
    "beta": dist.MixtureSameFamily(WEIGHTS, dist.Beta(torch.tensor([1.0, 3.0]), 1.0)),
    "uniform": dist.MixtureSameFamily(ROWS, dist.Uniform(torch.full((4, 2), -1.0), torch.full((4, 2), 2.0))),
    "rows": dist.MixtureSameFamily(ROWS, dist.LogNormal(torch.zeros(4, 2, 3), 1.0).to_event(1)),
    "dirichlet": dist.MixtureSameFamily(WEIGHTS, dist.Dirichlet(torch.ones(2, 3))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_real_line_is_mapped_to_the_support(case):
    mixture = CASES[case]
    z = mixture.sample()
    for registry in (biject_to, transform_to):
        transform = registry(mixture.support)
        assert torch.allclose(transform(transform.inv(z)), z, atol=1e-5)


def test_components_with_different_supports_share_none():
    mixture = dist.MixtureSameFamily(WEIGHTS, dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])))
    with pytest.raises(NotImplementedError, match="different supports"):
        shared_support(mixture.support)

    def model(y):
        z = pyro.sample("z", mixture)
        pyro.sample("y", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"latent 'z'.*different supports.*covers this support.*pyro\.factor"):
        ppgen.fit(model, "auto", torch.zeros(1, 3), progress=False)


def test_a_support_of_plain_components_is_theirs():
    assert shared_support(NORMALS.support) is constraints.real


def observe_at_mixture(y):
    z = pyro.sample("z", NORMALS)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 4.0), obs=y)


def test_a_posterior_with_a_mixture_as_its_prior_is_that_of_a_grid():
    y = torch.tensor([0.5, 1.0, -2.0])
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    log_p = NORMALS.log_prob(grid) + dist.Normal(grid[:, None], 4.0).log_prob(y).sum(-1)
    weights = log_p.softmax(0)
    mean = (weights * grid).sum()
    fit = ppgen.fit(observe_at_mixture, "auto", y, progress=False)
    with torch.no_grad():
        torch.manual_seed(0)
        z = torch.stack([fit.guide(y)["z"] for _ in range(2000)])
    assert abs(z.mean() - mean) < 0.3  # standard deviation 2.8
    assert abs((z > 0).double().mean() - weights[grid > 0].sum()) < 0.05


def test_pyros_autoguides_take_such_latents():
    y = torch.zeros(3)
    fit = ppgen.fit(observe_at_mixture, AutoNormal(observe_at_mixture), y, steps=2, compile=False, progress=False)
    assert np.isfinite(fit.history["loss"]).all()
