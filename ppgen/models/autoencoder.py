"""Autoencoders: p(z), a decoder p(x | z) and an encoder q(z | x), as a Pyro model and a Pyro guide."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.models.generative import NETWORKS, Coder, Generative, arguments, draw, network_options
from ppgen.models.latent_flow import FlowCode, GaussianFlow, make_flow
from ppgen.models.likelihood import Gaussian, Head, Point, make_likelihood
from ppgen.nets import lookup, evaluation
from ppgen.tracing.particles import log_weights

# The least standard deviation of q(z | x). The KL term already holds it up; this only guards the arithmetic.
ENCODER_FLOOR = 1e-3


class Encoded(Generative):
    """A decoder with an encoder, whose head is `code`."""

    def __init__(self, code: Head, likelihood: Head, config: dict[str, Any]) -> None:
        coding, _ = lookup(NETWORKS, config["network"], option="network")
        there = {} if config["hidden"] is None else {"hidden": config["hidden"]}
        options = there | network_options(config)
        encoder = Coder(coding(config["event_shape"], code.size * config["latent_dim"], **options), code)
        super().__init__(likelihood, config)
        self.encoder = encoder

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """z_i ~ q(z | x_i, y_i), over the plate "data" of x's rows; arguments as in ``model``."""
        pyro.module("encoder", self.encoder)
        posterior = self._posterior(x, y)
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", posterior)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z | x): batch shape (n,), event shape (latent_dim,). Raises as ``check`` does."""
        self.check(x, y)
        with evaluation(self):
            return self._posterior(x, y)

    def reconstruct(self, x: Tensor, y: Tensor | None = None, *, mean: bool = True) -> Tensor:
        """(n, *event_shape): E[x | E[z | x]], or with ``mean=False`` x' ~ p(x | z) at z ~ q(z | x).

        A flow posterior has no mean that is known; the image of its base's stands in. Raises as ``check`` does.
        """
        code = self.encode(x, y)
        with evaluation(self):
            z = code.center if mean and isinstance(code, GaussianFlow) else draw(code, mean)
        return draw(self.decode(z, y), mean)

    def _posterior(self, x: Tensor, y: Tensor | None) -> TorchDistribution:
        return self.encoder(self.likelihood.features(x, self._dtype), self._context(y))


