"""A smooth network that carries directions along: f(x) and J v, J = df / dx, for one v or several.

    h_0 = x, dh_0 = v;   a_i = W_i h_{i-1} + b_i, da_i = W_i dh_{i-1};   h_i = s(a_i), dh_i = s'(a_i) da_i

In place of automatic differentiation, so that what is made of J (a trace, a determinant) has an ordinary graph, which
gradients pass through once and which a compiled step takes.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Smooth"]

STEEPEST = 1.1  # a bound of the slope of x sigmoid(x)
SQUARINGS = 5  # of a Gram matrix, for a bound of its norm


class Smooth(nn.Module):
    """A dense network of activations s(x) = x sigmoid(x), from events of width `dim` to such.

    Args:
        hidden: its hidden widths.
        extra: the width of further inputs, along which no derivative is taken.
        lipschitz: a bound of |f(x) - f(y)| / |x - y|, None for none. Spectral norms of the weights are held below its
            root, and s is x sigmoid(x) / 1.1 (Chen et al. 2019, section 4).
    """

    def __init__(self, dim: int, *, hidden: Sequence[int], extra: int = 0, lipschitz: float | None = None) -> None:
        super().__init__()
        widths = (dim + extra, *hidden, dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dim, self.bound = dim, None if lipschitz is None else lipschitz ** (1 / len(self.layers))
        self.gain = 1.0 if lipschitz is None else 1 / STEEPEST

    def forward(self, x: Tensor, extra: Tensor | None = None, along: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f(x), (*batch, dim), and J v of the columns of `along`, (*batch, dim, k); an empty one where there are none.

        Args:
            extra: (*batch, extra).
            along: v, (*batch, dim, k).
        """
        value, moved = x, x.new_zeros(x.shape[-1], 0) if along is None else along
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            if i:
                gate = torch.sigmoid(value)
                moved = (self.gain * gate * (1 + value * (1 - gate))).unsqueeze(-1) * moved
                value = self.gain * value * gate
            weight = layer.weight if i else layer.weight[:, : self.dim]
            if self.bound is not None:
                weight = weight * (self.bound / _norm(weight).clamp(min=self.bound))
            value = nn.functional.linear(value, weight, layer.bias)
            if i == 0 and extra is not None:
                value = value + extra @ layer.weight[:, self.dim :].mT
            moved = weight @ moved
        return value, moved


def _norm(matrix: Tensor) -> Tensor:
    """A bound of the spectral norm: the Schatten norm of order 64, (sum of the 64th powers of singular values)^(1/64).

    It is too high by a factor of n^(1/64) at most. Unlike a few power iterations it is a bound always, and it has
    nothing to remember.
    """
    gram = matrix @ matrix.mT if len(matrix) < matrix.shape[1] else matrix.mT @ matrix
    tiny = torch.finfo(matrix.dtype).tiny
    size = gram.new_zeros(())  # log of the factors taken out
    for _ in range(SQUARINGS):
        trace = gram.trace().clamp(min=tiny)
        size = 2 * (size + trace.log())
        gram = gram / trace
        gram = gram @ gram
    return ((size + gram.trace().clamp(min=tiny).log()) / 2 ** (SQUARINGS + 1)).exp()
