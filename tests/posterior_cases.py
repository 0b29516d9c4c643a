"""Programs whose posteriors are known or hard, and fits of them, for the tests of `ppgen.posterior` and the verdict."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from support import untrained_fit as untrained_fit

import ppgen
from ppgen.fitting import Fit

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def covariates(n: int = 60, *, scale: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(n, 2, dtype=torch.float64)
    y = 1.0 + x @ torch.tensor([0.5, -2.0], dtype=torch.float64) + torch.randn(n, dtype=torch.float64)
    return x * torch.tensor([scale, 1.0], dtype=torch.float64) + shift, y


def regression(x, y):
    """Linear regression with known noise: conjugate. Its matrix product does not broadcast."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1e4).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[0] + x @ b[1:], 1.0), obs=y)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def two_modes():
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    sides = torch.stack([dist.Normal(-4.0, 0.5).log_prob(x), dist.Normal(4.0, 0.5).log_prob(x)])
    pyro.factor("sides", sides.logsumexp(0))


def correlated():
    distribution = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    pyro.sample("z", distribution)


def heavy():
    pyro.sample("z", dist.Cauchy(torch.zeros(5), 1.0).to_event(1))


def two_sides(share: float, *, edge: float = -math.inf, hole: float = math.nan):
    """A mixture of N(-4, 0.5^2), which has this share, and N(4, 0.5^2); below the edge, log p is `hole`."""
    shares = torch.tensor([share, 1 - share]).log()
    centers = torch.tensor([-4.0, 4.0])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        height = (dist.Normal(centers, 0.5).log_prob(x[..., None]) + shares).logsumexp(-1)
        pyro.factor("sides", torch.where(x > edge, height - dist.Normal(0.0, 10.0).log_prob(x), hole))

    return model


def guide_of(name: str, distribution):
    """A guide with one latent."""
    return lambda *_: pyro.sample(name, distribution)


def trained_fit(model, guide, *data, steps: int, **options) -> Fit:
    pyro.clear_param_store()
    adam = partial(torch.optim.Adam, lr=0.02)
    return ppgen.fit(model, guide, data or None, optim=adam, steps=steps, progress=False, compile=False, **options)
