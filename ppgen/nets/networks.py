"""Networks: maps from tensors of shape (*batch, *in_shape) to tensors of shape (*batch, *out_shape).

Every network here takes any number of leading batch dimensions: it flattens them into one, runs its layers
and restores them, so that convolutions and batch normalization work under a plate of particles too. A network
with ``context_dim > 0`` also takes a context of shape (*batch, context_dim), a one-hot label for example,
whose batch dimensions broadcast against those of the input. Nothing in a forward pass looks at a value, so
that all of it can be traced.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

Row = TypeVar("Row")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

# The layer over vectors and the layer over images, each a function of the width.
NORMS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "batch": (nn.BatchNorm1d, nn.BatchNorm2d),
    "layer": (nn.LayerNorm, lambda width: nn.GroupNorm(1, width)),
    "pixel": (lambda width: PixelNorm(), lambda width: PixelNorm()),
}


class PixelNorm(nn.Module):
    """h / sqrt(mean over channels of h^2), at every pixel (Karras et al. 2018, section 4.2); no parameters."""

    def forward(self, value: Tensor) -> Tensor:
        return value * (value.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Network(nn.Module):
    """What all networks share: shapes, leading dimensions and the context.

    A subclass writes ``run(value, context)`` for exactly one batch dimension.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], context_dim: int) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.context_dim = tuple(in_shape), tuple(out_shape), context_dim

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """(*batch, *in_shape) and, if there is one, (*batch, context_dim) to (*batch, *out_shape).

        Raises:
            ValueError: the input has another shape, or a context is missing, not wanted, or of another width.
        """
        batch = value.shape[: max(value.dim() - len(self.in_shape), 0)]
        if tuple(value.shape[len(batch) :]) != self.in_shape:
            expected = ", ".join(map(str, self.in_shape))
            raise ValueError(f"expected an input of shape (..., {expected}), got {tuple(value.shape)}")
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise ValueError(f"expected a context of width {self.context_dim} (0 for none), got {got}")
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            context = context.expand(*batch, self.context_dim).reshape(batch.numel(), self.context_dim)
            value = value.expand(*batch, *self.in_shape)
        out = self.run(value.reshape(batch.numel(), *self.in_shape), context)
        return out.reshape(*batch, *self.out_shape)


class Dense(Network):
    """A multilayer perceptron: x -> W_L a(... a(W_1 x + b_1) ...) + b_L.

    Args:
        in_dim: the input's width, or the shape of an event, which is flattened.
        out_dim: the output's width, or the shape of an event.
        hidden: the widths of the hidden layers; () leaves one affine map.
        activation: a row of ``ACTIVATIONS``.
        norm: a row of ``NORMS``, put between a hidden layer and its activation, or None.
        dropout: the probability of dropping a hidden unit in training mode.
        context_dim: the width of a context joined to the input.
    """

    def __init__(
        self,
        in_dim: int | Sequence[int],
        out_dim: int | Sequence[int],
        *,
        hidden: Sequence[int] = (256, 256),
        activation: str = "silu",
        norm: str | None = None,
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        super().__init__(shape_of(in_dim), shape_of(out_dim), context_dim)
        widths = [math.prod(self.in_shape) + context_dim, *hidden]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [
                nn.Linear(width, following),
                *between(following, activation, norm, dropout, image=False),
            ]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(self.out_shape)))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        value = value.flatten(1)
        return self.layers(value if context is None else torch.cat([value, context], -1))


class ConvEncoder(Network):
    """Images to vectors: 3 x 3 convolutions of stride 2, then one affine map.

    Sides need not be powers of two: a side of s pixels becomes ceil(s / 2) at each layer. A context enters as
    ``context_dim`` constant channels.

    Args:
        event_shape: (channels, height, width) of the images.
        out_dim: the output's width, or the shape of an event.
        hidden: the channels of the layers, at least one.

    The other options are those of :class:`Dense`; dropout drops whole channels, and "layer" normalizes over
    channels and pixels.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_dim: int | Sequence[int],
        *,
        hidden: Sequence[int] = (32, 64),
        activation: str = "silu",
        norm: str | None = None,
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        super().__init__(image_shape(event_shape), shape_of(out_dim), context_dim)
        channels, *sides = self.in_shape
        widths = [channels + context_dim, *_layers(hidden)]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers.append(nn.Conv2d(width, following, 3, stride=2, padding=1))
            layers += between(following, activation, norm, dropout, image=True)
        features = widths[-1] * math.prod(_halved(sides, len(hidden))[-1])
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, math.prod(self.out_shape)))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        return self.layers(_with_channels(value, context))


class ConvMap(Network):
    """Images to images of the same sides: a 3 x 3 convolution, 1 x 1 convolutions, and a 3 x 3 one that starts at zero.

    Args:
        event_shape: (channels, height, width) of the images.
        out_channels: of the output.
        hidden: the channels in between, at least one number.

    A context and the other options are as in :class:`ConvEncoder`.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_channels: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        norm: str | None = None,
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        channels, *sides = image_shape(event_shape)
        super().__init__((channels, *sides), (out_channels, *sides), context_dim)
        width, *rest = _layers(hidden)
        layers: list[nn.Module] = [nn.Conv2d(channels + context_dim, width, 3, padding=1)]
        for following in rest:
            layers += [*between(width, activation, norm, dropout, image=True), nn.Conv2d(width, following, 1)]
            width = following
        layers += between(width, activation, norm, dropout, image=True)
        self.layers = nn.Sequential(*layers, ZeroConv2d(width, out_channels, 3, padding=1))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        return self.layers(_with_channels(value, context))


