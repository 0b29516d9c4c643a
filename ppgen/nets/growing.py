"""Growing networks: trained on images of few pixels first, with twice as many per side from stage to stage.

Karras et al. 2018, https://arxiv.org/abs/1710.10196. Images of h x w pixels have scales 0 .. K; scale k has
ceil(h / 2^K) 2^k x ceil(w / 2^K) 2^k pixels. If the last scale is larger than the image, the image is padded by
replicating its border, and cropped again. The input and output of a network are always images of the full size. At
*level* k, an integer, the network works at scale k: its input is the mean of blocks of pixels, and its output is
constant on blocks. At level k + a, 0 < a < 1, scale k + 1 is faded in with weight a:

    decoder   x = (1 - a) up(rgb_k(h_k)) + a rgb_{k+1}(h_{k+1})
    encoder   h = (1 - a) from_rgb_k(pool(x)) + a block_{k+1}(from_rgb_{k+1}(x))
    data      x = (1 - a) up(pool(x)) + a x                          `Growing.seen`

so that the output is continuous when a scale is added, and at an integer level the old branch has no weight. A network
is built with all its scales and starts at the last one, K, where it is an ordinary network; `ppgen.fit` moves it
through the levels by a `ppgen.ProgressiveGrowing`.

Weights are sampled from N(0, 1) and multiplied, whenever they are used, by gain / sqrt(fan-in): the equalized learning
rate of section 4.1, with which Adam updates all layers at the same relative speed.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.nets.networks import Network, activation_layers, as_shape, check_image_shape

__all__ = ["Growing", "GrowingDecoder", "GrowingEncoder", "growing_parts"]

MIN_SIDE = 4  # the least number of pixels per side of the first scale, unless the widths define more scales
MAX_CHANNELS = 128  # the most channels of the first scale, unless the widths are given


class EqualLinear(nn.Linear):
    """An affine map whose weights are scaled when they are used: y = gain / sqrt(fan-in) W x + b.

    Args:
        in_features: The width of the input.
        out_features: The width of the output.
        gain: The factor for the activation.
    """

    def __init__(self, in_features: int, out_features: int, *, gain: float = math.sqrt(2)) -> None:
        self.scale = gain / math.sqrt(in_features)
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Samples the weights from N(0, 1) and sets the bias to zero."""
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Applies the scaled map."""
        return F.linear(value, self.weight * self.scale, self.bias)


class EqualConv2d(nn.Conv2d):
    """A convolution that preserves the sides, with weights scaled like those of `EqualLinear`.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        size: The side of the kernel, an odd number.
        gain: The factor for the activation.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, *, gain: float = math.sqrt(2)) -> None:
        self.scale = gain / math.sqrt(in_channels * size**2)
        super().__init__(in_channels, out_channels, size, padding=size // 2)

    def reset_parameters(self) -> None:
        """Samples the weights from N(0, 1) and sets the bias to zero."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Applies the scaled convolution."""
        return F.conv2d(value, self.weight * self.scale, self.bias, padding=self.padding)


class Growing(Network):
    """A network of images at several scales, and its current level.

    A subclass implements ``run`` for `stage`, the scale at which it works, and if `fading` is true also for the scale
    below, combined by `mix`. Both follow from the buffer `level`, so that loading weights restores the level.

    Args:
        image: (channels, height, width) of the images.
        in_shape: The event shape of the input.
        out_shape: The event shape of the output.
        scales: The number of scales, or None for as many as the images have.
        context_dim: The width of the context.

    Attributes:
        sides: (height, width) of every scale, including padding, the smallest first.
        top: The last scale K.
        level: A scalar tensor, from 0 to K.

    Raises:
        ValueError: If there are more scales than the images have.
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
        _, *self._size = check_image_shape(image)
        side = min(self._size)
        top = max(int(math.log2(side / MIN_SIDE)), 0) if scales is None else scales - 1
        if scales is not None and side < 2**scales:
            most = max(int(math.log2(side)), 1)
            raise ValueError(
                f"images of {' x '.join(map(str, self._size))} pixels have no {scales} scales, each with half the "
                f"sides of the next and the first with at least 2 pixels: give at most {most} widths"
            )
        self.top = top
        first = [math.ceil(side / 2**top) for side in self._size]
        self.sides = [(first[0] * 2**k, first[1] * 2**k) for k in range(top + 1)]
        self._padding = [padded - side for padded, side in zip(self.sides[-1], self._size, strict=True)]
        self.register_buffer("level", torch.tensor(float(top)))
        self._level, self._version = float(top), self.level._version
        self._stage, self._fading = top, False

    def grow(self, level: float, *, fading: bool | None = None) -> None:
        """Sets the level.

        Args:
            level: The new level, from 0 to K.
            fading: Whether the scale below is computed too, with weight zero at an integer level; by default only if
                the level is between two scales. A constant value for a whole stage needs one compiled step only.

        Raises:
            ValueError: If the level is outside of 0 .. K, or between two scales while `fading` is False.
        """
        if not 0 <= level <= self.top:
            raise ValueError(f"expected a level from 0 to {self.top}, the last scale, got {level}")
        between_scales = level != int(level)
        if fading is False and between_scales:
            raise ValueError(
                f"level {level} is between two scales, of which one fades into the other, but fading is False"
            )
        with torch.no_grad():
            self.level.fill_(level)
        self._level, self._version = level, self.level._version
        self._stage = math.ceil(level)
        self._fading = (between_scales if fading is None else fading) and self._stage > 0

    @property
    def structure(self) -> tuple[int, bool]:
        """(stage, fading), which determine the operations of the forward pass and therefore its compiled step."""
        if self.level._version != self._version:  # the buffer was written to: weights were loaded or restored
            if (level := float(self.level)) != self._level:
                self.grow(level)
            self._version = self.level._version
        return self._stage, self._fading

    @property
    def stage(self) -> int:
        """The scale at which the network works."""
        return self.structure[0]

    @property
    def fading(self) -> bool:
        """Whether the scale below is computed too."""
        return self.structure[1]

    def mix(self, old: Tensor, new: Tensor) -> Tensor:
        """Returns (1 - a) old + a new, which is exactly old if a = 0 and exactly new if a = 1.

        Args:
            old: The branch of the scale below.
            new: The branch of the current scale.
        """
        return torch.lerp(old, new, (self.level - (self.stage - 1)).to(new.dtype))

    def seen(self, x: Tensor) -> Tensor:
        """Images reduced to the resolution of the current level; unchanged at the last level.

        Args:
            x: (*batch, channels, height, width).
        """
        if self.stage == self.top and not self.fading:
            return x
        rows = x.reshape(-1, *x.shape[-3:])
        reduced = self._full_size(self._pooled(rows, self.stage), self.stage)
        if self.fading:
            reduced = self.mix(self._full_size(self._pooled(rows, self.stage - 1), self.stage - 1), reduced)
        return reduced.reshape(x.shape)

    def _pooled(self, x: Tensor, scale: int) -> Tensor:
        """Images of full size (n, channels, height, width), pooled to a scale."""
        if any(self._padding):
            x = F.pad(x, (0, self._padding[1], 0, self._padding[0]), mode="replicate")
        return F.avg_pool2d(x, 2 ** (self.top - scale)) if scale < self.top else x

    def _full_size(self, x: Tensor, scale: int) -> Tensor:
        """Images at a scale, upsampled to full size."""
        height, width = self._size
        return _up(x, 2 ** (self.top - scale))[..., :height, :width]


class GrowingDecoder(Growing):
    """A map from vectors to images.

    An affine map gives the first scale. Each further scale doubles the sides by repeating pixels and applies two 3 x 3
    convolutions, each followed by normalization and activation; a 1 x 1 convolution gives the image. A context is
    concatenated to the vector.

    Args:
        in_dim: The width of the input, or the shape of an event, which is flattened.
        event_shape: (channels, height, width) of the output.
        hidden: The channels of the scales, the smallest scale first; their number is the number of scales. By default
            the first scale has sides from 4 to 7 pixels, and the last scale has 16 channels, each scale before it
            twice as many, up to 128.
        activation: As in :class:`ppgen.nets.Dense`.
        norm: As in :class:`ppgen.nets.Dense`; "pixel" is that of Karras et al. (2018, section 4.2).
        dropout: The probability of dropping a channel in training mode.
        context_dim: The width of the context.
        pyramid: Whether the image is a sum over scales, x_{k+1} = up(x_k) + rgb_{k+1}(h_{k+1}) / (K + 1), each term a
            level of its Laplacian pyramid (Denton et al. 2015, https://arxiv.org/abs/1506.05751; Karras et al. 2020,
            https://arxiv.org/abs/1912.04958, section 4.1), instead of the output of the last scale. Adam moves all
            K + 1 terms by one learning rate; divided by their number, the image moves as far in a step as that of one.

    Raises:
        ValueError: If there are more scales than the images have, or options are out of range.
    """

    term_share: Tensor

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
        shapes = as_shape(in_dim), check_image_shape(event_shape)
        super().__init__(event_shape, *shapes, scales=scales, context_dim=context_dim)
        widths = _widths(self.top)[::-1] if hidden is None else tuple(hidden)
        self.pyramid = pyramid

        def convolution(width: int, following: int) -> list[nn.Module]:
            layers = activation_layers(following, activation, norm, dropout, image=True)
            return [EqualConv2d(width, following, 3), *layers]

        self.smallest = (widths[0], *self.sides[0])
        features = math.prod(self.in_shape) + context_dim
        self.start = EqualLinear(features, math.prod(self.smallest), gain=1.0)
        first = activation_layers(widths[0], activation, norm, dropout, image=True) + convolution(widths[0], widths[0])
        blocks = [nn.Sequential(*first)]
        for width, following in pairwise(widths):
            blocks.append(nn.Sequential(*convolution(width, following), *convolution(following, following)))
        self.blocks = nn.ModuleList(blocks)
        self.rgb = nn.ModuleList(EqualConv2d(width, self.out_shape[0], 1, gain=1.0) for width in widths)
        if pyramid:  # a buffer, so that weights that were trained without it are refused
            self.register_buffer("term_share", torch.tensor(1 / len(widths)))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Decodes up to the current scale, and fades it in."""
        stage, fading = self.structure
        value = value.flatten(1)
        value = self.start(value if context is None else torch.cat([value, context], -1))
        value = value.unflatten(1, self.smallest)
        image: Tensor | None = None  # of the scales so far, at the next scale's size
        for scale in range(stage + 1):
            value = self.blocks[scale](_up(value) if scale else value)
            if not (self.pyramid or scale == stage or (fading and scale == stage - 1)):
                continue
            new = self.rgb[scale](value)
            if self.pyramid:
                new = new * self.term_share if image is None else image + new * self.term_share
            if fading and scale == stage:
                assert image is not None  # the output of the scale below
                new = self.mix(image, new)
            image = new if scale == stage else _up(new)
        assert image is not None
        return self._full_size(image, stage)


class GrowingEncoder(Growing):
    """A map from images to vectors, the mirror of :class:`GrowingDecoder`.

    Each scale has two convolutions and average pooling of 2 x 2 pixels. A context enters at the first scale, as
    ``context_dim`` constant channels.

    Args:
        event_shape: (channels, height, width) of the images.
        out_dim: The width of the output, or the shape of an event.
        hidden: The channels of the scales, the largest scale first; None as in :class:`GrowingDecoder`.
        activation: As in :class:`ppgen.nets.Dense`.
        norm: As in :class:`GrowingDecoder`.
        dropout: The probability of dropping a channel in training mode.
        context_dim: The width of the context.
        multi_scale: Whether the image enters at every scale, (h_k + from_rgb_k(x at scale k)) / sqrt(2) (after Karnewar
            & Wang 2020, https://arxiv.org/abs/1903.06048; Karras et al. 2020, https://arxiv.org/abs/1912.04958),
            instead of at the largest scale alone.
        minibatch_std: Whether the first scale has a channel with the standard deviation over the batch, averaged over
            channels and pixels, from which a critic recognizes samples that vary too little (Karras et al. 2018,
            section 3). The output then depends on the batch.

    Raises:
        ValueError: If there are more scales than the images have, or options are out of range.
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
        minibatch_std: bool = False,
    ) -> None:
        scales = None if hidden is None else len(hidden)
        shapes = check_image_shape(event_shape), as_shape(out_dim)
        super().__init__(event_shape, *shapes, scales=scales, context_dim=context_dim)
        widths = (_widths(self.top) if hidden is None else tuple(hidden))[::-1]  # the smallest scale first
        self.multi_scale, self.minibatch_std = multi_scale, minibatch_std
        options: dict[str, Any] = {"activation": activation, "norm": norm, "dropout": dropout}

        def convolution(width: int, following: int, size: int = 3) -> nn.Sequential:
            return nn.Sequential(
                EqualConv2d(width, following, size), *activation_layers(following, image=True, **options)
            )

        self.from_rgb = nn.ModuleList(convolution(self.in_shape[0], width, 1) for width in widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(width, width), convolution(width, following), nn.AvgPool2d(2))
            for following, width in pairwise(widths)
        )  # block k maps scale k + 1 to scale k
        self.join = convolution(widths[0] + context_dim + minibatch_std, widths[0])
        features = widths[0] * math.prod(self.sides[0])
        self.end = nn.Sequential(
            nn.Flatten(),
            EqualLinear(features, widths[0]),
            *activation_layers(widths[0], image=False, **options),
            EqualLinear(widths[0], math.prod(self.out_shape), gain=1.0),
        )

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Encodes from the current scale down, and fades it in."""
        stage, fading = self.structure
        h = self._from_image(value, stage)
        for scale in reversed(range(stage)):
            h = self.blocks[scale](h)
            fades = fading and scale == stage - 1
            if fades or self.multi_scale:
                features = self._from_image(value, scale)
                combined = (features + h) / math.sqrt(2) if self.multi_scale else h
                h = self.mix(features, combined) if fades else combined
        if self.minibatch_std:
            spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean()
            h = torch.cat([h, spread.expand(len(h), 1, *h.shape[-2:])], 1)
        if context is not None:
            h = torch.cat([h, context[..., None, None].expand(*context.shape, *h.shape[-2:])], 1)
        return self.end(self.join(h))

    def _from_image(self, x: Tensor, scale: int) -> Tensor:
        return self.from_rgb[scale](self._pooled(x, scale))


def growing_parts(modules: Iterable[nn.Module]) -> list[Growing]:
    """The growing networks among modules and their submodules, each once.

    Args:
        modules: The modules.
    """
    return list({id(part): part for top in modules for part in top.modules() if isinstance(part, Growing)}.values())


def _widths(top: int) -> tuple[int, ...]:
    """Channels of the scales, the largest scale first."""
    return tuple(min(16 * 2**k, MAX_CHANNELS) for k in range(top + 1))


def _up(x: Tensor, times: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=times, mode="nearest") if times > 1 else x
