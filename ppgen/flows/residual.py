"""Residual flows: z = x + g(x), g a contraction (Behrmann et al. 2019; Chen et al. 2019).

The log det is that of the whole Jacobian, and not Chen's estimate of it from a power series: scoring is exact and
deterministic, and meant for tables rather than images.
"""

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ppgen.flows.smooth import Smooth
from ppgen.flows.zuko import lazy

__all__ = ["Residual"]

STEPS = 40


class Residual(lazy.LazyTransform):
    """A context to z = x + g(x, context).

    Args:
        network: g, of `lipschitz` below one.
    """

    def __init__(self, network: Smooth) -> None:
        super().__init__()
        self.network = network

    def forward(self, c: Tensor | None = None) -> Transform:
        return _Residual(self.network, c)


class _Residual(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: Smooth, context: Tensor | None) -> None:
        super().__init__()
        self.network, self.context = network, context

    def _call(self, x: Tensor) -> Tensor:
        return x + self.network(x, self.context)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image, matrix = self._slopes(x)
        return image, torch.linalg.slogdet(matrix).logabsdet

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def _inverse(self, z: Tensor) -> Tensor:
        """By steps of Newton's where they halve what is left, otherwise of x <- z - g(x), which always leaves less.

        The last step has gradients, those of the implicit function theorem.
        """
        with torch.no_grad():
            x = z
            for _ in range(STEPS):
                image, matrix = self._slopes(x)
                rest = image - z
                newton = x - torch.linalg.solve(matrix, rest)
                halved = (self._call(newton) - z).norm(dim=-1) < rest.norm(dim=-1) / 2
                x = torch.where(halved.unsqueeze(-1), newton, x - rest)
            matrix = self._slopes(x)[1]
        return x - torch.linalg.solve(matrix, self._call(x) - z)

    def _slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, and the Jacobian dz / dx."""
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        moved, slopes = self.network(x, self.context, eye.expand(*x.shape, x.shape[-1]))
        return x + moved, eye + slopes
