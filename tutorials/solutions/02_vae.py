"""Solutions of the exercises of "What does the decoder's covariance buy, and how sure is the number?"."""

from itertools import pairwise

import torch
from torch.distributions import Normal, kl_divergence

SIGMA = 0.5  # z ~ N(0, 1), x ~ N(z, SIGMA^2)
X = torch.tensor(1.3, dtype=torch.double)
EVIDENCE = Normal(0.0, (1 + SIGMA**2) ** 0.5).log_prob(X)
POSTERIOR = Normal(X / (1 + SIGMA**2), (SIGMA**2 / (1 + SIGMA**2)) ** 0.5)  # precisions 1 and 1 / SIGMA^2 add up


def log_weights(guide: Normal, *shape: int) -> torch.Tensor:
    """Log p(x, z) - log q(z) of draws of the guide."""
    z = guide.sample(shape)
    return Normal(0.0, 1.0).log_prob(z) + Normal(z, SIGMA).log_prob(X) - guide.log_prob(z)


def exercise_1() -> None:
    """The ELBO in closed form: E_q log p(x | z) - KL(q, p(z)); the gap is the divergence from the posterior."""

    def elbo(m, s):
        fit = Normal(m, SIGMA).log_prob(X) - s**2 / (2 * SIGMA**2)  # E (x - z)^2 = (x - m)^2 + s^2
        return fit - (m**2 + s**2 - 1 - (s**2).log()) / 2

    for m, s in ((0.0, 1.0), (1.0, 0.2), (-2.0, 0.7)):
        m, s = torch.tensor(m).double(), torch.tensor(s).double()
        torch.testing.assert_close(EVIDENCE - elbo(m, s), kl_divergence(Normal(m, s), POSTERIOR))
    torch.testing.assert_close(elbo(POSTERIOR.loc, POSTERIOR.scale), EVIDENCE)


def exercise_2() -> None:
    """E L_k rises to the evidence; by a Taylor expansion of the logarithm what is missing is Var(w) / (2 k p(x)^2)."""
    guide = Normal(POSTERIOR.loc, 0.8 * POSTERIOR.scale)
    repeats, ks = 20_000, (1, 2, 4, 16, 64)
    weights = log_weights(guide, repeats, max(ks))
    bounds = [(weights[:, :k].logsumexp(1) - torch.tensor(float(k)).log()).mean() for k in ks]
    assert all(one < next_one < EVIDENCE for one, next_one in pairwise(bounds))
    relative = (weights - EVIDENCE).exp()
    missing = relative.var() / (2 * 64)
    torch.testing.assert_close(EVIDENCE - bounds[-1], missing, rtol=0.25, atol=0.0)


def exercise_3() -> None:
    """The derivative of -log s - e / (2 s^2), e the mean squared error, is zero at s^2 = e."""
    errors = torch.randn(1000, 64).double() * torch.rand(64).double()
    mean_squared = errors.square().mean()
    variances = mean_squared * torch.linspace(0.5, 2, 301).double()
    log_density = -0.5 * (variances.log() + mean_squared / variances)
    best = variances[log_density.argmax()]
    assert abs(best / mean_squared - 1) < 0.006  # a step of the grid
