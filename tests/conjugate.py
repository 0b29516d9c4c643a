"""Bayesian linear regression, whose posterior, evidence and leave-one-out densities are known in closed form."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from support import untrained_fit as untrained_fit

N, P = 30, 3
NOISE = 0.7


class Conjugate:
    """y = X b + noise, b ~ N(0, I): all in closed form. The guide is the posterior, shifted and widened."""

    def __init__(self, *, shift=0.0, widen=1.0, seed=0, noise=None):
        rng = np.random.default_rng(seed)
        self.x = np.column_stack([np.ones(N), rng.normal(size=(N, P - 1))])
        error = rng.normal(size=N) if noise is None else noise(rng)
        self.y = self.x @ np.array([0.5, -1.0, 0.3]) + NOISE * error
        mean, covariance = self.posterior(np.ones(N, dtype=bool))
        root = torch.as_tensor(np.linalg.cholesky(covariance))
        center, scale = torch.as_tensor(mean) + shift * root.sum(1), widen * root

        def model(x, y):
            b = pyro.sample("b", dist.Normal(x.new_zeros(P), 1.0).to_event(1))
            with pyro.plate("data", N):
                pyro.sample("y", dist.Normal((x * b).sum(-1), NOISE), obs=y)

        def guide(x, y):
            pyro.sample("b", dist.MultivariateNormal(center, scale_tril=scale))

        self.model, self.guide, self.mean, self.covariance = model, guide, mean, covariance
        self.data = torch.as_tensor(self.x), torch.as_tensor(self.y)

    def posterior(self, rows):
        x, y = self.x[rows], self.y[rows]
        covariance = np.linalg.inv(np.eye(P) + x.T @ x / NOISE**2)
        return covariance @ x.T @ y / NOISE**2, covariance

    @property
    def evidence(self):
        return stats.multivariate_normal(np.zeros(N), self.x @ self.x.T + NOISE**2 * np.eye(N)).logpdf(self.y)

    @property
    def left_out(self):
        """Means and standard deviations of y_i given all others."""
        means, sds = np.empty(N), np.empty(N)
        for i in range(N):
            mean, covariance = self.posterior(np.arange(N) != i)
            means[i], sds[i] = self.x[i] @ mean, math.sqrt(self.x[i] @ covariance @ self.x[i] + NOISE**2)
        return means, sds

    def to_arviz(self, draws=4000, **options):
        return untrained_fit(self.model, self.guide, *self.data).to_arviz(
            *self.data, draws=draws, chunk=1000, **options
        )
