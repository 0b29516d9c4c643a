"""The root of an increasing function, differentiable by the implicit function theorem."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_root"]

BISECTIONS, NEWTON_STEPS = 20, 6


def find_root(f: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """Solves f(x) = 0 elementwise for an increasing f with its root in [low, high].

    Bisection, which cannot fail, is followed by Newton steps. Both have a fixed number of iterations, so that a
    training step can be compiled. Only the last Newton step records gradients. At a root they are exact,
    dx = -df / f'(x), for all tensors on which f depends. Second-order gradients are wrong.

    Args:
        f: The map from x to (f(x), f'(x)).
        low: The lower bounds, of the shape of x.
        high: The upper bounds, of the shape of x.
    """
    with torch.no_grad():
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = f(middle)[0] > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        x = (low + high) / 2
        for _ in range(NEWTON_STEPS):
            value, derivative = f(x)
            x = torch.minimum(torch.maximum(x - value / derivative, low), high)
    value, derivative = f(x)
    return x - value / derivative
