"""Solutions of the exercises of "From raw data to a posterior one can trust, and a fit that fails"."""

import math

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence


def exercise_1() -> None:
    """theta ~ N(0, I), y ~ N(X theta, I): log p(y, theta) is quadratic, so the expansion is exact."""
    n, d = 20, 3
    x, y = torch.randn(n, d).double(), torch.randn(n).double()

    def log_joint(theta):
        return Normal(0.0, 1.0).log_prob(theta).sum() + Normal(x @ theta, 1.0).log_prob(y).sum()

    start = torch.zeros(d, dtype=torch.double, requires_grad=True)
    curvature = -torch.autograd.functional.hessian(log_joint, start)
    (gradient,) = torch.autograd.grad(log_joint(start), start)
    mode = torch.linalg.solve(curvature, gradient)  # one step of Newton
    laplace = log_joint(mode) + d / 2 * math.log(2 * math.pi) - torch.linalg.slogdet(curvature).logabsdet / 2
    exact = MultivariateNormal(torch.zeros(n).double(), torch.eye(n).double() + x @ x.T).log_prob(y)
    torch.testing.assert_close(laplace, exact)


def exercise_2() -> None:
    """theta ~ N(0, 1), y_i ~ N(theta, 1), n = 5: without y_0 the posterior of theta has the precision n."""
    y = torch.randn(5).double()
    theta = torch.linspace(-8, 8, 8001).double()
    log_posterior = Normal(0.0, 1.0).log_prob(theta) + Normal(theta[:, None], 1.0).log_prob(y).sum(1)
    weights = log_posterior.softmax(0)
    by_identity = 1 / (weights / Normal(theta, 1.0).log_prob(y[0]).exp()).sum()
    exact = Normal(y[1:].sum() / 5, (1 + 1 / 5) ** 0.5).log_prob(y[0]).exp()
    torch.testing.assert_close(by_identity, exact)


def exercise_3() -> None:
    """KL(q, p) = sum_i (P_ii v_i - log v_i) / 2 + constant, P the precision: v_i = 1 / P_ii = 1 - rho^2."""
    rho = 0.8
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]]).double()
    precision = torch.linalg.inv(covariance)
    best = 1 / precision.diagonal()
    torch.testing.assert_close(best, torch.full((2,), 1 - rho**2).double())

    def kl(v):
        guide, posterior = (MultivariateNormal(torch.zeros(2).double(), matrix) for matrix in (v.diag(), covariance))
        return kl_divergence(guide, posterior)

    assert all(kl(best * (1 + 0.05 * torch.randn(2).double())) > kl(best) for _ in range(20))
