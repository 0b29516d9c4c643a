"""Networks for denoisers: an event to an event of the same sides, under a context that reaches every layer.

The context (features of a noise level, a label) is embedded once, and each residual block h + W a(n(h) (1 + g) + b)
takes a gain g and a shift b from it (Perez et al. 2018; Dhariwal & Nichol 2021). A block's last layer starts at zero,
so that a network starts as one affine map.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.nets.networks import Network, ZeroConv2d, ZeroLinear, image_shape, shape_of

__all__ = ["ResidualDense", "UNet"]


class ResidualDense(Network):
    """Vectors through residual blocks of one width: for tables and points.

    Args:
        in_dim, out_dim: widths, or shapes of events, which are flattened.
        hidden: the widths of the blocks, all the same.
        dropout: the probability of dropping a hidden unit in training mode.
        context_dim: of the context; 0 leaves the blocks without.

    Raises:
        ValueError: the widths differ, or there is none.
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
        super().__init__(shape_of(in_dim), shape_of(out_dim), context_dim)
        if len(set(hidden)) != 1:
            raise ValueError(f"expected widths of residual blocks that are all the same, got {tuple(hidden)}")
        width = hidden[0]
        if context_dim:
            self.embed = _embedding(context_dim, width)
        self.first = nn.Linear(math.prod(self.in_shape), width)
        self.blocks = nn.ModuleList(_DenseBlock(width, dropout, conditioned=context_dim > 0) for _ in hidden)
        self.last = nn.Linear(width, math.prod(self.out_shape))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        embedded = None if context is None else self.embed(context)
        h = self.first(value.flatten(1))
        for block in self.blocks:
            h = block(h, embedded)
        return self.last(F.silu(h))


class UNet(Network):
    """Images through blocks at falling resolution and back, each scale joined to its mirror (Ronneberger et al. 2015).

    Sides need not be powers of two: s pixels become ceil(s / 2), and the way back crops.

    Args:
        event_shape: (channels, height, width).
        out_channels: of the output.
        hidden: channels at each scale, one block down and one up.
        attention: whether pixels of the smallest scale attend to each other.
        dropout: the probability of dropping a channel in training mode.
        context_dim: of the context.
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
        channels, *sides = image_shape(event_shape)
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
        embedded = None if context is None else self.embed(context)
        h, kept = self.first(value), []
        for scale, block in enumerate(self.down):
            if scale:
                h = self.shrink[scale - 1](h)
            h = block(h, embedded)
            kept.append(h)
        h = self.attention(self.middle(h, embedded))
        for scale, block in enumerate(self.up):
            mirror = kept.pop()
            if scale:
                h = F.interpolate(h, scale_factor=2.0)[..., : mirror.shape[-2], : mirror.shape[-1]]
                h = self.enlarge[scale - 1](h)
            h = block(torch.cat([h, mirror], 1), embedded)
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
    """h + W softmax(q k' / sqrt(c)) v over pixels, one head (Vaswani et al. 2017)."""

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
