"""Networks that give a row of one or more sites a number."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.nets.growing import GrowingEncoder
from ppgen.nets.networks import ConvEncoder, Dense, Network

__all__ = ["Critic", "GrowingCritic"]


class Critic(nn.Module):
    """One number for each row of one or more sites: what a metric with a critic is given.

    Called as ``critic(x)``, or ``critic(x, z)`` for joined sites, (n, *event_shape) each, it returns (n,). If the first
    site is an image, it goes through convolutions, and the other sites enter as constant channels; otherwise all
    sites, flattened, go through a dense network.

    Args:
        event_shapes: of the sites, in order.
        hidden: the hidden widths, or the channels; None for (256, 256), or (32, 64) convolutional.
        frequencies: of a dense critic: how many sines and cosines of random directions u of its input, sin(u' F) and
            cos(u' F), it sees beside u (Tancik et al. 2020). A dense network learns wide shapes first; these let it
            tell narrow modes apart. 0 for none.
        spread: the standard deviation of F, fixed, in radians a unit of u.

    The other options are those of :class:`Dense`. Batch normalization makes a row's number depend on other rows, which
    a gradient penalty does not allow for; data and draws are normalized apart. With frequencies, a bound on the layers'
    slopes (spectral norms, clipping) is none on the critic's.
    """

    frequencies: Tensor | None

    def __init__(
        self,
        *event_shapes: Sequence[int],
        hidden: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        norm: str | None = None,
        dropout: float = 0.0,
        frequencies: int = 0,
        spread: float = 5.0,
    ) -> None:
        super().__init__()
        if not event_shapes:
            raise ValueError("expected the event shape of at least one site, got none")
        if not (isinstance(frequencies, int) and frequencies >= 0):
            raise ValueError(f"frequencies: expected a whole number from 0 on, got {frequencies!r}")
        first, *rest = event_shapes
        self.image = len(first) == 3
        options: dict[str, Any] = {"activation": activation, "norm": norm, "dropout": dropout}
        if hidden is not None:
            options["hidden"] = hidden
        others = sum(math.prod(shape) for shape in rest)
        self.network: Network
        if self.image:
            if frequencies:
                raise ValueError(f"frequencies={frequencies} are of dense critics, the first site is an image {first}")
            self.register_buffer("frequencies", None)
            self.network = ConvEncoder(first, 1, context_dim=others, **options)
        else:
            width = math.prod(first) + others
            self.register_buffer("frequencies", spread * torch.randn(width, frequencies) if frequencies else None)
            self.network = Dense(width + 2 * frequencies, 1, **options)

    def forward(self, *sites: Tensor) -> Tensor:
        if self.image:
            return _of_images(self.network, sites)
        joined = torch.cat([site.unsqueeze(-1).flatten(1) for site in sites], 1)
        if self.frequencies is not None:
            angles = joined @ self.frequencies
            joined = torch.cat([joined, angles.sin(), angles.cos()], 1)
        return self.network(joined).squeeze(-1)


class GrowingCritic(nn.Module):
    """One number for each row of images, and of further sites: a :class:`GrowingEncoder` as a metric's critic.

    Args:
        event_shapes: of the sites in order, the images first; the others enter as constant channels.

    The other options are those of :class:`GrowingEncoder`.
    """

    def __init__(
        self,
        *event_shapes: Sequence[int],
        hidden: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        norm: str | None = None,
        dropout: float = 0.0,
        multi_scale: bool = False,
        deviation: bool = True,
    ) -> None:
        super().__init__()
        if not event_shapes:
            raise ValueError("expected the event shape of at least one site, got none")
        images, *others = event_shapes
        self.network = GrowingEncoder(
            images,
            1,
            hidden=hidden,
            activation=activation,
            norm=norm,
            dropout=dropout,
            context_dim=sum(math.prod(shape) for shape in others),
            multi_scale=multi_scale,
            deviation=deviation,
        )

    def forward(self, *sites: Tensor) -> Tensor:
        return _of_images(self.network, sites)


def _of_images(network: Network, sites: tuple[Tensor, ...]) -> Tensor:
    """(n,): a number for each image, the other sites, flattened, being its context."""
    others = [site.unsqueeze(-1).flatten(1) for site in sites[1:]]
    return network(sites[0], torch.cat(others, 1) if others else None).squeeze(-1)
