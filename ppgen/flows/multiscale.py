"""Multi-scale flows of images (channels, height, width) (https://arxiv.org/abs/1605.08803, section 3.6).

At every scale but that of the image, blocks of 2 x 2 pixels become channels. These are mixed by 1 x 1 convolutions, and
couplings mask half of them. One half of the channels is then final, and the other half continues to the next scale. At
full resolution there are couplings with checkerboard masks, which work for sides of any length, only where the image is
small or cannot be halved: they are the most expensive ones.
"""

from collections.abc import Sequence

from pyro.distributions import TorchDistribution

from ppgen.flows.bijection import Composed, InvertibleLayer
from ppgen.flows.composition import check_layers
from ppgen.flows.flow import Flow
from ppgen.flows.image_layers import (
    ActNorm,
    Invertible1x1Conv,
    MaskedCoupling,
    Split,
    Squeezed,
    channel_mask,
    checkerboard_mask,
)
from ppgen.nets import ConvMap

__all__ = ["couples_at_full_resolution", "glow"]

DEFAULT_SCALES = 3  # that have couplings
SMALL_SIDE = 16  # below which couplings at full resolution cost little


def glow(
    event_shape: Sequence[int],
    *,
    layers: int = 4,
    hidden: Sequence[int] = (64, 64),
    scales: int | None = None,
    full_resolution: bool | None = None,
    context_dim: int = 0,
    base: TorchDistribution | None = None,
) -> Flow:
    """Glow: activation normalization, 1 x 1 convolutions and affine couplings with convolutional networks.

    From Kingma & Dhariwal 2018 (https://arxiv.org/abs/1807.03039). Before training, every coupling is the identity, and
    `Flow.initialize` sets the normalization layers from a batch.

    Args:
        event_shape: (channels, height, width).
        layers: The number of normalizations, convolutions and couplings at each scale.
        hidden: The channels of the couplings' networks (see `ppgen.nets.ConvMap`).
        scales: The number of scales, that of the image included. Each halves the sides of the one before, so the sides
            must be even at all scales but the last. None for as many as this allows, at most 3 with couplings, with at
            least 2 pixels per side at the last. An image with an odd side has one scale.
        full_resolution: Whether there are couplings at the scale of the image; None for true where its shorter side is
            below 16 pixels, or it has one scale.
        context_dim: The width of the context, an input of the couplings' networks; 0 for none.
        base: The distribution of z, of the images' shape; None for N(0, I).

    Raises:
        ValueError: If the event shape is not that of images or an option is out of range.
    """
    shape = tuple(event_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"glow is a flow of images (channels, height, width), got events of shape {shape}")
    check_layers(layers)
    max_scales = _max_scales(shape)
    if full_resolution is None:
        full_resolution = couples_at_full_resolution(shape, scales)
    scales = min(max_scales, DEFAULT_SCALES + (not full_resolution)) if scales is None else scales
    if not 1 <= scales <= max_scales:
        raise ValueError(
            f"scales: expected 1 to {max_scales} for images of {shape[1]} x {shape[2]} pixels, whose sides can be "
            f"halved {max_scales - 1} times with at least 2 pixels left, got {scales}"
        )
    if scales == 1 and not full_resolution:
        raise ValueError(f"full_resolution=False: there is no other scale than that of {shape[1]} x {shape[2]} pixels")

    def build_scale(shape: tuple[int, ...], number: int) -> InvertibleLayer:
        """The layers of this scale and of all that follow."""
        parts: list[InvertibleLayer] = []
        for layer in range(layers if number or full_resolution else 0):
            parts.append(ActNorm(shape[0]))
            if shape[0] > 1:
                parts.append(Invertible1x1Conv(shape[0]))
            odd = layer % 2 == 1
            mask = channel_mask(shape[0], odd=odd) if number else checkerboard_mask(*shape[1:], odd=odd)
            network = ConvMap(shape, 2 * shape[0], hidden=hidden, context_dim=context_dim)
            parts.append(MaskedCoupling(mask, network))
        if number < scales - 1:
            kept = shape[0] // 2 if number else shape[0]
            following = Squeezed(build_scale((4 * kept, shape[1] // 2, shape[2] // 2), number + 1))
            parts.append(Split(following, kept) if number else following)
        return Composed(*parts)

    return Flow(build_scale(shape, 0), shape, context_dim=context_dim, base=base)


def couples_at_full_resolution(event_shape: Sequence[int], scales: int | None = None) -> bool:
    """Whether a flow of images has couplings at the scale of the image by default.

    Args:
        event_shape: (channels, height, width).
        scales: The number of scales, if it was chosen.
    """
    return min(event_shape[1:]) < SMALL_SIDE or 1 in (scales, _max_scales(tuple(event_shape)))


def _max_scales(shape: tuple[int, ...]) -> int:
    _, height, width = shape
    scales = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 4:
        height, width, scales = height // 2, width // 2, scales + 1
    return scales
