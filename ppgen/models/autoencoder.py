"""Autoencoders: p(z), a decoder p(x | z) and an encoder q(z | x), as a Pyro model and a Pyro guide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.flows.build import build_flow
from ppgen.models.latent_flow import FlowHead, GaussianFlow
from ppgen.models.latent_variable import NETWORKS, ConditionalDistribution, LatentVariableModel, mean_or_draw
from ppgen.models.likelihood import Gaussian, Head, Point, make_likelihood
from ppgen.models.options import NetworkOptions, constructed_from
from ppgen.nets import eval_mode, lookup
from ppgen.tracing.particles import log_weights

__all__ = ["VAE", "Autoencoder", "AutoencoderOptions", "EncoderDecoder", "VAEOptions"]

# The least standard deviation of q(z | x). The KL term bounds it already; this only protects the arithmetic.
ENCODER_FLOOR = 1e-3
# The default chunk of log_evidence keeps the decoder's output below this many numbers.
MAX_OUTPUT = 2**20


class EncoderDecoder(LatentVariableModel):
    """A latent variable model with an encoder q(z | x).

    Args:
        code: the head of the encoder.
        likelihood: the head of the decoder.
        options: the arguments of the constructor.
    """

    def __init__(self, code: Head, likelihood: Head, options: NetworkOptions) -> None:
        network, _ = lookup(NETWORKS, options.network, option="network")
        width, context_dim = code.size * options.latent_dim, options.num_classes or 0
        body = network(options.event_shape, width, context_dim=context_dim, **options.network_options())
        encoder = ConditionalDistribution(body, code)
        super().__init__(likelihood, options)
        self.encoder = encoder

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The program z_i ~ q(z | x_i, y_i), over the plate "data" of the rows of x; arguments as in `model`."""
        pyro.module("encoder", self.encoder)
        posterior = self._posterior(x, y)
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", posterior)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z | x): batch shape (n,), event shape (latent_dim,). Arguments and errors are those of `check`."""
        self.check(x, y)
        with eval_mode(self):
            return self._posterior(x, y)

    def reconstruct(self, x: Tensor, y: Tensor | None = None, *, mean: bool = True) -> Tensor:
        """E[x | E[z | x]], or a draw of p(x | z) at z ~ q(z | x).

        The mean of a flow posterior is not known; the image of the mean of its base replaces it.

        Args:
            x: as in `check`.
            y: as in `check`.
            mean: whether to use the means.

        Returns:
            A tensor (n, *event_shape).
        """
        code = self.encode(x, y)
        with eval_mode(self):
            z = code.center if mean and isinstance(code, GaussianFlow) else mean_or_draw(code, mean)
        return mean_or_draw(self.decode(z, y), mean)

    def _posterior(self, x: Tensor, y: Tensor | None) -> TorchDistribution:
        return self.encoder(self.likelihood.features(x, self._dtype), self._context(y))


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions(NetworkOptions):
    """Options of :class:`Autoencoder`.

    Attributes:
        likelihood: a row of `ppgen.models.LIKELIHOODS`: "gaussian", "bernoulli" (data 0 or 1) or "categorical" (data
            0 .. levels - 1).
        covariance: the covariance of a Gaussian likelihood, a row of `ppgen.models.COVARIANCES`.
        rank: the rank of a "low_rank" covariance.
        scale: the initial standard deviation of a Gaussian likelihood, or the constant one of "fixed".
        floor: the least standard deviation of a Gaussian likelihood that can be learned.
        levels: the number of values of a categorical likelihood.
    """

    kind: ClassVar[str] = "autoencoder"

    likelihood: str = "gaussian"
    covariance: str = "diagonal"
    rank: int = 4
    scale: float = 1.0
    floor: float = 1e-2
    levels: int | None = None

    def make_likelihood(self) -> Head:
        """The head of the decoder."""
        return make_likelihood(
            self.event_shape,
            likelihood=self.likelihood,
            covariance=self.covariance,
            rank=self.rank,
            scale=self.scale,
            floor=self.floor,
            levels=self.levels,
        )


class Autoencoder(EncoderDecoder):
    """An autoencoder with a deterministic code: q(z | x) is a point mass at the output of the encoder.

    Its evidence lower bound is log p(x | z) + log N(z; 0, I) at z = encoder(x): a reconstruction with a penalty on the
    code. Nothing in it makes the codes of data follow the prior. An objective that matches the two distributions does
    (MMD, a critic), and only then is ``sample`` of use.

    The arguments are the fields of :class:`AutoencoderOptions`.

    Raises:
        ValueError: if an option is unknown or out of range, or a convolutional network is combined with a table.
    """

    @constructed_from(AutoencoderOptions)
    def __init__(self, options: AutoencoderOptions) -> None:
        super().__init__(Point((options.latent_dim,)), options.make_likelihood(), options)


