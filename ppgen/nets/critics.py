"""Networks that map a row of one or more sites to one number."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.nets.defaults import defaults_for
from ppgen.nets.growing import GrowingEncoder
from ppgen.nets.networks import ConvEncoder, Dense, Network

__all__ = ["Critic", "GrowingCritic"]


class Critic(nn.Module):
    """One number for each row of one or more sites, as the critic of a metric.

    It is called as ``critic(x)``, or ``critic(x, z)`` for several sites, (n, *event_shape) each, and returns (n,). If
    the first site is an image, it passes through convolutions, and the other sites enter as constant channels.
    Otherwise all sites are flattened and pass through a dense network.

    Batch normalization makes the score of a row depend on other rows, which a gradient penalty does not account for;
    data and generated rows are normalized separately. With frequencies, a bound on the Lipschitz constants of the
    layers (spectral normalization, weight clipping) does not bound that of the critic.

    Args:
        event_shapes: The event shapes of the sites, in order.
        hidden: The hidden widths, or the channels; None for those of `ppgen.nets.defaults_for`.
        activation: As in :class:`Dense`.
        norm: As in :class:`Dense`.
        dropout: As in :class:`Dense`.
        frequencies: The number of random Fourier features of a dense critic, sin(u' F) and cos(u' F) of its input u, in
            addition to u (Tancik et al. 2020, https://arxiv.org/abs/2006.10739). A dense network learns low frequencies
            first; these features let it separate narrow modes.
        spread: The standard deviation of the fixed matrix F, in radians per unit of u.

    Raises:
        ValueError: If there are no sites, or `frequencies` is negative or given for images.
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
            raise ValueError(f"frequencies: expected an integer of at least 0, got {frequencies!r}")
        first, *rest = event_shapes
        self.image = len(first) == 3
        options: dict[str, Any] = {"activation": activation, "norm": norm, "dropout": dropout}
        options["hidden"] = defaults_for("critic", first).hidden if hidden is None else hidden
        others = sum(math.prod(shape) for shape in rest)
        self.network: Network
        if self.image:
            if frequencies:
                raise ValueError(
                    f"frequencies={frequencies} is an option of dense critics, but the first site is an image {first}"
                )
            self.register_buffer("frequencies", None)
            self.network = ConvEncoder(first, 1, context_dim=others, **options)
        else:
            width = math.prod(first) + others
            self.register_buffer("frequencies", spread * torch.randn(width, frequencies) if frequencies else None)
            self.network = Dense(width + 2 * frequencies, 1, **options)

    def forward(self, *sites: Tensor) -> Tensor:
        """The scores (n,).

        Args:
            sites: (n, *event_shape) each.
        """
        if self.image:
            return _image_scores(self.network, sites)
        joined = torch.cat([site.unsqueeze(-1).flatten(1) for site in sites], 1)
        if self.frequencies is not None:
            angles = joined @ self.frequencies
            joined = torch.cat([joined, angles.sin(), angles.cos()], 1)
        return self.network(joined).squeeze(-1)


class GrowingCritic(nn.Module):
    """One number for each row of images and of further sites: a :class:`GrowingEncoder` as the critic of a metric.

    Args:
        event_shapes: The event shapes of the sites in order, the images first; the others enter as constant channels.
        hidden: As in :class:`GrowingEncoder`.
        activation: As in :class:`GrowingEncoder`.
        norm: As in :class:`GrowingEncoder`.
        dropout: As in :class:`GrowingEncoder`.
        multi_scale: As in :class:`GrowingEncoder`.
        minibatch_std: As in :class:`GrowingEncoder`.

    Raises:
        ValueError: If there are no sites, and as :class:`GrowingEncoder`.
    """

    def __init__(
        self,
        *event_shapes: Sequence[int],
        hidden: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        norm: str | None = None,
        dropout: float = 0.0,
        multi_scale: bool = False,
        minibatch_std: bool = True,
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
            minibatch_std=minibatch_std,
        )

    def forward(self, *sites: Tensor) -> Tensor:
        """The scores (n,).

        Args:
            sites: (n, *event_shape) each.
        """
        return _image_scores(self.network, sites)


def _image_scores(network: Network, sites: tuple[Tensor, ...]) -> Tensor:
    """One number for each image (n,); the other sites, flattened, are the context."""
    others = [site.unsqueeze(-1).flatten(1) for site in sites[1:]]
    return network(sites[0], torch.cat(others, 1) if others else None).squeeze(-1)