class Autoencoder(Encoded):
    """A deterministic code: q(z | x) is a Delta at the encoder's output.

    Its evidence lower bound is log p(x | z) + log N(z; 0, I) at z = encoder(x), a reconstruction with a
    penalty on the code. Nothing makes the codes of data follow the prior; an objective that matches the two
    (MMD, a critic) does, and only then is ``sample`` of use.

    Args:
        event_shape: (features,) of a table or (channels, height, width) of images.
        latent_dim: the width of z.
        hidden: the encoder's hidden widths (channels, when convolutional), mirrored in the decoder; None for
            the network's own: (256, 256) dense, (32, 64) convolutional.
        network: "dense", or "convolutional" for images.
        likelihood: "gaussian", "bernoulli" (data 0 or 1) or "categorical" (data 0 .. levels - 1).
        covariance: of a Gaussian likelihood, a row of ``COVARIANCES``.
        rank: the rank of a "low_rank" covariance.
        scale: of a Gaussian likelihood, the standard deviation that learning starts from, or that "fixed"
            holds.
        floor: of a Gaussian likelihood, the least standard deviation learned.
        levels: of a categorical likelihood, the number of values.
        num_classes: the number of labels when the model is conditioned on them, None when it is not.
        norm, dropout, activation: as in :class:`ppgen.nets.Dense`.

    Raises:
        ValueError: an option is not in its table or out of range, or a convolutional network meets a table.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: str = "dense",
        likelihood: str = "gaussian",
        covariance: str = "diagonal",
        rank: int = 4,
        scale: float = 1.0,
        floor: float = 1e-2,
        levels: int | None = None,
        num_classes: int | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        config = arguments(locals())
        super().__init__(Point((latent_dim,)), _likelihood(config), config)


class VAE(Encoded):
    """A variational autoencoder: q(z | x) = N(mu(x), Sigma(x)) (Kingma and Welling, Auto-encoding variational
    Bayes, 2014), or a flow of it; p(z) = N(0, I), or a flow of that.

    Both flows start as the Gaussians. A posterior draws z, whose density comes with the draw, and the prior scores it:
    "iaf" makes a cheap posterior and "maf" a cheap prior. With a flow the KL has no closed form; draws estimate it.

    Args:
        encoder_covariance: Sigma's form, a row of ``COVARIANCES``; "low_rank" takes ``rank``.
        prior: of z, "gaussian" or a row of `ppgen.flows.FLOWS`; the same for all labels.
        posterior: "gaussian", or a row of `ppgen.flows.FLOWS`, of which the encoder gives the context.
        flow_layers: how many maps either flow is made of; None for its own number.
        flow_hidden: the widths of either flow's networks.

    The other arguments and the errors are those of :class:`Autoencoder`.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: str = "dense",
        likelihood: str = "gaussian",
        covariance: str = "diagonal",
        rank: int = 4,
        scale: float = 1.0,
        floor: float = 1e-2,
        levels: int | None = None,
        encoder_covariance: str = "diagonal",
        prior: str = "gaussian",
        posterior: str = "gaussian",
        flow_layers: int | None = None,
        flow_hidden: Sequence[int] = (64, 64),
        num_classes: int | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        config = arguments(locals())
        flows: dict[str, Any] = {"layers": flow_layers, "hidden": flow_hidden}
        code: Head
        if posterior == "gaussian":
            code = Gaussian((latent_dim,), covariance=encoder_covariance, rank=rank, floor=ENCODER_FLOOR)
        elif encoder_covariance == "diagonal":
            code = FlowCode((latent_dim,), flow=posterior, floor=ENCODER_FLOOR, **flows)
        else:
            raise ValueError(
                f"posterior={posterior!r} bends a diagonal Gaussian and makes its correlations itself: leave "
                f"encoder_covariance at 'diagonal', got {encoder_covariance!r}"
            )
        super().__init__(code, _likelihood(config), config)
        self.latent_flow = None if prior == "gaussian" else make_flow(prior, latent_dim, option="prior", **flows)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """z_i ~ p(z), x_i ~ p(x | z_i, y_i), over the plate "data" of x's rows; arguments as in `Generative.model`."""
        if self.latent_flow is not None:
            pyro.module("prior", self.latent_flow)
        return super().model(x, y)

    def prior(self, n: int) -> TorchDistribution:
        """p(z): batch shape (n,), event shape (latent_dim,)."""
        return super().prior(n) if self.latent_flow is None else self.latent_flow().expand((n,))

    def log_evidence(
        self, x: Tensor, y: Tensor | None = None, *, particles: int = 100, chunk: int | None = None
    ) -> Tensor:
        """log (1 / k) sum_k p(x_i, z_ik) / q(z_ik | x_i), in nats, with draws z_ik ~ q(z | x_i), k of them.

        The expectation is a lower bound of log p(x_i) that rises to it with the number of particles (Burda,
        Grosse and Salakhutdinov, Importance weighted autoencoders, 2016).

        Args:
            x: (n, *event_shape).
            y: (n,) integer labels, with ``num_classes`` alone.
            particles: k.
            chunk: how many pairs (particle, datum) to hold in memory at once; None for as many as keep the
                decoder's output below 2^23 numbers. The draws under a given seed depend on it.

        Returns:
            (n,). Raises as ``check`` does, and ValueError for particles or chunk below 1.
        """
        self.check(x, y)
        if chunk is None:
            chunk = max(1, 2**23 // math.prod(self.decoder.network.out_shape))
        if particles < 1 or chunk < 1:
            raise ValueError(f"expected particles and chunk of at least 1, got {particles} and {chunk}")
        evidence = []
        with evaluation(self):
            for start in range(0, len(x), chunk):
                rows = slice(start, start + chunk)
                args = (x[rows], None if y is None else y[rows])
                step = max(1, chunk // len(args[0]))
                sizes = [min(step, particles - done) for done in range(0, particles, step)]
                parts = [log_weights(self.model, self.guide, args, particles=k).logsumexp(0) for k in sizes]
                evidence.append(torch.stack(parts).logsumexp(0) - math.log(particles))
        return torch.cat(evidence)


def _likelihood(config: dict[str, Any]) -> Head:
    kind = ("likelihood", "covariance", "rank", "scale", "floor", "levels")
    return make_likelihood(config["event_shape"], **{key: config[key] for key in kind})
