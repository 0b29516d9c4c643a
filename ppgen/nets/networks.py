"""Networks: maps from tensors of shape (*batch, *in_shape) to tensors of shape (*batch, *out_shape).

Every network accepts any number of leading batch dimensions: it flattens them into one, runs its layers and restores
them, so that convolutions and batch normalization also work under a plate of particles. A network with
``context_dim > 0`` also accepts a context of shape (*batch, context_dim), for example a one-hot label, whose batch
dimensions broadcast against those of the input. No forward pass depends on the value of a tensor in Python, so all can
be traced.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppgen.nets.domain_norm import DomainNorm

Row = TypeVar("Row")

LAST_GAIN = 0.1  # on the initial weights of the last layer of a decoder of images, whose outputs then are near zero

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

# The layer for vectors and the layer for images, each a function of the width. A group has at least four channels:
# a single number, normalized, is zero.
NORMS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "batch": (nn.BatchNorm1d, nn.BatchNorm2d),
    "domain": (DomainNorm, DomainNorm),
    "group": (nn.LayerNorm, lambda width: nn.GroupNorm(math.gcd(width, max(1, min(8, width // 4))), width)),
    "layer": (nn.LayerNorm, lambda width: nn.GroupNorm(1, width)),
    "pixel": (lambda width: PixelNorm(), lambda width: PixelNorm()),
}


class PixelNorm(nn.Module):
    """h / sqrt(mean over channels of h^2) at every pixel, without parameters.

    Karras et al. 2018, https://arxiv.org/abs/1710.10196, section 4.2.
    """

    def forward(self, value: Tensor) -> Tensor:
        """Normalizes the channels.

        Args:
            value: (batch, channels, ...).
        """
        return value * (value.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Network(nn.Module):
    """The base class of networks, which handles shapes, batch dimensions and the context.

    Args:
        in_shape: The event shape of the input.
        out_shape: The event shape of the output.
        context_dim: The width of the context; 0 for none.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], context_dim: int) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.context_dim = tuple(in_shape), tuple(out_shape), context_dim

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """The forward pass for exactly one batch dimension, which a subclass implements.

        Args:
            value: (batch, *in_shape).
            context: (batch, context_dim), or None.
        """
        raise NotImplementedError

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """The forward pass.

        Args:
            value: (*batch, *in_shape).
            context: (*batch, context_dim), or None if `context_dim` is 0.

        Returns:
            (*batch, *out_shape).

        Raises:
            ValueError: If the input has another shape, or the context is missing, not expected, or of another width.
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
    """A multilayer perceptron, x -> W_L a(... a(W_1 x + b_1) ...) + b_L.

    Args:
        in_dim: The width of the input, or the shape of an event, which is flattened.
        out_dim: The width of the output, or the shape of an event.
        hidden: The widths of the hidden layers; () leaves one affine map.
        activation: A key of ``ACTIVATIONS``.
        norm: A key of ``NORMS``, applied between a hidden layer and its activation, or None.
        dropout: The probability of dropping a hidden unit in training mode.
        context_dim: The width of a context that is concatenated to the input.

    Raises:
        ValueError: If a hidden width is below 1.
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
        super().__init__(as_shape(in_dim), as_shape(out_dim), context_dim)
        widths = [math.prod(self.in_shape) + context_dim, *_check_widths(hidden)]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers.append(nn.Linear(width, following))
            layers += activation_layers(following, activation, norm, dropout, image=False)
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(self.out_shape)))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Applies the layers to the flattened input and the context."""
        value = value.flatten(1)
        return self.layers(value if context is None else torch.cat([value, context], -1))


class ConvEncoder(Network):
    """A map from images to vectors: 3 x 3 convolutions of stride 2, then one affine map.

    Sides need not be powers of two: a side of s pixels becomes ceil(s / 2) at each layer. A context enters as
    ``context_dim`` constant channels.

    Args:
        event_shape: (channels, height, width) of the images.
        out_dim: The width of the output, or the shape of an event.
        hidden: The channels of the layers, at least one.
        activation: As in :class:`Dense`.
        norm: As in :class:`Dense`; "layer" normalizes over channels and pixels.
        dropout: The probability of dropping a whole channel in training mode.
        context_dim: The width of the context.

    Raises:
        ValueError: If `event_shape` is not that of an image, or `hidden` is empty.
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
        super().__init__(check_image_shape(event_shape), as_shape(out_dim), context_dim)
        channels, *sides = self.in_shape
        widths = [channels + context_dim, *_check_hidden(hidden)]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers.append(nn.Conv2d(width, following, 3, stride=2, padding=1))
            layers += activation_layers(following, activation, norm, dropout, image=True)
        features = widths[-1] * math.prod(_halved(sides, len(hidden))[-1])
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, math.prod(self.out_shape)))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Applies the layers to the image with the context as channels."""
        return self.layers(_with_context_channels(value, context))


class ConvMap(Network):
    """A map from images to images with the same sides: a 3 x 3, several 1 x 1 and a 3 x 3 convolution.

    The weights of the last convolution are initialized to zero.

    Args:
        event_shape: (channels, height, width) of the images.
        out_channels: The channels of the output.
        hidden: The channels between the convolutions, at least one number.
        activation: As in :class:`Dense`.
        norm: As in :class:`ConvEncoder`.
        dropout: As in :class:`ConvEncoder`.
        context_dim: As in :class:`ConvEncoder`.

    Raises:
        ValueError: If `event_shape` is not that of an image, or `hidden` is empty.
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
        channels, *sides = check_image_shape(event_shape)
        super().__init__((channels, *sides), (out_channels, *sides), context_dim)
        width, *rest = _check_hidden(hidden)
        layers: list[nn.Module] = [nn.Conv2d(channels + context_dim, width, 3, padding=1)]
        for following in rest:
            layers += [*activation_layers(width, activation, norm, dropout, image=True), nn.Conv2d(width, following, 1)]
            width = following
        layers += activation_layers(width, activation, norm, dropout, image=True)
        self.layers = nn.Sequential(*layers, ZeroConv2d(width, out_channels, 3, padding=1))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Applies the layers to the image with the context as channels."""
        return self.layers(_with_context_channels(value, context))


class ZeroConv2d(nn.Conv2d):
    """A convolution whose parameters are initialized to zero, also when they are reset."""

    def reset_parameters(self) -> None:
        """Sets all parameters to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ZeroLinear(nn.Linear):
    """An affine map whose parameters are initialized to zero, also when they are reset."""

    def reset_parameters(self) -> None:
        """Sets all parameters to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution, 4 x 4 with stride 2, whose weights are initialized for outputs of the input's size.

    A pixel of the output is a sum over the channels of 2 x 2 pixels of the input. torch computes the bound of the
    weights from the channels of the output instead: for images of one channel they start several times too large, and a
    decoder with outputs far outside of the data needs hundreds of steps to come back.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        gain: The factor on the initial weights.
    """

    def __init__(self, in_channels: int, out_channels: int, *, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def reset_parameters(self) -> None:
        """Draws the weights from U(-b, b) with b = gain / (4 x the channels of the input)^1/2; the bias is zero."""
        bound = self.gain / math.sqrt(4 * self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class ConvDecoder(Network):
    """A map from vectors to images, the mirror of :class:`ConvEncoder`: an affine map, then transposed convolutions.

    Each layer (4 x 4 with stride 2; the stride divides the kernel size, which avoids checkerboard artifacts) doubles
    the sides and crops the last row or column if the mirrored side is odd: 28 pixels pass through 7, 14, 28 and 13
    pixels through 4, 7, 13. A context is concatenated to the vector.

    Args:
        in_dim: The width of the input, or the shape of an event, which is flattened.
        event_shape: (channels, height, width) of the output.
        hidden: The channels of the inputs of the layers, at least one.
        activation: As in :class:`Dense`.
        norm: As in :class:`ConvEncoder`.
        dropout: As in :class:`ConvEncoder`.
        context_dim: The width of the context.

    Raises:
        ValueError: If `event_shape` is not that of an image, or `hidden` is empty.
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
        super().__init__(as_shape(in_dim), check_image_shape(event_shape), context_dim)
        channels, *sides = self.out_shape
        widths = [*_check_hidden(hidden), channels]
        *self.sides, smallest = _halved(sides, len(hidden))
        self.start = nn.Linear(math.prod(self.in_shape) + context_dim, widths[0] * math.prod(smallest))
        self.smallest = (widths[0], *smallest)
        self.between, self.doublings = nn.ModuleList(), nn.ModuleList()
        for width, following in pairwise(widths):
            self.between.append(nn.Sequential(*activation_layers(width, activation, norm, dropout, image=True)))
            last = len(self.doublings) == len(hidden) - 1
            self.doublings.append(Doubling(width, following, gain=LAST_GAIN if last else 1.0))

    def run(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Applies the affine map, then doubles the sides in each layer."""
        value = value.flatten(1)
        value = self.start(value if context is None else torch.cat([value, context], -1))
        value = value.unflatten(1, self.smallest)
        for activate, double, (height, width) in zip(self.between, self.doublings, reversed(self.sides), strict=True):
            value = double(activate(value))[..., :height, :width]
        return value


def lookup(table: Mapping[str, Row], name: str, *, option: str) -> Row:
    """The row of a table of variants.

    Args:
        table: The variants by name.
        name: The name.
        option: The name of the option, for the error message.

    Raises:
        ValueError: If the table has no such row; the message lists the rows.
    """
    if name not in table:
        raise ValueError(f"expected {option} to be one of {', '.join(map(repr, table))}, got {name!r}")
    return table[name]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module in eval mode and disables gradients; on exit each submodule returns to its previous mode.

    Args:
        module: The module.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def activation_layers(width: int, activation: str, norm: str | None, dropout: float, *, image: bool) -> list[nn.Module]:
    """The layers between two affine layers: normalization, activation, dropout.

    Args:
        width: The number of features, or of channels.
        activation: A key of ``ACTIVATIONS``.
        norm: A key of ``NORMS``, or None.
        dropout: The probability of dropping a unit, or a channel.
        image: Whether the layers are for images.

    Raises:
        ValueError: If a name is unknown, or the dropout is not a probability.
    """
    layers = [] if norm is None else [lookup(NORMS, norm, option="norm")[image](width)]
    layers.append(lookup(ACTIVATIONS, activation, option="activation")())
    if not 0 <= dropout < 1:
        raise ValueError(f"expected dropout to be a probability in [0, 1), got {dropout}")
    if dropout > 0:
        layers.append(nn.Dropout2d(dropout) if image else nn.Dropout(dropout))
    return layers


def as_shape(dim: int | Sequence[int]) -> tuple[int, ...]:
    """An event shape from a width or a shape.

    Args:
        dim: The width or the shape.
    """
    return (dim,) if isinstance(dim, int) else tuple(dim)


def check_image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The event shape of an image.

    Args:
        shape: (channels, height, width).

    Raises:
        ValueError: If the shape does not have three dimensions.
    """
    if len(shape) != 3:
        raise ValueError(
            f"expected an image's event shape (channels, height, width), got {tuple(shape)}; "
            "use a dense network for events of another rank"
        )
    return tuple(shape)


def _with_context_channels(value: Tensor, context: Tensor | None) -> Tensor:
    """Images with a context as constant channels."""
    if context is None:
        return value
    return torch.cat([value, context[..., None, None].expand(*context.shape, *value.shape[-2:])], 1)


def _check_hidden(hidden: Sequence[int]) -> Sequence[int]:
    if not hidden:
        raise ValueError("expected at least one hidden width in a convolutional network, got none")
    return _check_widths(hidden)


def _check_widths(hidden: Sequence[int]) -> Sequence[int]:
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden: expected widths of at least 1, got {list(hidden)}")
    return hidden


def _halved(sides: Sequence[int], times: int) -> list[list[int]]:
    """The sides at each level: s, ceil(s / 2), and so on, ``times`` + 1 rows."""
    return [[math.ceil(side / 2**level) for side in sides] for level in range(times + 1)]
