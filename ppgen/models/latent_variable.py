"""Latent variable models with a decoder: a prior p(z), by default N(0, I), and p(x | z), as a Pyro program.

A row x of data has shape (*event_shape) and its latent code z shape (latent_dim,). With labels, the networks are
conditioned on the label y of the row. ``model`` and ``guide`` are the programs that an objective is given. Neither of
them reads a value, so both can be traced once Pyro's validation is off, and both run inside further plates to the left
of the plate "data", for example a plate of particles. All other methods run in evaluation mode and without gradients,
and restore the mode.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppgen.models.checks import check_event_shape, check_labels, one_hot
from ppgen.models.likelihood import LIKELIHOODS, Bernoulli, Categorical, Head
from ppgen.models.options import NetworkOptions
from ppgen.nets import (
    ConvDecoder,
    ConvEncoder,
    Dense,
    Growing,
    GrowingDecoder,
    GrowingEncoder,
    Network,
    eval_mode,
    lookup,
)
from ppgen.utils.means import mean

# By name, the network of the encoder and that of the decoder.
NETWORKS: dict[str, tuple[Callable[..., Network], Callable[..., Network]]] = {
    "dense": (Dense, Dense),
    "convolutional": (ConvEncoder, ConvDecoder),
    "growing": (GrowingEncoder, GrowingDecoder),
    "pyramid": (partial(GrowingEncoder, multi_scale=True), partial(GrowingDecoder, pyramid=True)),
}
GROWING = ("growing", "pyramid")  # the rows whose resolution grows during training


class ConditionalDistribution(nn.Module):
    """p(a | b, context): a network of b whose output parametrizes a distribution over a.

    Args:
        network: the network.
        head: the map from the network's output to the distribution.
    """

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, value: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """The distribution given a value (*batch, *network.in_shape): batch shape (*batch), event shape of the head."""
        raw = self.network(value, context)
        batch = raw.shape[: raw.dim() - len(self.network.out_shape)]
        return self.head(raw.reshape(*batch, self.head.size, *self.head.event_shape))


class LatentVariableModel(nn.Module):
    """A prior and a decoder, p(z) p(x | z).

    Args:
        likelihood: the head of the decoder.
        options: the arguments of the constructor.

    Raises:
        ValueError: if the network is unknown or cannot be combined with the likelihood.
    """

    def __init__(self, likelihood: Head, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        self.event_shape, self.latent_dim = tuple(options.event_shape), options.latent_dim
        self.num_classes = options.num_classes
        if options.network in GROWING and isinstance(likelihood, Bernoulli | Categorical):
            raise ValueError(
                f"network={options.network!r} models means of blocks of pixels while it grows, which the likelihood "
                f"{type(likelihood).__name__.lower()!r} does not score; choose a likelihood of continuous data"
            )
        _, network = lookup(NETWORKS, options.network, option="network")
        channels, *rest = self.event_shape
        out_shape = (likelihood.size * channels, *rest)
        context_dim = options.num_classes or 0
        decoder = network(self.latent_dim, out_shape, context_dim=context_dim, **options.network_options(reverse=True))
        self.decoder = ConditionalDistribution(decoder, likelihood)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the constructor: ``type(model)(**model.config)`` builds an untrained copy."""
        return self.options.as_dict()

    @classmethod
    def data_form(cls, options: Mapping[str, Any]) -> str:
        """The form of data that the likelihood scores, a row of `ppgen.data.FORMS`.

        Args:
            options: keyword arguments of the constructor.
        """
        return lookup(LIKELIHOODS, options.get("likelihood", "gaussian"), option="likelihood").form

    @property
    def likelihood(self) -> Head:
        """The head of the decoder."""
        return self.decoder.head

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The program z_i ~ p(z), x_i ~ p(x | z_i, y_i), over the plate "data" of the rows of x.

        Args:
            x: data (n, *event_shape).
            y: integer labels (n,), if and only if the model has ``num_classes``.
        """
        pyro.module("decoder", self.decoder)
        context = self._context(y)
        with pyro.plate("data", x.shape[0], dim=-1):
            self._observe_labels(context)
            z = pyro.sample("z", self.prior(x.shape[0]))
            observed = self._at_resolution(self.likelihood.observed(x, self._dtype))
            return pyro.sample("x", self.decoder(z, context), obs=observed)

    def _at_resolution(self, x: Tensor) -> Tensor:
        """Data at the present resolution of a growing decoder."""
        network = self.decoder.network
        return network.seen(x) if isinstance(network, Growing) else x

    def _observe_labels(self, context: Tensor | None) -> None:
        """Adds the one-hot labels to the program; by default they are no site."""

    def prior(self, n: int) -> TorchDistribution:
        """p(z) = N(0, I): batch shape (n,), event shape (latent_dim,)."""
        zeros = next(self.parameters()).new_zeros(n, self.latent_dim)
        return dist.Normal(zeros, 1.0).to_event(1)

    def decode(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """p(x | z): batch shape (..., n), event shape (*event_shape).

        `ppgen.models.mean` gives the mean of all of these, also of those that have no ``mean``.

        Args:
            z: latent codes (..., n, latent_dim).
            y: as in `model`.

        Raises:
            ValueError: if z has another width, or y is not valid.
        """
        check_labels(y, z.shape[-2:-1], self.num_classes)
        with eval_mode(self):
            return self.decoder(z.to(self._dtype), self._context(y))

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """Draws x ~ p(x | z) at z ~ p(z).

        Args:
            n: the number of draws.
            y: as in `model`.
            mean: whether to return E[x | z] instead of x.

        Returns:
            A tensor (n, *event_shape).
        """
        return mean_or_draw(self.decode(self.prior(n).sample(), y), mean)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Checks the data. This reads every value, so call it once for a data set.

        Args:
            x: as in `model`.
            y: as in `model`.

        Raises:
            TypeError: if x is not a tensor.
            ValueError: if x is not (n, *event_shape) or lies outside the support of the likelihood; if y is missing,
                not expected, not (n,) integers, or outside 0 .. num_classes - 1.
        """
        check_event_shape(x, self.event_shape)
        self.likelihood.check(x)
        check_labels(y, x.shape[:1], self.num_classes)

    def _context(self, y: Tensor | None) -> Tensor | None:
        return one_hot(y, self.num_classes, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def mean_or_draw(distribution: TorchDistribution, use_mean: bool) -> Tensor:
    """The mean of a distribution, or a draw of it."""
    return mean(distribution) if use_mean else distribution.sample()
