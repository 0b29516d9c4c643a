"""Latents that are angles or points of a sphere, against closed forms and quadrature."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import i0, i1
from torch import Tensor

import ppgen
from ppgen.diagnostics.verdict import GOOD, WEIGHTED
from ppgen.posterior.directions import Directions
from ppgen.posterior.log_density import UnconstrainedLogDensity

ANGLES = torch.tensor([0.4, 0.1, 0.9, -0.3, 0.6])


def angle(y: Tensor) -> None:
    t = pyro.sample("t", dist.VonMises(0.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.VonMises(t, 4.0), obs=y)


def test_the_posterior_of_an_angle_is_a_von_mises_distribution():
    """Its mean direction and mean cosine within 0.02, which is six standard errors; the evidence within 0.01 nats."""
    y = ANGLES.double()
    vector = np.array([0.5 + 4 * float(y.cos().sum()), 4 * float(y.sin().sum())])
    concentration, direction = np.hypot(*vector), np.arctan2(*vector[::-1])
    evidence = math.log(i0(concentration) / i0(0.5) / i0(4.0) ** 5) - 5 * math.log(2 * math.pi)
    fit = ppgen.fit(angle, "auto", ANGLES, restarts=2, progress=False)
    assert fit.diagnose(ANGLES, starts=2).level == GOOD
    idata = fit.to_arviz(ANGLES, draws=4000, predictive=False, chunk=1000)
    t = idata.posterior["t"].values[fit.best]
    assert (np.abs(t) <= math.pi).all()
    assert abs(t.mean() - direction) < 0.02
    assert abs(np.cos(t - direction).mean() - i1(concentration) / i0(concentration)) < 0.02
    assert float(idata.vi_stats["log_marginal"][fit.best]) == pytest.approx(evidence, abs=0.01)


@pytest.mark.parametrize(
    "distribution",
    [
        dist.VonMises(0.5, 1.0),
        dist.VonMises(torch.tensor([0.5]), 2.0).to_event(1),
        dist.SineSkewed(dist.VonMises(torch.zeros(1), torch.ones(1)).to_event(1), torch.tensor([0.3])),
    ],
    ids=lambda d: type(d).__name__,
)
def test_the_density_of_an_angle_integrates_to_one(distribution):
    target = UnconstrainedLogDensity(Directions(lambda: pyro.sample("t", distribution)))
    u = torch.linspace(-25, 25, 5001, dtype=torch.float64)
    assert float(target.log_prob(u[:, None]).exp().sum() * (u[1] - u[0])) == pytest.approx(1.0, abs=1e-4)


def test_a_pair_of_angles_has_a_density_that_integrates_to_one():
    pair = dist.SineBivariateVonMises(0.3, -0.5, 1.0, 2.0, 0.4)
    target = UnconstrainedLogDensity(Directions(lambda: pyro.sample("t", pair)))
    u = torch.linspace(-20, 20, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(u, u)
    assert float(target.log_prob(grid).exp().sum() * (u[1] - u[0]) ** 2) == pytest.approx(1.0, abs=1e-3)


def test_a_point_of_a_sphere_has_the_posterior_of_its_direction():
    """Under a uniform prior and a likelihood exp(k mu z), E z = (coth k - 1 / k) mu."""
    k, mu = 3.0, torch.tensor([0.6, 0.8, 0.0])

    def sphere():
        z = pyro.sample("z", dist.ProjectedNormal(torch.zeros(3)))
        pyro.factor("pull", k * (z * mu).sum(-1))

    fit = ppgen.fit(sphere, "auto", None, restarts=2, progress=False)
    assert fit.diagnose(starts=2).level in (GOOD, WEIGHTED)
    idata = fit.to_arviz(draws=4000, chunk=1000)
    assert set(idata.posterior.data_vars) == {"z", "z_normal"}
    z = idata.posterior_resampled["z"].values.reshape(-1, 3)
    np.testing.assert_allclose((z**2).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(z.mean(0), (1 / math.tanh(k) - 1 / k) * mu.numpy(), atol=0.04)
    evidence = math.log(math.sinh(k) / k)
    assert float(idata.vi_stats["log_marginal"][fit.best]) == pytest.approx(evidence, abs=0.03)


def test_another_prior_of_a_sphere_is_refused_with_a_remedy_that_works():
    prior = dist.VonMises3D(torch.tensor([0.0, 0.6, 0.8]))

    def direct():
        pyro.sample("z", prior)

    def remedy():
        z = pyro.sample("z", dist.ProjectedNormal(torch.zeros(3)))
        pyro.factor("prior", prior.log_prob(z) + math.log(4 * math.pi))

    with pytest.raises(ValueError, match=r"support of the latent 'z', a VonMises3D, .* dist.ProjectedNormal") as error:
        ppgen.fit(direct, "auto", None, progress=False)
    assert "pyro.factor('prior', prior.log_prob(z) + math.log(4 * math.pi))" in str(error.value)
    target = UnconstrainedLogDensity(Directions(remedy))
    u = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = (target.log_prob(u) - dist.Normal(0.0, 1.0).log_prob(u).sum(-1)).exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 * float(weights.std()) / 20_000**0.5)


@pytest.mark.parametrize("kind", [dist.LKJCholesky, dist.LKJ])
def test_correlations_are_drawn_from_their_density(kind):
    """Each of dimension d under LKJ(eta) has the variance 1 / (2 eta + d - 1); bounds are five standard errors."""
    program = Directions(lambda: pyro.sample("root", kind(4, torch.full((4000,), 2.0))))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = poutine.trace(program).get_trace().nodes["root"]["value"]
    matrix = draws @ draws.mT if kind is dist.LKJCholesky else draws
    below = matrix[:, *torch.tril_indices(4, 4, -1)]
    np.testing.assert_allclose(below.square().mean(0), 1 / 7, atol=5 * 0.17 / 4000**0.5)
    np.testing.assert_allclose(below.mean(0), 0, atol=5 * 0.38 / 4000**0.5)
