"""The root of an increasing function, with the gradient of the implicit function theorem."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["root"]

HALVINGS, STEPS = 20, 6


def root(f: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """x with f(x) = 0, elementwise, for an increasing f that has its root in [low, high].

    Halvings first, which cannot fail, then steps of Newton's; a fixed number of both, so that a step of training can be
    compiled. The last step of Newton's is taken with gradients: at a root, those are dx = -df / f'(x), of whatever
    tensors f is made of. Gradients of second order are not right.

    Args:
        f: x to (f(x), f'(x)).
        low, high: of the shape of x.
    """
    with torch.no_grad():
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = f(middle)[0] > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        x = (low + high) / 2
        for _ in range(STEPS):
            value, slope = f(x)
            x = torch.minimum(torch.maximum(x - value / slope, low), high)
    value, slope = f(x)
    return x - value / slope
