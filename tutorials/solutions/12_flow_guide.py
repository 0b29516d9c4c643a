"""Solutions of the exercises of "How much of a posterior does a guide have?"."""

import math

import numpy as np
import torch
from scipy.stats import norm
from torch.distributions import Normal

from ppgen import diagnostics


def exercise_1() -> None:
    """The scores are (x - mu) / sigma^2 and ((x - mu)^2 / sigma^2 - 1) / sigma."""
    mu, sigma, n = 1.0, 2.0, 200_000
    parameters = torch.tensor([mu, sigma], dtype=torch.double).expand(n, 2).clone().requires_grad_()
    draws = mu + sigma * torch.randn(n).double()
    (scores,) = torch.autograd.grad(Normal(*parameters.unbind(1)).log_prob(draws).sum(), parameters)
    expected = torch.tensor([1 / sigma**2, 2 / sigma**2]).double()
    assert (scores.mean(0).abs() < 4 * (expected / n).sqrt()).all()
    torch.testing.assert_close(scores.var(0), expected, rtol=0.03, atol=0)


def exercise_2() -> None:
    """The path part holds the parameters of log q fixed."""
    posterior = Normal(torch.tensor(1.0).double(), 2.0)
    n = 64
    parameters = torch.tensor([1.0, 2.0], dtype=torch.double).expand(n, 2).clone().requires_grad_()
    loc, scale = parameters.unbind(1)
    z = loc + scale * torch.randn(n).double()
    path = Normal(loc.detach(), scale.detach()).log_prob(z) - posterior.log_prob(z)
    whole = Normal(loc, scale).log_prob(z) - posterior.log_prob(z)
    (by_path,) = torch.autograd.grad(path.sum(), parameters, retain_graph=True)
    (by_both,) = torch.autograd.grad(whole.sum(), parameters)
    assert by_path.abs().max() < 1e-12
    assert (by_both.std(0) > 0.1).all()


def exercise_3() -> None:
    """p = (q + r) / 2 times the evidence; where q draws, p / q is half the evidence."""
    log_evidence = -3.0
    z = 10 + np.random.default_rng(0).standard_normal((1000, 1))
    log_q, log_r = norm.logpdf(z, 10), norm.logpdf(z, -10)
    log_p = log_evidence + np.logaddexp(log_q, log_r) - math.log(2)
    found = diagnostics.importance_summary(log_p - log_q)
    assert abs(found.log_marginal[0] - (log_evidence - math.log(2))) < 1e-9
    assert found.ess[0] > 999.9