@dataclass(frozen=True, kw_only=True)
class VAEOptions(AutoencoderOptions):
    """Options of :class:`VAE`.

    Attributes:
        encoder_covariance: the covariance of q(z | x), a row of `ppgen.models.COVARIANCES`; ``rank`` applies to it too.
        prior: "gaussian", or a row of `ppgen.flows.FLOWS`; the same for all labels.
        posterior: "gaussian", or a row of `ppgen.flows.FLOWS`, conditioned on the output of the encoder.
        flow_layers: the number of layers of each flow; None for the default of the flow.
        flow_hidden: hidden widths of the networks of each flow.
    """

    encoder_covariance: str = "diagonal"
    prior: str = "gaussian"
    posterior: str = "gaussian"
    flow_layers: int | None = None
    flow_hidden: Sequence[int] = (64, 64)

    def make_code(self) -> Head:
        """The head of the encoder.

        Raises:
            ValueError: if the posterior is a flow and the encoder's covariance is not diagonal.
        """
        shape = (self.latent_dim,)
        if self.posterior == "gaussian":
            return Gaussian(shape, covariance=self.encoder_covariance, rank=self.rank, floor=ENCODER_FLOOR)
        if self.encoder_covariance != "diagonal":
            raise ValueError(
                f"posterior={self.posterior!r} transforms a diagonal Gaussian and models correlations itself: leave "
                f"encoder_covariance at 'diagonal', got {self.encoder_covariance!r}"
            )
        return FlowHead(shape, flow=self.posterior, floor=ENCODER_FLOOR, **self.flow_options())

    def flow_options(self) -> dict[str, Any]:
        """Keyword arguments of `ppgen.flows.build.build_flow`."""
        return {"layers": self.flow_layers, "hidden": self.flow_hidden}


class VAE(EncoderDecoder):
    """A variational autoencoder: q(z | x) = N(mu(x), Sigma(x)) and p(z) = N(0, I), or flows in their place.

    The method is that of Kingma and Welling, https://arxiv.org/abs/1312.6114. Both flows are initialized close to the
    Gaussians. The posterior draws z together with its density, and the prior scores z, so that "iaf" is a cheap
    posterior and "maf" a cheap prior. With a flow the KL divergence has no closed form and is estimated from draws.

    The arguments are the fields of :class:`VAEOptions`, the errors those of :class:`Autoencoder`.

    Example:
        >>> import torch
        >>> import ppgen
        >>> vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
        >>> x = torch.randn(20, 3)
        >>> fit = ppgen.fit(vae.model, vae.guide, x, steps=2, compile=False, progress=False)
        >>> vae.sample(5).shape, vae.encode(x).mean.shape
        (torch.Size([5, 3]), torch.Size([20, 2]))
    """

    @constructed_from(VAEOptions)
    def __init__(self, options: VAEOptions) -> None:
        super().__init__(options.make_code(), options.make_likelihood(), options)
        self.latent_flow = None
        if options.prior != "gaussian":
            self.latent_flow = build_flow(options.prior, self.latent_dim, option="prior", **options.flow_options())

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The program z_i ~ p(z), x_i ~ p(x | z_i, y_i); arguments as in `LatentVariableModel.model`."""
        if self.latent_flow is not None:
            pyro.module("prior", self.latent_flow)
        return super().model(x, y)

    def prior(self, n: int) -> TorchDistribution:
        """p(z): batch shape (n,), event shape (latent_dim,)."""
        return super().prior(n) if self.latent_flow is None else self.latent_flow().expand((n,))

    def log_evidence(
        self, x: Tensor, y: Tensor | None = None, *, particles: int = 100, chunk: int | None = None
    ) -> Tensor:
        """The importance sampling estimate log (1 / k) sum_k p(x_i, z_ik) / q(z_ik | x_i) at draws z_ik ~ q(z | x_i).

        Its expectation is a lower bound of log p(x_i), which becomes tight as k grows (Burda et al.,
        https://arxiv.org/abs/1509.00519).

        Args:
            x: as in `check`.
            y: as in `check`.
            particles: the number k of draws.
            chunk: the number of pairs (particle, row) in memory at once; None for the most that keep the output of the
                decoder below 2^20 numbers. The draws under a given seed depend on it.

        Returns:
            log p(x_i) in nats, (n,).

        Raises:
            TypeError: as `check` does.
            ValueError: as `check` does, and for particles or chunk below 1.
        """
        self.check(x, y)
        if chunk is None:
            chunk = max(1, MAX_OUTPUT // math.prod(self.decoder.network.out_shape))
        if particles < 1 or chunk < 1:
            raise ValueError(f"expected particles and chunk of at least 1, got {particles} and {chunk}")
        evidence = []
        with eval_mode(self):
            for start in range(0, len(x), chunk):
                rows = slice(start, start + chunk)
                args = (x[rows], None if y is None else y[rows])
                step = max(1, chunk // len(args[0]))
                sizes = [min(step, particles - done) for done in range(0, particles, step)]
                parts = [log_weights(self.model, self.guide, args, particles=size).logsumexp(0) for size in sizes]
                evidence.append(torch.stack(parts).logsumexp(0) - math.log(particles))
        return torch.cat(evidence)