class ZeroConv2d(nn.Conv2d):
    """A convolution whose weights start at zero, however often it starts."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ZeroLinear(nn.Linear):
    """An affine map whose weights start at zero, however often it starts."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ConvDecoder(Network):
    """Vectors to images, the mirror of :class:`ConvEncoder`: one affine map, then transposed convolutions.

    Each layer (4 x 4, stride 2, a kernel that the stride divides, against checkerboards) doubles the sides
    and crops the last row or column where the mirrored side is odd: 28 pixels pass through 7, 14, 28 and 13
    pixels through 4, 7, 13. A context is joined to the vector.

    Args:
        in_dim: the input's width, or the shape of an event, which is flattened.
        event_shape: (channels, height, width) of the output.
        hidden: the channels of the layers' inputs, at least one.

    The other options are those of :class:`ConvEncoder`.
    """

    def __init__(
        self,
        in_dim: int | Sequence[int],
        event_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (64, 32),
        activation: str = "silu",
        norm: str | None = None,
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        super().__init__(shape_of(in_dim), image_shape(event_shape), context_dim)
        channels, *sides = self.out_shape
        widths = [*_layers(hidden), channels]
        *self.sides, smallest = _halved(sides, len(hidden))
        self.start = nn.Linear(math.prod(self.in_shape) + context_dim, widths[0] * math.prod(smallest))
        self.smallest = (widths[0], *smallest)
        self.between, self.doublings = nn.ModuleList(), nn.ModuleList()
        for width, following in pairwise(widths):
            self.between.append(nn.Sequential(*between(width, activation, norm, dropout, image=True)))
            self.doublings.append(nn.ConvTranspose2d(width, following, 4, stride=2, padding=1))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        value = value.flatten(1)
        value = self.start(value if context is None else torch.cat([value, context], -1))
        value = value.unflatten(1, self.smallest)
        for between, double, (height, width) in zip(self.between, self.doublings, reversed(self.sides), strict=True):
            value = double(between(value))[..., :height, :width]
        return value


def lookup(table: Mapping[str, Row], name: str, *, option: str) -> Row:
    """The row of a table of variants.

    Raises:
        ValueError: the table has no such row; the message names the option and lists the rows.
    """
    if name not in table:
        raise ValueError(f"expected {option} to be one of {', '.join(map(repr, table))}, got {name!r}")
    return table[name]


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterward each submodule is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def between(width: int, activation: str, norm: str | None, dropout: float, *, image: bool) -> list[nn.Module]:
    """What stands between two affine layers: normalization, activation, dropout."""
    layers = [] if norm is None else [lookup(NORMS, norm, option="norm")[image](width)]
    layers.append(lookup(ACTIVATIONS, activation, option="activation")())
    if not 0 <= dropout < 1:
        raise ValueError(f"expected dropout to be a probability in [0, 1), got {dropout}")
    if dropout > 0:
        layers.append(nn.Dropout2d(dropout) if image else nn.Dropout(dropout))
    return layers


def shape_of(dim: int | Sequence[int]) -> tuple[int, ...]:
    return (dim,) if isinstance(dim, int) else tuple(dim)


def image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(
            f"expected an image's event shape (channels, height, width), got {tuple(shape)}; "
            "events of another rank need a dense network"
        )
    return tuple(shape)


def _with_channels(value: Tensor, context: Tensor | None) -> Tensor:
    """Images with a context as constant channels."""
    if context is None:
        return value
    return torch.cat([value, context[..., None, None].expand(*context.shape, *value.shape[-2:])], 1)


def _layers(hidden: Sequence[int]) -> Sequence[int]:
    if not hidden:
        raise ValueError("expected at least one hidden width in a convolutional network, got none")
    return hidden


def _halved(sides: Sequence[int], times: int) -> list[list[int]]:
    """The sides at each level: s, ceil(s / 2), and so on, ``times`` + 1 rows."""
    return [[math.ceil(side / 2**level) for side in sides] for level in range(times + 1)]
