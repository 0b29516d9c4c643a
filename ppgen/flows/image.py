"""Flows over images (channels, height, width) by name: each a function of an event's shape, and a row of `IMAGE_FLOWS`.

They work at several scales (Dinh et al. 2017, section 3.6). At full resolution, couplings tell pixels apart like the
fields of a chessboard, which works on sides of any length. At every further scale, blocks of 2 x 2 pixels become
channels, which are mixed by 1 x 1 convolutions and coupled by halves; half of them are then done, and the rest goes on
to the next scale.
"""

from collections.abc import Callable, Sequence

from pyro.distributions import TorchDistribution

from ppgen.flows.flow import Flow
from ppgen.flows.layers import (
    ActNorm,
    Composed,
    Coupling,
    Invertible1x1Conv,
    Layer,
    Part,
    Squeezed,
    channels,
    checkerboard,
)
from ppgen.nets import ConvMap

__all__ = ["IMAGE_FLOWS", "glow"]

SCALES = 3  # at most, unless asked for


def glow(
    event_shape: Sequence[int],
    *,
    layers: int = 4,
    hidden: Sequence[int] = (64, 64),
    scales: int | None = None,
    context_dim: int = 0,
    base: TorchDistribution | None = None,
) -> Flow:
    """Activation norms, 1 x 1 convolutions and affine couplings by convolutional networks (Kingma and Dhariwal 2018).

    Untrained, every coupling is the identity; `Flow.initialize` then sets the norms by a batch.

    Args:
        event_shape: (channels, height, width).
        layers: norms, convolutions and couplings at each scale, so many of each.
        hidden: the channels of the couplings' networks, see `ppgen.nets.ConvMap`.
        scales: how many; sides are halved from one to the next, so all but the last must be even. None for as many as
            that allows, at most 3, the smallest of 2 pixels or more a side. An image of odd sides has one.
        context_dim: the width of a context, which the couplings' networks are given.
        base: the law of z, of the images' shape.

    Raises:
        ValueError: for an event shape of another rank, and options out of range.
    """
    shape = tuple(event_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"glow is a flow of images (channels, height, width), got events of shape {shape}")
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
    most = _most(shape)
    scales = min(most, SCALES) if scales is None else scales
    if not 1 <= scales <= most:
        raise ValueError(
            f"scales: expected 1 to {most} for images of {shape[1]} x {shape[2]} pixels, whose sides can be halved "
            f"{most - 1} times with 2 pixels left, got {scales}"
        )

    def scale(shape: tuple[int, ...], number: int) -> Layer:
        """All that happens at this scale, and at those below."""
        parts: list[Layer] = []
        for layer in range(layers):
            parts.append(ActNorm(shape[0]))
            if shape[0] > 1:
                parts.append(Invertible1x1Conv(shape[0]))
            odd = layer % 2 == 1
            mask = channels(shape[0], odd=odd) if number else checkerboard(*shape[1:], odd=odd)
            network = ConvMap(shape, 2 * shape[0], hidden=hidden, context_dim=context_dim)
            parts.append(Coupling(mask, network))
        if number < scales - 1:
            kept = shape[0] // 2 if number else shape[0]
            below = Squeezed(scale((4 * kept, shape[1] // 2, shape[2] // 2), number + 1))
            parts.append(Part(below, kept) if number else below)
        return Composed(*parts)

    return Flow(scale(shape, 0), shape, context_dim=context_dim, base=base)


IMAGE_FLOWS: dict[str, Callable[..., Flow]] = {"glow": glow}


def _most(shape: tuple[int, ...]) -> int:
    """How many scales images of this shape can have."""
    _, height, width = shape
    most = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 4:
        height, width, most = height // 2, width // 2, most + 1
    return most
