"""Solutions of the exercises of "KL both ways, in both spaces"."""

import math

import torch
from torch.distributions import Normal

X = torch.linspace(-16, 16, 3201).double()
LOG_P = torch.logaddexp(Normal(-4.0, 1.0).log_prob(X), Normal(4.0, 1.0).log_prob(X)) - math.log(2)


def kl(log_a: torch.Tensor, log_b: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """KL(a, b) by the trapezoidal rule."""
    return torch.trapezoid(log_a.exp() * (log_a - log_b), points)


def exercise_1() -> None:
    """The mean is 0, the variance that between the modes and that within, 16 + 1."""
    means, variances = torch.linspace(-1, 1, 21).double(), torch.linspace(12, 22, 41).double()
    gaussians = Normal(means[:, None, None], variances[:, None].sqrt())
    values = kl(LOG_P, gaussians.log_prob(X), X)  # means x variances
    row, column = divmod(int(values.argmin()), len(variances))
    assert abs(means[row]) < 1e-3
    assert abs(variances[column] - 17) < 1e-3


def exercise_2() -> None:
    """At the right mode every small change of mean or scale makes it larger."""
    values = {
        (m, s): float(kl(Normal(4 + m, s).log_prob(X), LOG_P, X)) for m in (-0.1, 0.0, 0.1) for s in (0.9, 1.0, 1.1)
    }
    assert min(values, key=values.get) == (0.0, 1.0)
    assert abs(values[0.0, 1.0] - math.log(2)) < 1e-3


def exercise_3() -> None:
    """The base N(0, 1) in z, T = sinh; log |T'| = log cosh z."""
    z = torch.linspace(-4.5, 4.5, 20_001).double()
    x = z.sinh()
    log_base = Normal(torch.tensor(0.0).double(), 1.0).log_prob(z)
    log_q = log_base - z.cosh().log()  # in x
    log_p = Normal(torch.tensor(0.5).double(), 1.5).log_prob(x)
    log_p_z = log_p + z.cosh().log()
    torch.testing.assert_close(kl(log_p, log_q, x), kl(log_p_z, log_base, z), atol=1e-5, rtol=0)
    torch.testing.assert_close(kl(log_q, log_p, x), kl(log_base, log_p_z, z), atol=1e-3, rtol=1e-4)
