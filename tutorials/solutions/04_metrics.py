"""Solutions of the exercises of "Which distance between two distributions?"."""

import math

import torch
from torch.distributions import Normal

from ppgen import metrics as m

GRID = torch.linspace(-12, 24, 7201, dtype=torch.double)
STEP = float(GRID[1] - GRID[0])
P = Normal(torch.tensor(0.0).double(), 1.0)


def mixture(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Log (p + q) / 2."""
    return torch.logaddexp(log_p, log_q) - math.log(2)


def exercise_1() -> None:
    """The derivative of log q in s is x - s."""
    log_p = P.log_prob(GRID)
    for at in (0.5, 2.0, 5.0, 12.0):
        s = torch.tensor(at, dtype=torch.double, requires_grad=True)
        log_q = Normal(s, 1.0).log_prob(GRID)
        log_m = mixture(log_p, log_q)
        value = 0.5 * STEP * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum()
        assert 0 <= value < math.log(2) + 1e-9
        (gradient,) = torch.autograd.grad(value, s)
        with torch.no_grad():
            expected = 0.5 * STEP * (log_q.exp() * (log_q - log_m) * (GRID - s)).sum()
        torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-6)


def exercise_2() -> None:
    """Rows of equal weight: the best transport in one dimension joins rows of the same rank."""
    x, y = torch.randn(50).double(), 1 + 2 * torch.randn(50).double()
    by_rank = (x.sort().values - y.sort().values).abs().mean()
    ends = torch.cat([x, y]).sort().values  # between these, both distribution functions are constant
    inside = (ends[1:] + ends[:-1]) / 2
    difference = (x[:, None] <= inside).double().mean(0) - (y[:, None] <= inside).double().mean(0)
    area = (difference.abs() * ends.diff()).sum()
    torch.testing.assert_close(by_rank, area)
    torch.testing.assert_close(m.Wasserstein(p=1)(x[:, None], y[:, None]), area)


def exercise_3() -> None:
    """p t - q exp(t - 1) at each x by itself: zero derivative where exp(t - 1) = p / q."""
    q = Normal(torch.tensor(1.0).double(), 1.0)
    log_p, log_q = P.log_prob(GRID), q.log_prob(GRID)

    def bound(t):
        return STEP * (log_p.exp() * t - (log_q + t - 1).exp()).sum()

    best = 1 + log_p - log_q
    torch.testing.assert_close(bound(best), torch.tensor(0.5).double())  # KL = 1^2 / 2
    for other in (best + 0.1, best - 0.1 * GRID.sin(), torch.ones_like(GRID)):
        assert bound(other) < bound(best)
