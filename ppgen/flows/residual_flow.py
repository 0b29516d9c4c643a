"""Residual flows: z = x + g(x) with a contraction g.

From Behrmann et al. 2019 (https://arxiv.org/abs/1811.00995) and Chen et al. 2019 (https://arxiv.org/abs/1906.02735).
The log determinant is that of the full Jacobian instead of Chen's estimate from a power series. Scoring is therefore
exact and deterministic, and suits tables rather than images.
"""

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ppgen.flows.composition import Widths, check_layers, compose
from ppgen.flows.flow import Base, Flow
from ppgen.flows.smooth_mlp import SmoothMLP
from ppgen.flows.zuko import lazy

__all__ = ["Residual", "residual"]

ITERATIONS = 40


def residual(
    dim: int,
    *,
    layers: int = 8,
    hidden: Widths = (64, 64),
    context_dim: int = 0,
    base: Base = None,
    lipschitz: float = 0.97,
) -> Flow:
    """Residual flow: maps x + g(x) with |g(x) - g(y)| <= `lipschitz` |x - y|.

    From Behrmann et al. 2019 (https://arxiv.org/abs/1811.00995) and Chen et al. 2019 (https://arxiv.org/abs/1906.02735).
    Scoring computes the full Jacobian; sampling takes Newton iterations.

    Args:
        dim: The width of events.
        layers: The number of residual maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).
        lipschitz: The Lipschitz constant of each g, between 0 and 1.

    Raises:
        ValueError: If `layers` is below 1 or `lipschitz` is not between 0 and 1.
    """
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz: expected a number between 0 and 1, so that g is a contraction, got {lipschitz}")
    check_layers(layers)
    networks = (SmoothMLP(dim, hidden=hidden, extra=context_dim, lipschitz=lipschitz) for _ in range(layers))
    return compose([Residual(network) for network in networks], dim, context_dim=context_dim, base=base)


class Residual(lazy.LazyTransform):
    """z = x + g(x, context).

    Args:
        network: g, with `lipschitz` below one.
    """

    def __init__(self, network: SmoothMLP) -> None:
        super().__init__()
        self.network = network

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform for a context c (*batch, context_dim), or None."""
        return _ResidualTransform(self.network, c)


class _ResidualTransform(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: SmoothMLP, context: Tensor | None) -> None:
        super().__init__()
        self.network, self.context = network, context

    def _call(self, x: Tensor) -> Tensor:
        return x + self.network(x, self.context)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z and log |det dz / dx|."""
        z, jacobian = self.call_and_jacobian(x)
        return z, torch.linalg.slogdet(jacobian).logabsdet

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dz / dx|."""
        return self.call_and_ladj(x)[1]

    def _inverse(self, z: Tensor) -> Tensor:
        """Solves x + g(x) = z.

        A Newton step is accepted if it halves the residual. Otherwise the fixed-point iteration x <- z - g(x) is used,
        which always reduces it. Only the last Newton step records gradients, those of the implicit function theorem.
        """
        with torch.no_grad():
            x = z
            for _ in range(ITERATIONS):
                image, jacobian = self.call_and_jacobian(x)
                residual = image - z
                newton = x - torch.linalg.solve(jacobian, residual)
                halved = (self._call(newton) - z).norm(dim=-1) < residual.norm(dim=-1) / 2
                x = torch.where(halved.unsqueeze(-1), newton, x - residual)
            jacobian = self.call_and_jacobian(x)[1]
        return x - torch.linalg.solve(jacobian, self._call(x) - z)

    def call_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z and the Jacobian dz / dx."""
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        g, jacobian = self.network(x, self.context, eye.expand(*x.shape, x.shape[-1]))
        return x + g, eye + jacobian
