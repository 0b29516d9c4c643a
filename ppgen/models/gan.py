"""Implicit models: x = G(z), a distribution that can be sampled and has no density.

p(z) = N(0, I), and p(x | z) is a point mass at the output of the decoder. Such a model is trained by losses that
compare samples: critics, MMD, Sinkhorn divergences. With labels, y is a site of the model as well, which repeats the
labels of the data, so that a critic of x and y together knows the label of each draw: ``data("x") & data("y")`` against
``generated("x") & generated("y")``.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppgen.models.autoencoder import ENCODER_FLOOR, EncoderDecoder
from ppgen.models.latent_variable import LatentVariableModel
from ppgen.models.likelihood import Gaussian, Head, Point
from ppgen.models.options import NetworkOptions, constructed_from

__all__ = ["ALI", "ALIOptions", "Generator", "ImplicitModel"]


class ImplicitModel(LatentVariableModel):
    """A model that observes the output of the decoder, and one-hot labels at the site y (n, num_classes)."""

    def _observe_labels(self, context: Tensor | None) -> None:
        if context is not None:
            pyro.sample("y", dist.Delta(context, event_dim=1), obs=context)


class Generator(ImplicitModel):
    """The generator of a GAN (Goodfellow et al., https://arxiv.org/abs/1406.2661) or of a transport problem: x = G(z).

    Its guide draws z from the prior, because nothing is inferred from x. The arguments are the fields of
    :class:`ppgen.models.options.NetworkOptions`.

    Raises:
        ValueError: if an option is unknown or out of range.
    """

    @constructed_from(NetworkOptions)
    def __init__(self, options: NetworkOptions) -> None:
        super().__init__(Point(options.event_shape), options)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The program z_i ~ N(0, I), over the plate "data" of the rows of x; arguments as in `model`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.prior(x.shape[0]))


@dataclass(frozen=True, kw_only=True)
class ALIOptions(NetworkOptions):
    """Options of :class:`ALI`.

    Attributes:
        encoder_covariance: the covariance of the Gaussian q(z | x), a row of `ppgen.models.COVARIANCES`; "point" for a
            deterministic code, as in BiGAN.
        rank: the rank of a "low_rank" covariance.
    """

    encoder_covariance: str = "diagonal"
    rank: int = 4

    def make_code(self) -> Head:
        """The head of the encoder."""
        shape = (self.latent_dim,)
        if self.encoder_covariance == "point":
            return Point(shape)
        return Gaussian(shape, covariance=self.encoder_covariance, rank=self.rank, floor=ENCODER_FLOOR)


class ALI(ImplicitModel, EncoderDecoder):
    """Adversarially learned inference: a generator x = G(z) and an encoder q(z | x), trained against one critic.

    The critic sees pairs (x, z): data with codes from the encoder, and draws of the prior with outputs of the decoder.
    Where it cannot distinguish the two, G(z) has the distribution of the data and q(z | x) is the posterior. See
    Dumoulin et al., https://arxiv.org/abs/1606.00704, and for BiGAN Donahue et al., https://arxiv.org/abs/1605.09782.

    The arguments are the fields of :class:`ALIOptions`, the errors those of :class:`Generator`.
    """

    @constructed_from(ALIOptions)
    def __init__(self, options: ALIOptions) -> None:
        super().__init__(options.make_code(), Point(options.event_shape), options)
