"""A smooth network that also returns Jacobian-vector products J v, with J = df / dx, for one v or several.

    h_0 = x, dh_0 = v;   a_i = W_i h_{i-1} + b_i, da_i = W_i dh_{i-1};   h_i = s(a_i), dh_i = s'(a_i) da_i

Explicit forward-mode derivatives, instead of automatic differentiation, give functions of J (a trace, a determinant) an
ordinary graph: one backward pass differentiates them, and a training step around them can be compiled.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["SmoothMLP"]

SILU_LIPSCHITZ = 1.1  # an upper bound of the derivative of x sigmoid(x)
SQUARINGS = 5  # of a Gram matrix, to bound its norm


class SmoothMLP(nn.Module):
    """A dense network from events (dim,) to events (dim,) with the activation s(x) = x sigmoid(x).

    Args:
        dim: The width of events.
        hidden: The hidden widths.
        extra: The number of further inputs, which are not differentiated.
        lipschitz: An upper bound of |f(x) - f(y)| / |x - y|, or None. The spectral norm of each of the n weights is
            then at most lipschitz^(1/n), and s is x sigmoid(x) / 1.1 (Chen et al. 2019, section 4,
            https://arxiv.org/abs/1906.02735).
    """

    def __init__(self, dim: int, *, hidden: Sequence[int], extra: int = 0, lipschitz: float | None = None) -> None:
        super().__init__()
        widths = (dim + extra, *hidden, dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dim, self.max_norm = dim, None if lipschitz is None else lipschitz ** (1 / len(self.layers))
        self.gain = 1.0 if lipschitz is None else 1 / SILU_LIPSCHITZ

    def forward(self, x: Tensor, extra: Tensor | None = None, vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns f(x) (*batch, dim) and the products J v (*batch, dim, k).

        Args:
            x: The events (*batch, dim).
            extra: The further inputs (*batch, extra), or None.
            vectors: The columns v (*batch, dim, k), or None for k = 0.
        """
        value, product = x, x.new_zeros(x.shape[-1], 0) if vectors is None else vectors
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            if i:
                gate = torch.sigmoid(value)
                product = (self.gain * gate * (1 + value * (1 - gate))).unsqueeze(-1) * product
                value = self.gain * value * gate
            weight = layer.weight if i else layer.weight[:, : self.dim]
            if self.max_norm is not None:
                weight = weight * (self.max_norm / _spectral_norm_bound(weight).clamp(min=self.max_norm))
            value = nn.functional.linear(value, weight, layer.bias)
            if i == 0 and extra is not None:
                value = value + extra @ layer.weight[:, self.dim :].mT
            product = weight @ product
        return value, product


def _spectral_norm_bound(matrix: Tensor) -> Tensor:
    """The Schatten norm of order 64, (sum of the 64th powers of the singular values)^(1/64).

    It exceeds the spectral norm by a factor of at most n^(1/64). Unlike an estimate by power iteration, it is always an
    upper bound and has no state.
    """
    gram = matrix @ matrix.mT if len(matrix) < matrix.shape[1] else matrix.mT @ matrix
    tiny = torch.finfo(matrix.dtype).tiny
    log_scale = gram.new_zeros(())  # the logarithm of the factors taken out
    for _ in range(SQUARINGS):
        trace = gram.trace().clamp(min=tiny)
        log_scale = 2 * (log_scale + trace.log())
        gram = gram / trace
        gram = gram @ gram
    return ((log_scale + gram.trace().clamp(min=tiny).log()) / 2 ** (SQUARINGS + 1)).exp()
