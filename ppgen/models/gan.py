"""Implicit models: x = G(z) exactly, a law that can be drawn from and has no density.

p(z) = N(0, I) and p(x | z) a Delta at the decoder's output. Only losses that compare samples serve them: critics,
MMD, Sinkhorn. Where there are labels, y is a site of the model too, which repeats the labels that the data have, so
that a critic of x and y together is told which label a draw was made for: ``data("x") & data("y")`` against
``generated("x") & generated("y")``.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppgen.models.autoencoder import ENCODER_FLOOR, Encoded
from ppgen.models.generative import Generative, arguments
from ppgen.models.likelihood import Gaussian, Head, Point

__all__ = ["ALI", "Generator"]


class _Implicit(Generative):
    """A model whose observation is the decoder's output, and whose labels, one-hot, are a site (n, num_classes)."""

    def _labeled(self, context: Tensor | None) -> None:
        if context is not None:
            pyro.sample("y", dist.Delta(context, event_dim=1), obs=context)


class Generator(_Implicit):
    """The generator of an adversarial game or of a transport problem: x = G(z), z ~ N(0, I).

    Its guide draws z from the prior: nothing is inferred from x.

    Args:
        event_shape: (features,) of a table or (channels, height, width) of images.
        latent_dim: the width of z.
        hidden: the network's hidden widths (channels, when convolutional) from the data's side to the code's, as an
            encoder has them; None for the network's own: (256, 256) dense, (32, 64) convolutional.
        network: "dense", or "convolutional" for images.
        num_classes: the number of labels when the model is conditioned on them, None when it is not.
        norm, dropout, activation: as in :class:`ppgen.nets.Dense`.

    Raises:
        ValueError: an option is out of range or unknown.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: str = "dense",
        num_classes: int | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        config = arguments(locals())
        super().__init__(Point(config["event_shape"]), config)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """z_i ~ N(0, I), over the plate "data" of x's rows; arguments as in ``model``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.prior(x.shape[0]))


class ALI(_Implicit, Encoded):
    """Adversarially learned inference (Dumoulin et al. 2017): x = G(z) and an encoder q(z | x), learned in one game.

    A critic sees pairs (x, z): of data with the encoder's codes, and of the prior with the decoder's outputs. Where it
    cannot tell them apart, G is the law of the data and q(z | x) the posterior (BiGAN: Donahue et al. 2017).

    The arguments are those of :class:`Generator`; with ``encoder_covariance="point"`` the code is deterministic, as in
    BiGAN, otherwise it is Gaussian with that covariance, a row of ``COVARIANCES``; "low_rank" takes ``rank``.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: str = "dense",
        encoder_covariance: str = "diagonal",
        rank: int = 4,
        num_classes: int | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        config: dict[str, Any] = arguments(locals())
        code: Head = Point((latent_dim,))
        if encoder_covariance != "point":
            code = Gaussian((latent_dim,), covariance=encoder_covariance, rank=rank, floor=ENCODER_FLOOR)
        super().__init__(code, Point(config["event_shape"]), config)
