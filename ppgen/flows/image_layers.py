"""Layers of image flows: bijections of events (channels, height, width).

All layers keep the shape of an event. What Dinh et al. (2017, https://arxiv.org/abs/1605.08803) squeeze and split off
is put back into its place afterward (`Squeezed`, `Split`). So z has the shape of x, and log determinants add up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.flows.bijection import InvertibleLayer

__all__ = [
    "ActNorm",
    "Invertible1x1Conv",
    "MaskedCoupling",
    "Split",
    "Squeezed",
    "channel_mask",
    "checkerboard_mask",
]

MAX_LOG_SCALE = 2.0  # of a coupling


class ActNorm(InvertibleLayer):
    """Activation normalization, y = exp(s) (x - m), with one m and s per channel.

    From Kingma & Dhariwal 2018, section 3.1 (https://arxiv.org/abs/1807.03039). It is the identity until
    `Flow.initialize` sets m and s from a batch, so that the outputs of this batch have mean 0 and variance 1.

    Args:
        channels: The number of channels.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.log_scale = (nn.Parameter(torch.empty(channels, 1, 1)) for _ in range(2))
        self.register_buffer("initialized", torch.tensor(False))
        self.initializing = False  # set by `Flow.initialize` while it passes the batch through
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the layer to the identity, to be initialized again."""
        with torch.no_grad():
            self.mean.zero_()
            self.log_scale.zero_()
            self.initialized.fill_(False)

    def initialize(self, x: Tensor) -> None:
        """Sets mean and scale from a batch; a constant channel keeps its scale.

        Args:
            x: The batch (*batch, channels, height, width).
        """
        with torch.no_grad():
            rows = x.movedim(-3, 0).flatten(1)
            std = rows.std(1, correction=0)
            self.mean.copy_(rows.mean(1)[:, None, None])
            self.log_scale.copy_(-std.where(std > 0, 1.0).log()[:, None, None])
            self.initialized.fill_(True)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        if self.initializing:
            self.initialize(x)
        return (x - self.mean) * self.log_scale.exp(), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        return y * (-self.log_scale).exp() + self.mean, -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[-2] * x.shape[-1] * self.log_scale.sum()).expand(x.shape[:-3])


class Invertible1x1Conv(InvertibleLayer):
    """A 1 x 1 convolution: y_p = W x_p at every pixel p, with W = P L U.

    From Kingma & Dhariwal 2018, section 3.2 (https://arxiv.org/abs/1807.03039). P is a fixed permutation, L unit lower
    triangular and U upper triangular: log |det| = height width sum_i log |u_ii|. W starts as a random rotation.

    Args:
        channels: The number of channels.
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
        """Sets W to a new random rotation."""
        with torch.no_grad():
            rotation = torch.linalg.qr(torch.randn_like(self.lower))[0]
            permutation, lower, upper = torch.linalg.lu(rotation)
            self.permutation.copy_(permutation)
            self.lower.copy_(lower.tril(-1))
            self.upper.copy_(upper.triu(1))
            self.signs.copy_(upper.diagonal().sign())
            self.log_diagonal.copy_(upper.diagonal().abs().log())

    def triangles(self) -> tuple[Tensor, Tensor]:
        """Returns L and U, both (channels, channels)."""
        eye = torch.eye(len(self.signs), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())
        return self.lower.tril(-1) + eye, upper

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        lower, upper = self.triangles()
        return _apply_per_pixel(self.permutation @ lower @ upper, x), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        lower, upper = self.triangles()
        inverse = torch.linalg.solve_triangular(lower, self.permutation.mT, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
        return _apply_per_pixel(inverse, y), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[-2] * x.shape[-1] * self.log_diagonal.sum()).expand(x.shape[:-3])


class MaskedCoupling(InvertibleLayer):
    """An affine coupling: y = x where the mask m is 1 and y = e^s x + t where it is 0.

    (t, s) is a network of m x and the context; a tanh keeps s in (-2, 2). A network with output zero gives the identity
    (Dinh et al. 2017, https://arxiv.org/abs/1605.08803).

    Args:
        mask: Ones and zeros, with a shape that broadcasts with an event.
        network: The map from events of C channels and a context to events of 2 C channels.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.network = network

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        shift, log_scale = self._affine(x, context)
        return x * log_scale.exp() + shift, log_scale.sum((-3, -2, -1))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        shift, log_scale = self._affine(y, context)
        return (y - shift) * (-log_scale).exp(), -log_scale.sum((-3, -2, -1))

    def _affine(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(self.mask * x, context).chunk(2, -3)
        free = 1 - self.mask
        return free * shift, free * MAX_LOG_SCALE * (raw / MAX_LOG_SCALE).tanh()


class Squeezed(InvertibleLayer):
    """A layer applied to the squeezed event: 2 x 2 pixels become channels, (4 channels, height / 2, width / 2).

    Args:
        inner: The layer of squeezed events.
    """

    def __init__(self, inner: InvertibleLayer) -> None:
        super().__init__()
        self.inner = inner

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        y, log_det = self.inner.forward_and_log_det(F.pixel_unshuffle(x, 2), context)
        return F.pixel_shuffle(y, 2), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        x, log_det = self.inner.inverse_and_log_det(F.pixel_unshuffle(y, 2), context)
        return F.pixel_shuffle(x, 2), log_det


class Split(InvertibleLayer):
    """A layer applied to the first channels only; the others pass unchanged (the split of a multi-scale flow).

    Args:
        inner: The layer of the first channels.
        kept: The number of these channels.
    """

    def __init__(self, inner: InvertibleLayer, kept: int) -> None:
        super().__init__()
        self.inner, self.kept = inner, kept

    def forward_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns y and log |det dy / dx|."""
        y, log_det = self.inner.forward_and_log_det(x[..., : self.kept, :, :], context)
        return torch.cat([y, x[..., self.kept :, :, :]], -3), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det dx / dy|."""
        x, log_det = self.inner.inverse_and_log_det(y[..., : self.kept, :, :], context)
        return torch.cat([x, y[..., self.kept :, :, :]], -3), log_det


def checkerboard_mask(height: int, width: int, *, odd: bool) -> Tensor:
    """A mask (1, height, width) with ones where row + column is even, or where it is odd."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return ((rows + columns) % 2 == odd).to(torch.get_default_dtype())[None]


def channel_mask(count: int, *, odd: bool) -> Tensor:
    """A mask (count, 1, 1) with ones in the first half of the channels, or, if odd, in the second half."""
    return ((torch.arange(count) >= count // 2) == odd).to(torch.get_default_dtype())[:, None, None]


def _apply_per_pixel(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.flatten(-2)).unflatten(-1, x.shape[-2:])
