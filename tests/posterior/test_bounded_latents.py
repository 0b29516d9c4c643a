"""Latents on simplexes, intervals and positive numbers, whose tails on the real line are exponential, are trusted."""

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.diagnostics.verdict import GOOD

COUNTS = torch.tensor([0.0, 1.0, 2.0, 7.0, 0.0])
EVENTS = torch.tensor([0.0, 1.0, 4.0])


def alone(prior: dist.TorchDistribution) -> Callable[[], None]:
    def model() -> None:
        pyro.sample("z", prior.to_event(1 - len(prior.event_shape)))

    return model


def shares() -> None:
    z = pyro.sample("z", dist.Dirichlet(torch.ones(5)))
    pyro.sample("y", dist.Multinomial(10, z), obs=COUNTS)


def rates() -> None:
    z = pyro.sample("z", dist.Gamma(torch.ones(3), 1.0).to_event(1))
    pyro.sample("y", dist.Poisson(z).to_event(1), obs=EVENTS)


BETA, UNIFORM = dist.Beta(2.0, 1.0).expand([2]), dist.Uniform(0.0, 5.0).expand([3])
# programs by name, with the posterior of z
CASES = {
    "beta": (alone(BETA), BETA),
    "uniform": (alone(UNIFORM), UNIFORM),
    "shares with counts": (shares, dist.Dirichlet(1 + COUNTS)),
    "rates with counts": (rates, dist.Gamma(1 + EVENTS, 2.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_draws_are_right_and_called_good(name):
    """Means and log standard deviations within .1: six standard errors of 4000 draws of exponential tails at most."""
    model, exact = CASES[name]
    fit = ppgen.fit(model, "auto", None, restarts=2, progress=False)
    verdict = fit.diagnose(starts=2)
    assert verdict.level == GOOD, str(verdict)
    z = fit.to_arviz(draws=4000, predictive=False, chunk=1000).posterior["z"].values[fit.best]
    sd = exact.variance.sqrt().numpy()
    np.testing.assert_allclose((z.mean(0) - exact.mean.numpy()) / sd, 0, atol=0.1)
    np.testing.assert_allclose(np.log(z.std(0) / sd), 0, atol=0.1)
