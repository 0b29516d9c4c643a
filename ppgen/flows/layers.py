"""Layers of image flows: bijections y = f(x | c) of events (channels, height, width), c a context or None.

Each layer gives, both ways, the value and log |det| of that way's own Jacobian, in nats, over any batch dimensions. All
keep an event's shape: what Dinh et al. (2017) squeeze and split off is put back into its place afterward (`Squeezed`,
`Part`), so that z has the shape of x and log-dets simply add up.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Transform, constraints

__all__ = [
    "ActNorm",
    "Composed",
    "Coupling",
    "Invertible1x1Conv",
    "Layer",
    "Part",
    "Squeezed",
    "channels",
    "checkerboard",
]

BOUND = 2.0  # of a coupling's log scale
Way = Callable[[Tensor], tuple[Tensor, Tensor]]


class Bijection(Transform):
    """A torch transform of its two ways."""

    bijective = True

    def __init__(self, forth: Way, back: Way, rank: int) -> None:
        super().__init__()
        self._forth, self._back, self.rank = forth, back, rank
        self.domain = self.codomain = constraints.independent(constraints.real, rank)

    @property
    def inv(self) -> "Bijection":
        return Bijection(self._back, self._forth, self.rank)

    def _call(self, x: Tensor) -> Tensor:
        return self._forth(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._back(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._forth(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det dy / dx|, in one go."""
        return self._forth(x)


class Layer(nn.Module):
    """A bijection with parameters; called with a context it gives a torch transform, as a `Flow` wants it.

    `rank` is the number of an event's dimensions.
    """

    rank = 3

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """y, log |det dy / dx|."""
        raise NotImplementedError

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """x, log |det dx / dy|."""
        raise NotImplementedError

    def forward(self, context: Tensor | None = None) -> Transform:
        return Bijection(partial(self.forth, context=context), partial(self.back, context=context), self.rank)


class Composed(Layer):
    """One layer after another."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for layer in self.layers:
            x, log_det = layer.forth(x, context)
            total = total + log_det
        return x, total

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(())
        for layer in reversed(self.layers):
            y, log_det = layer.back(y, context)
            total = total + log_det
        return y, total


class ActNorm(Layer):
    """y = exp(s) (x - m), with a number m and s for each channel (Kingma and Dhariwal 2018, section 3.1).

    The identity until `Flow.initialize` measures a batch: then its outputs there have mean 0 and variance 1.
    """

    measured: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.log_scale = (nn.Parameter(torch.empty(channels, 1, 1)) for _ in range(2))
        self.register_buffer("measured", torch.tensor(False))
        self.measuring = False  # `Flow.initialize` says when
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity again, which waits to be measured."""
        with torch.no_grad():
            self.mean.zero_()
            self.log_scale.zero_()
            self.measured.fill_(False)

    def measure(self, x: Tensor) -> None:
        """Takes mean and scale of a batch; a constant keeps its scale."""
        with torch.no_grad():
            rows = x.movedim(-3, 0).flatten(1)
            deviation = rows.std(1, correction=0)
            self.mean.copy_(rows.mean(1)[:, None, None])
            self.log_scale.copy_(-deviation.where(deviation > 0, 1.0).log()[:, None, None])
            self.measured.fill_(True)

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.measuring:
            self.measure(x)
        return (x - self.mean) * self.log_scale.exp(), self._log_det(x)

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return y * (-self.log_scale).exp() + self.mean, -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[-2] * x.shape[-1] * self.log_scale.sum()).expand(x.shape[:-3])


class Invertible1x1Conv(Layer):
    """A 1 x 1 convolution, y_p = W x_p at every pixel p, W = P L U (Kingma and Dhariwal 2018, 3.2).

    P is a fixed permutation, L unit lower triangular, U upper triangular: log |det| = height width sum_i log |u_ii|.
    W starts as a random rotation.
    """

    permutation: Tensor
    signs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lower, self.upper = (nn.Parameter(torch.empty(channels, channels)) for _ in range(2))
        self.log_diagonal = nn.Parameter(torch.empty(channels))
        self.register_buffer("permutation", torch.empty(channels, channels))
        self.register_buffer("signs", torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Another rotation."""
        with torch.no_grad():
            rotation = torch.linalg.qr(torch.randn_like(self.lower))[0]
            permutation, lower, upper = torch.linalg.lu(rotation)
            self.permutation.copy_(permutation)
            self.lower.copy_(lower.tril(-1))
            self.upper.copy_(upper.triu(1))
            self.signs.copy_(upper.diagonal().sign())
            self.log_diagonal.copy_(upper.diagonal().abs().log())

    def triangles(self) -> tuple[Tensor, Tensor]:
        """L and U."""
        eye = torch.eye(len(self.signs), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())
        return self.lower.tril(-1) + eye, upper

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        lower, upper = self.triangles()
        return _mixed(self.permutation @ lower @ upper, x), self._log_det(x)

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        lower, upper = self.triangles()
        inner = torch.linalg.solve_triangular(lower, self.permutation.mT, upper=False, unitriangular=True)
        return _mixed(torch.linalg.solve_triangular(upper, inner, upper=True), y), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[-2] * x.shape[-1] * self.log_diagonal.sum()).expand(x.shape[:-3])


class Coupling(Layer):
    """y = x where the mask m is 1, and e^s x + t where it is 0, with (t, s) a network of m x and the context.

    s is kept in (-2, 2) by a tanh; a network that starts at zero starts the identity (Dinh et al. 2017).

    Args:
        mask: of ones and zeros, which broadcasts against an event.
        network: events of C channels, and a context, to events of 2 C.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.network = network

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._affine(x, context)
        return x * log_scale.exp() + shift, log_scale.sum((-3, -2, -1))

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._affine(y, context)
        return (y - shift) * (-log_scale).exp(), -log_scale.sum((-3, -2, -1))

    def _affine(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(self.mask * x, context).chunk(2, -3)
        moved = 1 - self.mask
        return moved * shift, moved * BOUND * (raw / BOUND).tanh()


class Squeezed(Layer):
    """A layer on the squeezed event: blocks of 2 x 2 pixels become channels, (4 channels, height / 2, width / 2)."""

    def __init__(self, inner: Layer) -> None:
        super().__init__()
        self.inner = inner

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, log_det = self.inner.forth(F.pixel_unshuffle(x, 2), context)
        return F.pixel_shuffle(y, 2), log_det

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_det = self.inner.back(F.pixel_unshuffle(y, 2), context)
        return F.pixel_shuffle(x, 2), log_det


class Part(Layer):
    """A layer on the first `kept` channels; the others are done, and stay (the split of a multi-scale flow)."""

    def __init__(self, inner: Layer, kept: int) -> None:
        super().__init__()
        self.inner, self.kept = inner, kept

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, log_det = self.inner.forth(x[..., : self.kept, :, :], context)
        return torch.cat([y, x[..., self.kept :, :, :]], -3), log_det

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_det = self.inner.back(y[..., : self.kept, :, :], context)
        return torch.cat([x, y[..., self.kept :, :, :]], -3), log_det


def checkerboard(height: int, width: int, *, odd: bool) -> Tensor:
    """(1, height, width): 1 where row + column is even, or where it is odd."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return ((rows + columns) % 2 == odd).to(torch.get_default_dtype())[None]


def channels(count: int, *, odd: bool) -> Tensor:
    """(count, 1, 1): 1 for the first half of the channels, or for the others."""
    return ((torch.arange(count) >= count // 2) == odd).to(torch.get_default_dtype())[:, None, None]


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.flatten(-2)).unflatten(-1, x.shape[-2:])
