"""Solutions of the exercises of "How straight is the way from noise to data?"."""

import torch

N, U = 200_000, 0.3
MEAN, STD = 2.0, 0.5


def pairs() -> tuple[torch.Tensor, ...]:
    """Independent x and e, the point of their path at U, and its velocity."""
    x, e = MEAN + STD * torch.randn(N).double(), torch.randn(N).double()
    return x, e, (1 - U) * x + U * e, e - x


VARIANCE = (1 - U) ** 2 * STD**2 + U**2  # of z_u
SLOPE = (U - (1 - U) * STD**2) / VARIANCE  # Cov(e - x, z_u) / Var(z_u)


def velocity(z: torch.Tensor) -> torch.Tensor:
    """F(z, U): the mean of one normal variable given another."""
    return -MEAN + SLOPE * (z - (1 - U) * MEAN)


def exercise_1() -> None:
    """Least squares of e - x on one and z."""
    _, _, z, v = pairs()
    design = torch.stack([torch.ones_like(z), z], 1)
    intercept, slope = torch.linalg.lstsq(design, v[:, None]).solution[:, 0]
    assert abs(slope - SLOPE) < 0.03
    assert abs(intercept + slope * (1 - U) * MEAN - velocity(torch.tensor((1 - U) * MEAN))) < 0.02


def exercise_2() -> None:
    """The variance of e - x given z is Var(e - x) less what z explains."""
    _, _, z, v = pairs()
    unexplained = (1 + STD**2) - SLOPE**2 * VARIANCE
    torch.testing.assert_close(v.square().mean(), velocity(z).square().mean() + unexplained, rtol=0.01, atol=0)
    torch.testing.assert_close((v - velocity(z)).square().mean(), torch.tensor(unexplained).double(), rtol=0.02, atol=0)


def exercise_3() -> None:
    """Sorted pairs keep their order at every u, so a point of the path has one velocity."""
    x, e, _, _ = pairs()
    x, e = x.sort().values, e.sort().values
    for u in (0.1, 0.5, 0.9):
        assert (((1 - u) * x + u * e).diff() >= 0).all()
    torch.testing.assert_close(e - 1.0 * (e - x), x)
