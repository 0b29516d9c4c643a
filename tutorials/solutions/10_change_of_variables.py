"""Solutions of the exercises of "Change of variables, by hand"."""

import torch

from ppgen import flows


def exercise_1() -> None:
    """Log determinants of a composition add up."""
    d = 4
    maps = [flow.maps(None) for flow in perturbed(flows.lu_linear(d), flows.maf(d, hidden=(8,), layers=1))]
    x = torch.randn(d).double()

    def both(value):
        return maps[1](maps[0](value))

    middle = maps[0](x)
    total = maps[0].log_abs_det_jacobian(x, middle) + maps[1].log_abs_det_jacobian(middle, maps[1](middle))
    jacobian = torch.autograd.functional.jacobian(both, x)
    torch.testing.assert_close(total, torch.linalg.slogdet(jacobian).logabsdet)
    assert total.abs() > 0.01


def perturbed(*made):
    """Flows begin as the identity, where every formula holds."""
    for flow in made:
        for parameter in flow.double().parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def exercise_2() -> None:
    """Random matrices of six rows."""
    d = 6
    matrix = torch.randn(d, d).double()
    lower = matrix.tril()
    torch.testing.assert_close(torch.det(lower), lower.diagonal().prod())
    blocks = matrix.clone()
    blocks[:2, 2:] = 0
    torch.testing.assert_close(torch.det(blocks), torch.det(blocks[:2, :2]) * torch.det(blocks[2:, 2:]))
    _, _, upper = torch.linalg.lu(matrix)
    torch.testing.assert_close(torch.det(matrix).abs(), upper.diagonal().prod().abs())
    u, w = torch.randn(2, d).double()
    torch.testing.assert_close(torch.det(torch.eye(d).double() + torch.outer(u, w)), 1 + w @ u)


def exercise_3() -> None:
    """z = arcsinh x, dz/dx = 1 / sqrt(1 + x^2)."""
    base = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    x = torch.sinh(torch.linspace(-7, 7, 20_001).double())
    density = (base.log_prob(x.asinh()) - 0.5 * (1 + x.square()).log()).exp()
    mass = torch.trapezoid(density, x)
    torch.testing.assert_close(mass, torch.tensor(1.0).double(), atol=1e-5, rtol=0)
    below = torch.trapezoid(density[x <= 2], x[x <= 2])
    n = 100_000
    draws = base.sample((n,)).sinh()
    error = (below * (1 - below) / n).sqrt()
    assert ((draws <= 2).double().mean() - below).abs() < 4 * error + 1e-3
