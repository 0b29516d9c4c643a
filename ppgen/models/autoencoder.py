"""Autoencoders: p(z) = N(0, I), a decoder p(x | z) and an encoder q(z | x), as a Pyro model and a Pyro guide.

A row x of data has shape (*event_shape) and its code z shape (latent_dim,); where there are labels, both
networks are conditioned on the row's label y. ``model`` and ``guide`` are the two programs that an objective
takes; neither looks at a value, so both can be traced once Pyro's validation is off, and both run under
further plates to the left of "data", a plate of particles for example. The other methods are for users: they
run in evaluation mode and without gradients, and leave the mode as it was.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppgen.draws import log_weights
from ppgen.models.likelihood import Gaussian, Head, Point, make_likelihood
from ppgen.models.likelihood import mean as mean_of
from ppgen.nets import ConvDecoder, ConvEncoder, Dense, Network, choose, evaluation

# The encoder's network and the decoder's.
NETWORKS: dict[str, tuple[type[Network], type[Network]]] = {
    "dense": (Dense, Dense),
    "convolutional": (ConvEncoder, ConvDecoder),
}

# The least standard deviation of q(z | x). The KL term already holds it up; this only guards the arithmetic.
ENCODER_FLOOR = 1e-3


class Coder(nn.Module):
    """A network and the head that reads it: a value and a context to a distribution."""

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, value: Tensor, context: Tensor | None = None) -> TorchDistribution:
        raw = self.network(value, context)
        batch = raw.shape[: raw.dim() - len(self.network.out_shape)]
        return self.head(raw.reshape(*batch, self.head.size, *self.head.event_shape))


class _Coded(nn.Module):
    """What Autoencoder and VAE share: everything but the law of the code given the data."""

    def __init__(self, code: Head, config: dict[str, Any]) -> None:
        super().__init__()
        self._config = config
        self.event_shape, self.latent_dim = config["event_shape"], config["latent_dim"]
        self.num_classes = config["num_classes"]
        kind = ("likelihood", "covariance", "rank", "scale", "floor", "levels")
        likelihood = make_likelihood(self.event_shape, **{key: config[key] for key in kind})
        coding, decoding = choose(NETWORKS, config["network"], option="network")
        options = {key: config[key] for key in ("norm", "dropout", "activation")}
        options["context_dim"] = self.num_classes or 0
        hidden = config["hidden"]
        there, back = ({}, {}) if hidden is None else ({"hidden": hidden}, {"hidden": hidden[::-1]})
        channels, *rest = self.event_shape
        outputs = (likelihood.size * channels, *rest)
        self.encoder = Coder(coding(self.event_shape, code.size * self.latent_dim, **there, **options), code)
        self.decoder = Coder(decoding(self.latent_dim, outputs, **back, **options), likelihood)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: ``type(model)(**model.config)`` builds the same class anew."""
        return dict(self._config)

    @property
    def likelihood(self) -> Head:
        """The decoder's head."""
        return self.decoder.head

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """z_i ~ N(0, I), x_i ~ p(x | z_i, y_i), over the plate "data" of x's rows.

        Args:
            x: (n, *event_shape).
            y: (n,) integer labels, with ``num_classes`` alone.
        """
        pyro.module("decoder", self.decoder)
        context = self._context(y)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(x.shape[0]))
            observed = self.likelihood.observed(x, self._dtype)
            return pyro.sample("x", self.decoder(z, context), obs=observed)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """z_i ~ q(z | x_i, y_i), over the plate "data" of x's rows; arguments as in ``model``."""
        pyro.module("encoder", self.encoder)
        posterior = self._posterior(x, y)
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", posterior)

    def prior(self, n: int) -> TorchDistribution:
        """p(z) = N(0, I): batch shape (n,), event shape (latent_dim,)."""
        zeros = next(self.parameters()).new_zeros(n, self.latent_dim)
        return dist.Normal(zeros, 1.0).to_event(1)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z | x): batch shape (n,), event shape (latent_dim,). Raises as ``check`` does."""
        self.check(x, y)
        with evaluation(self):
            return self._posterior(x, y)

    def decode(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """p(x | z), for z of shape (..., n, latent_dim): batch shape (..., n), event shape (*event_shape).

        A reshaped Gaussian or a categorical has no ``.mean``; ``ppgen.models.mean`` takes it of all.

        Raises:
            ValueError: z has another width, or y is not what ``check`` expects.
        """
        self._check_labels(y, z.shape[-2:-1])
        with evaluation(self):
            return self.decoder(z.to(self._dtype), self._context(y))

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """n draws of x ~ p(x | z), or with ``mean=True`` the means E[x | z], at z ~ p(z).

        Args:
            n: the number of draws.
            y: (n,) integer labels, with ``num_classes`` alone.

        Returns:
            (n, *event_shape).
        """
        return _draw(self.decode(self.prior(n).sample(), y), mean)

    def reconstruct(self, x: Tensor, y: Tensor | None = None, *, mean: bool = True) -> Tensor:
        """(n, *event_shape): E[x | E[z | x]], or with ``mean=False`` x' ~ p(x | z) at z ~ q(z | x).

        Raises as ``check`` does.
        """
        return _draw(self.decode(_draw(self.encode(x, y), mean), y), mean)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Whether the data are what this model expects; looks at every value, so call it once a data set.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (n, *event_shape) or lies outside the likelihood's support; y is missing, not
                wanted, not (n,) integers, or outside 0 .. num_classes - 1.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"expected x to be a tensor, got {type(x).__name__}: use torch.as_tensor")
        if x.dim() == 0 or tuple(x.shape[1:]) != self.event_shape or len(x) == 0:
            raise ValueError(
                f"expected x of shape (n, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}: "
                "reshape the data, or build the model with their event_shape"
            )
        self.likelihood.check(x)
        self._check_labels(y, x.shape[:1])

    def _check_labels(self, y: Tensor | None, shape: torch.Size) -> None:
        self._context(y)
        if y is None:
            return
        if y.shape != shape or y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(f"expected integer labels y of shape {tuple(shape)}, got {y.dtype} {tuple(y.shape)}")
        outside = int(((y < 0) | (y >= self.num_classes)).sum())
        if outside:
            raise ValueError(
                f"expected labels y in 0 .. {self.num_classes - 1}, as num_classes={self.num_classes} says; "
                f"{outside} of {y.numel()} are not (min {y.min().item()}, max {y.max().item()})"
            )

    def _context(self, y: Tensor | None) -> Tensor | None:
        """The labels one-hot, without a look at their values."""
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                "expected no labels y: the model was built without num_classes"
                if self.num_classes is None
                else f"expected labels y: the model was built with num_classes={self.num_classes}"
            )
        if y is None:
            return None
        return (y.unsqueeze(-1) == torch.arange(self.num_classes, device=y.device)).to(self._dtype)

    def _posterior(self, x: Tensor, y: Tensor | None) -> TorchDistribution:
        return self.encoder(self.likelihood.features(x, self._dtype), self._context(y))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Autoencoder(_Coded):
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
        config = _arguments(locals())
        super().__init__(Point((latent_dim,)), config)


class VAE(_Coded):
    """A variational autoencoder: q(z | x) = N(mu(x), Sigma(x)) (Kingma and Welling, Auto-encoding variational
    Bayes, 2014).

    Args:
        encoder_covariance: Sigma's form, a row of ``COVARIANCES``; "low_rank" takes ``rank``.

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
        num_classes: int | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        config = _arguments(locals())
        code = Gaussian((latent_dim,), covariance=encoder_covariance, rank=rank, floor=ENCODER_FLOOR)
        super().__init__(code, config)

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


def _arguments(frame: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments from its locals, sequences made tuples; the sizes are checked here."""
    config = {key: value for key, value in frame.items() if key not in ("self", "__class__")}
    config["event_shape"] = tuple(config["event_shape"])
    if config["hidden"] is not None:
        config["hidden"] = tuple(config["hidden"])
    sizes = {"latent_dim": config["latent_dim"], "num_classes": config["num_classes"]}
    sizes |= {f"event_shape[{i}]": size for i, size in enumerate(config["event_shape"])}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"expected {name} of at least 1, got {size}")
    if not config["event_shape"]:
        raise ValueError("expected an event_shape of at least one dimension, got ()")
    return config


def _draw(distribution: TorchDistribution, mean: bool) -> Tensor:
    return mean_of(distribution) if mean else distribution.sample()
