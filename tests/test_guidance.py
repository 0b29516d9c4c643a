"""Guidance: closed forms of Gaussian data and of mixtures, then errors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppgen.diffusion import Rates, bridge, make_schedule
from ppgen.diffusion.guidance import classifier, classifier_free, conjugate_gradients, posterior

MEAN = torch.tensor([0.5, -1.0, 0.3]).double()
ROOT = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.4, 0.7]]).double()
COV = ROOT @ ROOT.T
MAP = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]]).double()  # what is seen: two numbers of three
NOISE = torch.tensor([0.3, 0.5]).double()
SEEN = torch.tensor([1.2, 0.4]).double()


def rates(signal: float, noise: float) -> Rates:
    a, s = torch.tensor([signal, noise]).double()
    return Rates(a, s, 2 * (a / s).log())


def gaussian(mean=MEAN, cov=COV):
    """E[v | z] of v ~ N(mean, cov)."""

    def denoise(z, rates):
        a, s, _ = rates
        gain = a * torch.linalg.solve(a**2 * cov + s**2 * torch.eye(len(mean)).to(cov), cov)
        return mean + (z - a * mean) @ gain

    return denoise


def conditioned(mean=MEAN, cov=COV):
    """Mean and covariance of v given SEEN."""
    gain = torch.linalg.solve(MAP @ cov @ MAP.T + NOISE.square().diag(), MAP @ cov).T
    return mean + gain @ (SEEN - MAP @ mean), cov - gain @ MAP @ cov


def likelihood(x):
    pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(1), obs=SEEN)


def in_parts(x):
    """The same in two sites, under a plate, a mask, and a scale."""
    loc = x @ MAP.T
    with pyro.plate("rows", len(x)):
        pyro.sample("first", dist.Normal(loc[:, :1], NOISE[:1]).to_event(1), obs=SEEN[:1])
    two = torch.stack([loc[:, 1], loc[:, 0]], 1)
    masked = dist.Normal(two, NOISE[1] * 2**0.5).mask(torch.tensor([True, False])).to_event(1)
    with poutine.scale(scale=2.0):
        pyro.sample("second", masked, obs=torch.stack([SEEN[1], torch.tensor(50.0).double()]))


def correlated(x):
    """The same, of one site with a full covariance of its noise."""
    turn = torch.tensor([[1.0, 0.4], [-0.7, 1.0]]).double()
    noise = turn @ NOISE.square().diag() @ turn.T
    pyro.sample("y", dist.MultivariateNormal(x @ MAP.T @ turn.T, noise), obs=turn @ SEEN)


def by_a_factor(x):
    """One of the two numbers as a factor: log N(y | D) is no normal site, and has no curvature."""
    pyro.factor("y", dist.Normal(x @ MAP.T, NOISE).log_prob(SEEN).sum(-1))


LEVELS = {
    "data": (1.0, 1e-3),
    "some noise": (0.9, 0.4),
    "half": (0.5, 0.5),
    "much": (0.1, 0.9),
    "large": (1.0, 50.0),
}


@pytest.mark.parametrize("program", [likelihood, in_parts, correlated])
@pytest.mark.parametrize("level", LEVELS)
def test_posterior_of_gaussian_data_is_exact(level, program):
    torch.manual_seed(0)
    at = rates(*LEVELS[level])
    z = at.signal * MEAN + at.noise * torch.randn(5, 3).double()
    guided = posterior(gaussian(), program, cg_steps=2, floor=1e-4)(z, at)
    torch.testing.assert_close(guided, gaussian(*conditioned())(z, at), rtol=1e-6, atol=1e-6)


def test_posterior_without_signal_is_that_of_the_prior():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    at = Rates(*torch.tensor([0.0, 1.0, -torch.inf]).double())
    mean, _ = conditioned()
    for floor, tolerance in ((0.01, 1e-3), (0.001, 1e-5)):  # the error falls as its square
        guided = posterior(gaussian(), likelihood, cg_steps=2, floor=floor)(z, at)
        torch.testing.assert_close(guided, mean.expand(4, 3), rtol=0, atol=tolerance)


def test_levels_of_rows():
    """Rates (n,), one of them below the floor."""
    z = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    a, s = torch.tensor([[0.0, 0.5, 0.9], [1.0, 0.5, 0.1]]).double()
    rows = Rates(a, s, 2 * (a / s).log())

    def denoise(z, at):
        parts = [Rates(*part) for part in zip(*(rate.expand(len(z)) for rate in at), strict=True)]
        return torch.cat([gaussian()(row[None], part) for row, part in zip(z, parts, strict=True)])

    together = posterior(denoise, likelihood, cg_steps=2)(z, rows)
    apart = [
        posterior(gaussian(), likelihood, cg_steps=2)(z[i : i + 1], Rates(*(r[i] for r in rows))) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(apart))


def ddim(denoise, z, levels, eta=0.0):
    """From noise to data by the bridge, its noise weighed by eta."""
    for t, r in zip(levels[:-1], levels[1:], strict=True):
        mean = denoise(z, t)
        if eta:
            from_z, from_x, scale = bridge(r, t)
            z = from_z * z + from_x * mean + scale * torch.randn_like(z)
        else:
            z = r.signal * mean + r.noise * (z - t.signal * mean) / t.noise
    return denoise(z, levels[-1])


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "straight"])
def test_draws_are_of_the_closed_form_posterior(schedule, eta):
    torch.manual_seed(0)
    n = 4000
    grid = make_schedule(schedule).grid(100, MEAN)
    levels = [Rates(*parts) for parts in zip(*grid, strict=True)]
    x = ddim(posterior(gaussian(), likelihood, cg_steps=2), torch.randn(n, 3).double(), levels, eta)
    mean, cov = conditioned()
    # whitened, the mean is N(0, 1 / n) and the covariance has deviations of (2 / n)^1/2; at 4.5 of them each of nine
    # entries fails in 7e-6 of runs. 100 steps add about 0.02 of their own.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (x - mean).T, upper=False).T
    assert white.mean(0).abs().max() < 4.5 / n**0.5 + 0.02
    assert (white.T.cov() - torch.eye(3)).abs().max() < 4.5 * (2 / n) ** 0.5 + 0.03
