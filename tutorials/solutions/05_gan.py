"""Solutions of the exercises of "What does a GAN play for, and why does it not sit still?"."""

import math

import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

GRID = torch.linspace(-8, 8, 401).double()
STEP = float(GRID[1] - GRID[0])


def exercise_1() -> None:
    """Ascent in the value of the critic at each point of the grid."""

    def log_mixture(centers):
        parts = Normal(torch.tensor(centers).double(), 1.0)
        return MixtureSameFamily(Categorical(torch.ones(2).double()), parts).log_prob(GRID)

    log_p, log_q = log_mixture([-2.0, 2.0]), log_mixture([-1.0, 3.0])
    share = torch.sigmoid(log_p - log_q)  # p / (p + q)
    v = torch.zeros_like(GRID)
    for _ in range(5000):  # the derivative, p (1 - sigma) - q sigma, in units of (p + q) / 4
        v += 4 * (share - torch.sigmoid(v))
    torch.testing.assert_close(v, log_p - log_q, atol=1e-3, rtol=0)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = 0.5 * STEP * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum()
    log_sigmoid = torch.nn.functional.logsigmoid
    value = math.log(2) + 0.5 * STEP * (log_p.exp() * log_sigmoid(v) + log_q.exp() * log_sigmoid(-v)).sum()
    torch.testing.assert_close(value, divergence, atol=1e-5, rtol=0)


def play(h: float, gamma: float, steps: int) -> list[float]:
    """Distances from the saddle point, of simultaneous steps of length h."""
    theta, psi, distances = 1.0, 0.0, []
    for _ in range(steps):
        theta, psi = theta - h * psi, psi + h * (theta - gamma * psi)
        distances.append(math.hypot(theta, psi))
    return distances


def exercise_2() -> None:
    """Each step multiplies the distance by sqrt(1 + h^2)."""
    distances = play(h=0.1, gamma=0.0, steps=100)
    assert math.isclose(distances[-1], (1 + 0.1**2) ** 50, rel_tol=1e-12)


def exercise_3() -> None:
    """At gamma = 1, lambda = (-1 +- i sqrt 3) / 2, and |1 + h lambda|^2 = 1 - h + h^2: too long from h = 1 on."""
    assert play(h=0.1, gamma=1.0, steps=400)[-1] < 1e-6
    assert play(h=0.99, gamma=1.0, steps=5000)[-1] < 1e-6
    assert play(h=1.01, gamma=1.0, steps=5000)[-1] > 1e6
