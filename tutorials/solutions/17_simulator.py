"""Solutions of the exercises of "A simulator inverted by a flow"."""

import torch
from scipy.stats import chisquare

N = 20_000


def ranks(draw) -> torch.Tensor:
    """Counts of the ten ranks of the true value among nine draws."""
    theta = torch.randn(N)
    x = theta + torch.randn(N)
    below = (draw(x, torch.randn(9, N)) < theta).sum(0)
    return torch.bincount(below, minlength=10)


def exercise_1() -> None:
    """Exact draws, and draws of the prior, which ignore x; each test has a false-positive rate of 1 in 1000."""
    assert chisquare(ranks(lambda x, e: x / 2 + 0.5**0.5 * e)).pvalue > 1e-3
    assert chisquare(ranks(lambda x, e: e)).pvalue > 1e-3


def exercise_2() -> None:
    """True values lie outside of draws that are too narrow."""
    counts = ranks(lambda x, e: x / 2 + 0.5 * 0.5**0.5 * e)
    assert {int(i) for i in counts.topk(2).indices} == {0, 9}
    assert counts[0] > 1.5 * N / 10


def exercise_3() -> None:
    """The minimum of log c + E (theta - a x - b)^2 / 2 c^2: least squares, and the variance of its residuals."""
    theta = torch.randn(N).double()
    x = theta + torch.randn(N).double()
    design = torch.stack([x, torch.ones_like(x)], 1)
    a, b = torch.linalg.lstsq(design, theta[:, None]).solution[:, 0]
    c2 = (theta - a * x - b).square().mean()
    assert abs(a - 0.5) < 0.02
    assert abs(b) < 0.02
    assert abs(c2 - 0.5) < 0.03
