"""Networks for denoisers: maps from events to events with the same sides, with a context that modulates every block.

The context (features of a noise level, a label) is embedded once. A residual block h + W a(n(h) (1 + g) + b) computes
a gain g and a shift b from the embedding (Perez et al. 2018, https://arxiv.org/abs/1709.07871; Dhariwal & Nichol 2021,
https://arxiv.org/abs/2105.05233). The last layer of a block is initialized to zero, so that the initial network is one
affine map.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.nets.networks import Network, ZeroConv2d, ZeroLinear, as_shape, check_image_shape

__all__ = ["ResidualDense", "UNet"]


class ResidualDense(Network):
    """A residual network of vectors, with blocks of one width: for tables and points.

    Args:
        in_dim: The width of the input, or the shape of an event, which is flattened.
        out_dim: The width of the output, or the shape of an event.
        hidden: The widths of the blocks, which are all equal.
        dropout: The probability of dropping a hidden unit in training mode.
        context_dim: The width of the context; 0 for none.

    Raises:
        ValueError: If the widths differ, or there are none.
    """

    def __init__(
        self,
        in_dim: int | Sequence[int],
        out_dim: int | Sequence[int],
        *,
        hidden: Sequence[int] = (128, 128, 128),
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        super().__init__(as_shape(in_dim), as_shape(out_dim), context_dim)
        if len(set(hidden)) != 1:
            raise ValueError(f"expected the widths of residual blocks to be all the same, got {tuple(hidden)}")
        width = hidden[0]
        if context_dim:
            self.embed = _embedding(context_dim, width)
        self.first = nn.Linear(math.prod(self.in_shape), width)
        self.blocks = nn.ModuleList(_DenseBlock(width, dropout, conditioned=context_dim > 0) for _ in hidden)
        self.last = nn.Linear(width, math.prod(self.out_shape))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Applies the blocks to the flattened input."""
        embedded = None if context is None else self.embed(context)
        h = self.first(value.flatten(1))
        for block in self.blocks:
            h = block(h, embedded)
        return self.last(F.silu(h))


class UNet(Network):
    """A U-Net: blocks at decreasing and then increasing resolution, with skip connections at every scale.

    Sides need not be powers of two: s pixels become ceil(s / 2), and the upsampling path crops. Ronneberger et al.
    2015, https://arxiv.org/abs/1505.04597.

    Args:
        event_shape: (channels, height, width).
        out_channels: The channels of the output.
        hidden: The channels at each scale, with one block on the way down and one on the way up.
        attention: Whether the smallest scale has self-attention over pixels.
        dropout: The probability of dropping a channel in training mode.
        context_dim: The width of the context; 0 for none.

    Raises:
        ValueError: If `event_shape` is not that of an image, or there are no scales.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_channels: int,
        *,
        hidden: Sequence[int] = (32, 64),
        attention: bool = False,
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        channels, *sides = check_image_shape(event_shape)
        super().__init__((channels, *sides), (out_channels, *sides), context_dim)
        if not hidden:
            raise ValueError("expected the channels of at least one scale, got none")
        width = 2 * hidden[0]
        if context_dim:
            self.embed = _embedding(context_dim, width)
        self.first = nn.Conv2d(channels, hidden[0], 3, padding=1)
        conditioned = width if context_dim else 0

        def block(channels: int, out: int) -> _ConvBlock:
            return _ConvBlock(channels, out, dropout, conditioned)

        self.down = nn.ModuleList(block(width, width) for width in hidden)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(hidden))
        self.middle = block(hidden[-1], hidden[-1])
        self.attention = _Attention(hidden[-1]) if attention else nn.Identity()
        self.up = nn.ModuleList(block(2 * width, width) for width in reversed(hidden))
        self.enlarge = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(list(pairwise(hidden))))
        self.last = nn.Sequential(_norm(hidden[0]), nn.SiLU(), ZeroConv2d(hidden[0], out_channels, 3, padding=1))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Applies the blocks from the largest scale to the smallest and back."""
        embedded = None if context is None else self.embed(context)
        h, skips = self.first(value), []
        for scale, block in enumerate(self.down):
            if scale:
                h = self.shrink[scale - 1](h)
            h = block(h, embedded)
            skips.append(h)
        h = self.attention(self.middle(h, embedded))
        for scale, block in enumerate(self.up):
            skip = skips.pop()
            if scale:
                h = F.interpolate(h, scale_factor=2.0)[..., : skip.shape[-2], : skip.shape[-1]]
                h = self.enlarge[scale - 1](h)
            h = block(torch.cat([h, skip], 1), embedded)
        return self.last(h)


class _DenseBlock(nn.Module):
    def __init__(self, width: int, dropout: float, *, conditioned: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = ZeroLinear(width, 2 * width) if conditioned else None
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), ZeroLinear(width, width))

    def forward(self, h: Tensor, embedded: Tensor | None) -> Tensor:
        inner = self.norm(h)
        if self.modulate is not None:
            gain, shift = self.modulate(embedded).chunk(2, -1)
            inner = inner * (1 + gain) + shift
        return h + self.layers(inner)


class _ConvBlock(nn.Module):
    def __init__(self, channels: int, out: int, dropout: float, conditioned: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.first = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.norm = _norm(out)
        self.modulate = ZeroLinear(conditioned, 2 * out) if conditioned else None
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout2d(dropout), ZeroConv2d(out, out, 3, padding=1))

    def forward(self, h: Tensor, embedded: Tensor | None) -> Tensor:
        inner = self.norm(self.first(h))
        if self.modulate is not None:
            gain, shift = self.modulate(embedded)[..., None, None].chunk(2, 1)
            inner = inner * (1 + gain) + shift
        return self.skip(h) + self.last(inner)


class _Attention(nn.Module):
    """Self-attention over pixels with one head, h + W softmax(q k' / sqrt(c)) v.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.last = ZeroConv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.project(self.norm(h)).flatten(2).mT.chunk(3, -1)
        attended = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return h + self.last(attended.mT.unflatten(2, h.shape[2:]))


def _embedding(context_dim: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(context_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)
