"""Solutions of the exercises of "What can the lower half be?"."""

import torch


def exercise_1() -> None:
    """The variance of -1 and 1 with the mean D is 1 - D^2, and the derivative of tanh is 1 - tanh^2."""
    a, s = 0.7, 0.9
    z = torch.linspace(-4, 4, 201).double().requires_grad_()
    mean = torch.tanh(a * z / s**2)
    (derivative,) = torch.autograd.grad(mean.sum(), z)
    torch.testing.assert_close((s**2 / a) * derivative, 1 - mean.detach().square())


def exercise_2() -> None:
    """Both forms of the mean of a linear regression."""
    d, k = 6, 3

    def covariance(size):
        root = torch.randn(size, size).double()
        return root @ root.T + 0.1 * torch.eye(size).double()

    v, s = covariance(d), covariance(k)
    a, mean, y = torch.randn(k, d).double(), torch.randn(d).double(), torch.randn(k).double()
    gain = v @ a.T @ torch.linalg.inv(s + a @ v @ a.T)
    by_gain = mean + gain @ (y - a @ mean)
    precision = torch.linalg.inv(v) + a.T @ torch.linalg.inv(s) @ a
    by_precision = torch.linalg.solve(precision, torch.linalg.solve(v, mean) + a.T @ torch.linalg.solve(s, y))
    torch.testing.assert_close(by_gain, by_precision)


def exercise_3() -> None:
    """2 / (k + 1) of all cases; more if the draws are too narrow."""
    k, n = 8, 50_000
    truth, draws = torch.randn(n, 1), torch.randn(n, k)

    def outside(scale):
        return float(((truth < scale * draws).all(1) | (truth > scale * draws).all(1)).float().mean())

    expected = 2 / (k + 1)
    assert abs(outside(1.0) - expected) < 4 * (expected * (1 - expected) / n) ** 0.5
    assert outside(0.5) > 2 * expected
