"""Solutions of the exercises of "What does a diffusion know about its data, and at which step does it learn it?"."""

import math

import torch
from torch.distributions import Normal, kl_divergence


def exercise_1() -> None:
    """Signal 0.9 and noise 0.5 at step i - 1, 0.6 and 0.8 at step i."""
    x, n = 1.7, 200_000
    before, s_before, after, s_after = 0.9, 0.5, 0.6, 0.8
    alpha = after / before
    tau2 = s_after**2 - alpha**2 * s_before**2
    g2 = tau2 * s_before**2 / s_after**2
    b, c = alpha * s_before**2 / s_after**2, before * tau2 / s_after**2
    z = after * x + s_after * torch.randn(n).double()
    earlier = b * z + c * x + g2**0.5 * torch.randn(n).double()
    assert abs(earlier.mean() - before * x) < 4 * s_before / n**0.5
    assert abs(earlier.var() / s_before**2 - 1) < 0.02
    guess = 1.2
    step = kl_divergence(Normal(b * z + c * x, g2**0.5), Normal(b * z + c * guess, g2**0.5))
    expected = 0.5 * (before**2 / s_before**2 - after**2 / s_after**2) * (x - guess) ** 2
    torch.testing.assert_close(step, torch.full_like(step, expected))


def exercise_2() -> None:
    """By Bayes' theorem the odds of 1 against -1 are exp(2 a z / s^2)."""
    a, s = 0.8, 0.6
    z = torch.linspace(-3, 3, 101).double().requires_grad_()
    log_p = torch.logaddexp(Normal(a, s).log_prob(z), Normal(-a, s).log_prob(z)) - math.log(2)
    (score,) = torch.autograd.grad(log_p.sum(), z)
    torch.testing.assert_close(score, (a * torch.tanh(a * z / s**2) - z) / s**2)


def exercise_3() -> None:
    """At the time t, z has the variance 1 + t and the score -z / (1 + t); f = 0 and g^2 = 1."""
    steps = 2000
    z = 5**0.5 * torch.randn(10_000).double()
    start = z.clone()
    for t in torch.linspace(4, 0, steps + 1)[:-1].double():
        velocity = -0.5 * (-z / (1 + t))
        z = z - (4 / steps) * velocity
    torch.testing.assert_close(z, start / 5**0.5, rtol=2e-3, atol=0)  # the exact solution scales all rows alike
    assert abs(z.var() - 1) < 0.06
