"""Networks that grow: images of few pixels first, of twice as many a side from stage to stage (Karras et al. 2018).

Images of h x w pixels have scales 0 .. K, scale k of ceil(h / 2^K) 2^k x ceil(w / 2^K) 2^k pixels; where the last is
larger than the image, the image is padded by its border, and cropped again. A network is always given, and always
gives, images of the whole size. At *level* k, a whole number, it works at scale k: it sees what blocks of pixels have
for a mean, and gives every pixel of a block one value. At level k + a, 0 < a < 1, scale k + 1 fades in with weight a:

    decoder   x = (1 - a) up(rgb_k(h_k)) + a rgb_{k+1}(h_{k+1})
    encoder   h = (1 - a) from_rgb_k(pool(x)) + a block_{k+1}(from_rgb_{k+1}(x))
    data      x = (1 - a) up(pool(x)) + a x                          `Growing.seen`

so that nothing jumps when a scale joins, and at a whole level nothing is left of the branch that faded out. A network
is built with all its scales and stands at the last one, K, where it is a network like any other; `ppgen.fit` takes it
through the levels by a `ppgen.ProgressiveGrowing`.

Weights are drawn from N(0, 1) and multiplied, wherever they are used, by gain / sqrt(fan-in): the equalized learning
rate of section 4.1, under which Adam moves all layers at one relative speed.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.nets.networks import Network, between, image_shape, shape_of

__all__ = ["Growing", "GrowingDecoder", "GrowingEncoder", "growing_parts"]

SMALLEST = 4  # pixels a side of the first scale, at least, unless the widths ask for more scales
WIDEST = 128  # channels of the first scale, at most, unless the widths say otherwise


class EqualLinear(nn.Linear):
    """An affine map whose weights are scaled where they are used: y = gain / sqrt(fan-in) W x + b."""

    def __init__(self, in_features: int, out_features: int, *, gain: float = math.sqrt(2)) -> None:
        self.scale = gain / math.sqrt(in_features)
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        return F.linear(value, self.weight * self.scale, self.bias)


class EqualConv2d(nn.Conv2d):
    """A convolution that keeps sides, with weights scaled as those of `EqualLinear`."""

    def __init__(self, in_channels: int, out_channels: int, size: int, *, gain: float = math.sqrt(2)) -> None:
        self.scale = gain / math.sqrt(in_channels * size**2)
        super().__init__(in_channels, out_channels, size, padding=size // 2)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        return F.conv2d(value, self.weight * self.scale, self.bias, padding=self.padding)


class Growing(Network):
    """A network of images at several scales, and the level where it stands.

    A subclass writes ``run`` for `stage`, the scale it works at, and, where `fading`, for the one below as well, mixed
    by `mix`. What these two are is read off the buffer `level`, so that loaded weights bring their level along.

    Attributes:
        sides: (height, width) of every scale, padding included, the smallest first.
        top: the last scale K.
        level: a scalar tensor, from 0 to K.
    """

    level: Tensor

    def __init__(
        self,
        image: Sequence[int],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        scales: int | None,
        context_dim: int,
    ) -> None:
        super().__init__(in_shape, out_shape, context_dim)
        _, *self._size = image_shape(image)
        side = min(self._size)
        top = max(int(math.log2(side / SMALLEST)), 0) if scales is None else scales - 1
        if scales is not None and side < 2**scales:
            raise ValueError(
                f"images of {' x '.join(map(str, self._size))} pixels have no {scales} scales, each of half the sides "
                f"of the next and the first of 2 pixels at least: give at most {max(int(math.log2(side)), 1)} widths"
            )
        self.top = top
        first = [math.ceil(side / 2**top) for side in self._size]
        self.sides = [(first[0] * 2**k, first[1] * 2**k) for k in range(top + 1)]
        self._missing = [whole - side for whole, side in zip(self.sides[-1], self._size, strict=True)]
        self.register_buffer("level", torch.tensor(float(top)))
        self._known, self._version = float(top), self.level._version
        self._stage, self._fading = top, False

    def grow(self, level: float, *, fading: bool | None = None) -> None:
        """Goes to a level.

        Args:
            fading: whether the scale below is worked out too, with no weight at a whole level; where the level lies
                between two, if left out. One answer for a whole stage makes one compiled step of it.

        Raises:
            ValueError: for a level outside of 0 .. K, and one between scales that is not to fade.
        """
        if not 0 <= level <= self.top:
            raise ValueError(f"expected a level from 0 to {self.top}, the last scale, got {level}")
        between_scales = level != int(level)
        if fading is False and between_scales:
            raise ValueError(f"level {level} lies between two scales, of which one fades into the other")
        with torch.no_grad():
            self.level.fill_(level)
        self._known, self._version = level, self.level._version
        self._stage = math.ceil(level)
        self._fading = (between_scales if fading is None else fading) and self._stage > 0

    @property
    def structure(self) -> tuple[int, bool]:
        """(stage, fading): what the forward pass is made of, which a compiled step holds on to."""
        if self.level._version != self._version:  # somebody wrote to the buffer: weights were loaded or put back
            if (level := float(self.level)) != self._known:
                self.grow(level)
            self._version = self.level._version
        return self._stage, self._fading

    @property
    def stage(self) -> int:
        """The scale worked at."""
        return self.structure[0]

    @property
    def fading(self) -> bool:
        """Whether the scale below is worked out too."""
        return self.structure[1]

    def mix(self, old: Tensor, new: Tensor) -> Tensor:
        """(1 - a) old + a new: exactly old at a = 0, and exactly new at a = 1."""
        return torch.lerp(old, new, (self.level - (self.stage - 1)).to(new.dtype))

    def seen(self, x: Tensor) -> Tensor:
        """Images (*batch, channels, height, width) as they look at this level; as they are at the last."""
        if self.stage == self.top and not self.fading:
            return x
        rows = x.reshape(-1, *x.shape[-3:])
        shown = self._shown(self._pooled(rows, self.stage), self.stage)
        if self.fading:
            shown = self.mix(self._shown(self._pooled(rows, self.stage - 1), self.stage - 1), shown)
        return shown.reshape(x.shape)

    def _pooled(self, x: Tensor, scale: int) -> Tensor:
        """Whole images (n, channels, height, width) at a scale."""
        if any(self._missing):
            x = F.pad(x, (0, self._missing[1], 0, self._missing[0]), mode="replicate")
        return F.avg_pool2d(x, 2 ** (self.top - scale)) if scale < self.top else x

    def _shown(self, x: Tensor, scale: int) -> Tensor:
        """Images at a scale as whole ones."""
        height, width = self._size
        return _up(x, 2 ** (self.top - scale))[..., :height, :width]


class GrowingDecoder(Growing):
    """Vectors to images.

    From an affine map to the first scale on, each scale is: twice the sides, every pixel repeated, and two 3 x 3
    convolutions, each followed by norm and activation; a 1 x 1 convolution makes the image. A context is joined to the
    vector.

    Args:
        in_dim: the input's width, or the shape of an event, which is flattened.
        event_shape: (channels, height, width) of the output.
        hidden: the channels of the scales, the smallest scale first, which also say how many scales there are. None
            for sides from 4 to 7 pixels on, and 16 channels at the last scale, twice as many at each one before, up to
            128.
        pyramid: whether scales add up to the image, x_{k+1} = up(x_k) + rgb_{k+1}(h_{k+1}), each a level of its
            Laplacian pyramid (Denton et al. 2015; Karras et al. 2020, section 4.1), instead of each making all of it.
        norm: "pixel" is that of Karras et al. (2018, section 4.2).

    The other options are those of :class:`ppgen.nets.Dense`.

    Raises:
        ValueError: for more scales than the images have, and options out of range.
    """

    def __init__(
        self,
        in_dim: int | Sequence[int],
        event_shape: Sequence[int],
        *,
        hidden: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        norm: str | None = None,
        dropout: float = 0.0,
        context_dim: int = 0,
        pyramid: bool = False,
    ) -> None:
        scales = None if hidden is None else len(hidden)
        shapes = shape_of(in_dim), image_shape(event_shape)
        super().__init__(event_shape, *shapes, scales=scales, context_dim=context_dim)
        widths = _widths(self.top)[::-1] if hidden is None else tuple(hidden)
        self.pyramid = pyramid

        def convolution(width: int, following: int) -> list[nn.Module]:
            return [EqualConv2d(width, following, 3), *between(following, activation, norm, dropout, image=True)]

        self.smallest = (widths[0], *self.sides[0])
        features = math.prod(self.in_shape) + context_dim
        self.start = EqualLinear(features, math.prod(self.smallest), gain=1.0)
        first = [*between(widths[0], activation, norm, dropout, image=True), *convolution(widths[0], widths[0])]
        blocks = [nn.Sequential(*first)]
        for width, following in pairwise(widths):
            blocks.append(nn.Sequential(*convolution(width, following), *convolution(following, following)))
        self.blocks = nn.ModuleList(blocks)
        self.rgb = nn.ModuleList(EqualConv2d(width, self.out_shape[0], 1, gain=1.0) for width in widths)

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        stage, fading = self.structure
        value = value.flatten(1)
        value = self.start(value if context is None else torch.cat([value, context], -1))
        value = value.unflatten(1, self.smallest)
        image: Tensor | None = None  # so far, twice as large
        for scale in range(stage + 1):
            value = self.blocks[scale](_up(value) if scale else value)
            if not (self.pyramid or scale == stage or (fading and scale == stage - 1)):
                continue
            new = self.rgb[scale](value)
            if image is not None and self.pyramid:
                new = image + new
            if fading and scale == stage:
                assert image is not None  # which the scale below has made
                new = self.mix(image, new)
            image = new if scale == stage else _up(new)
        assert image is not None
        return self._shown(image, stage)


class GrowingEncoder(Growing):
    """Images to vectors, the mirror of :class:`GrowingDecoder`: two convolutions and the mean of 2 x 2 pixels a scale.

    A context enters at the first scale, as ``context_dim`` constant channels.

    Args:
        event_shape: (channels, height, width) of the images.
        out_dim: the output's width, or the shape of an event.
        hidden: the channels of the scales, the largest scale first; None as in :class:`GrowingDecoder`.
        multi_scale: whether the image enters at every scale, h_k + from_rgb_k(x at scale k) over the root of two
            (after Karnewar & Wang 2020; Karras et al. 2020), not at the largest alone.
        deviation: whether the first scale has a channel of the batch's standard deviation, averaged over channels and
            pixels, which tells a sample that varies too little (Karras et al. 2018, section 3). The output then
            depends on the batch.

    The other options are those of :class:`ppgen.nets.Dense`.

    Raises:
        ValueError: for more scales than the images have, and options out of range.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_dim: int | Sequence[int],
        *,
        hidden: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        norm: str | None = None,
        dropout: float = 0.0,
        context_dim: int = 0,
        multi_scale: bool = False,
        deviation: bool = False,
    ) -> None:
        scales = None if hidden is None else len(hidden)
        shapes = image_shape(event_shape), shape_of(out_dim)
        super().__init__(event_shape, *shapes, scales=scales, context_dim=context_dim)
        widths = (_widths(self.top) if hidden is None else tuple(hidden))[::-1]  # the smallest scale first
        self.multi_scale, self.deviation = multi_scale, deviation
        options: dict[str, Any] = {"activation": activation, "norm": norm, "dropout": dropout}

        def convolution(width: int, following: int, size: int = 3) -> nn.Sequential:
            return nn.Sequential(EqualConv2d(width, following, size), *between(following, image=True, **options))

        self.from_rgb = nn.ModuleList(convolution(self.in_shape[0], width, 1) for width in widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(width, width), convolution(width, following), nn.AvgPool2d(2))
            for following, width in pairwise(widths)
        )  # block k takes scale k + 1 to scale k
        self.join = convolution(widths[0] + context_dim + deviation, widths[0])
        features = widths[0] * math.prod(self.sides[0])
        self.end = nn.Sequential(
            nn.Flatten(),
            EqualLinear(features, widths[0]),
            *between(widths[0], image=False, **options),
            EqualLinear(widths[0], math.prod(self.out_shape), gain=1.0),
        )

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        stage, fading = self.structure
        h = self._entering(value, stage)
        for scale in reversed(range(stage)):
            h = self.blocks[scale](h)
            fades = fading and scale == stage - 1
            if fades or self.multi_scale:
                entering = self._entering(value, scale)
                both = (entering + h) / math.sqrt(2) if self.multi_scale else h
                h = self.mix(entering, both) if fades else both
        if self.deviation:
            spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean()
            h = torch.cat([h, spread.expand(len(h), 1, *h.shape[-2:])], 1)
        if context is not None:
            h = torch.cat([h, context[..., None, None].expand(*context.shape, *h.shape[-2:])], 1)
        return self.end(self.join(h))

    def _entering(self, x: Tensor, scale: int) -> Tensor:
        return self.from_rgb[scale](self._pooled(x, scale))


def growing_parts(modules: Iterable[nn.Module]) -> list[Growing]:
    """The networks that grow among modules and their parts, each once."""
    return list({id(part): part for top in modules for part in top.modules() if isinstance(part, Growing)}.values())


def _widths(top: int) -> tuple[int, ...]:
    """Channels of the scales, the largest scale first."""
    return tuple(min(16 * 2**k, WIDEST) for k in range(top + 1))


def _up(x: Tensor, times: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=times, mode="nearest") if times > 1 else x
