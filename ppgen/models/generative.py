"""What every model with a decoder shares: p(z), N(0, I) as a rule, and p(x | z) as a Pyro program, and their uses.

A row x of data has shape (*event_shape) and its code z shape (latent_dim,); where there are labels, networks are
conditioned on the row's label y. ``model`` and ``guide`` are the two programs that an objective takes; neither looks at
a value, so both can be traced once Pyro's validation is off, and both run under further plates to the left of "data", a
plate of particles for example. The other methods are for users: they run in evaluation mode and without gradients, and
leave the mode as it was.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppgen.models.likelihood import LIKELIHOODS, Bernoulli, Categorical, Head
from ppgen.nets import (
    ConvDecoder,
    ConvEncoder,
    Dense,
    Growing,
    GrowingDecoder,
    GrowingEncoder,
    Network,
    lookup,
    evaluation,
)
from ppgen.utils.means import mean as mean_of

# The encoder's network and the decoder's.
NETWORKS: dict[str, tuple[Callable[..., Network], Callable[..., Network]]] = {
    "dense": (Dense, Dense),
    "convolutional": (ConvEncoder, ConvDecoder),
    "growing": (GrowingEncoder, GrowingDecoder),
    "pyramid": (partial(GrowingEncoder, multi_scale=True), partial(GrowingDecoder, pyramid=True)),
}
GROWING = ("growing", "pyramid")  # rows whose networks grow


class Coder(nn.Module):
    """A network and the head that reads it: a value and a context to a distribution."""

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, value: Tensor, context: Tensor | None = None) -> TorchDistribution:
        raw = self.network(value, context)
        batch = raw.shape[: raw.dim() - len(self.network.out_shape)]
        return self.head(raw.reshape(*batch, self.head.size, *self.head.event_shape))


class Generative(nn.Module):
    """A decoder, and all that asks for no more.

    Args:
        likelihood: the decoder's head.
        config: the constructor's arguments, as `arguments` gives them.
    """

    def __init__(self, likelihood: Head, config: dict[str, Any]) -> None:
        super().__init__()
        self._config = config
        self.event_shape, self.latent_dim = config["event_shape"], config["latent_dim"]
        self.num_classes = config["num_classes"]
        _, decoding = lookup(NETWORKS, config["network"], option="network")
        hidden = config["hidden"]
        back = {} if hidden is None else {"hidden": hidden[::-1]}
        if config["network"] in GROWING and isinstance(likelihood, Bernoulli | Categorical):
            raise ValueError(
                f"network={config['network']!r} sees means of blocks of pixels while it grows, which the likelihood "
                f"{type(likelihood).__name__.lower()!r} does not score; take one of continuous data"
            )
        channels, *rest = self.event_shape
        outputs = (likelihood.size * channels, *rest)
        self.decoder = Coder(decoding(self.latent_dim, outputs, **back, **network_options(config)), likelihood)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: ``type(model)(**model.config)`` builds the same class anew."""
        return dict(self._config)

    @classmethod
    def data_form(cls, options: Mapping[str, Any]) -> str:
        """The form of data that the likelihood scores, a row of `ppgen.data.FORMS`.

        Args:
            options: keyword arguments of the constructor.
        """
        return lookup(LIKELIHOODS, options.get("likelihood", "gaussian"), option="likelihood").form

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
            self._labeled(context)
            z = pyro.sample("z", self.prior(x.shape[0]))
            observed = self._seen(self.likelihood.observed(x, self._dtype))
            return pyro.sample("x", self.decoder(z, context), obs=observed)

    def _seen(self, x: Tensor) -> Tensor:
        """Data at the resolution that the decoder has reached: what it is a model of while it grows."""
        network = self.decoder.network
        return network.seen(x) if isinstance(network, Growing) else x

    def _labeled(self, context: Tensor | None) -> None:
        """What the model says of the labels, one-hot."""

    def prior(self, n: int) -> TorchDistribution:
        """p(z) = N(0, I): batch shape (n,), event shape (latent_dim,)."""
        zeros = next(self.parameters()).new_zeros(n, self.latent_dim)
        return dist.Normal(zeros, 1.0).to_event(1)

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
        return draw(self.decode(self.prior(n).sample(), y), mean)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Whether the data are what this model expects; looks at every value, so call it once a data set.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (n, *event_shape) or lies outside the likelihood's support; y is missing, not
                wanted, not (n,) integers, or outside 0 .. num_classes - 1.
        """
        check_rows(x, self.event_shape)
        self.likelihood.check(x)
        self._check_labels(y, x.shape[:1])

    def _check_labels(self, y: Tensor | None, shape: torch.Size) -> None:
        check_labels(y, shape, self.num_classes)

    def _context(self, y: Tensor | None) -> Tensor | None:
        return one_hot(y, self.num_classes, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def network_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options that both networks take."""
    return {key: config[key] for key in ("norm", "dropout", "activation")} | {"context_dim": config["num_classes"] or 0}


def arguments(frame: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments from its locals, sequences made tuples; the sizes are checked here."""
    config = {key: value for key, value in frame.items() if key not in ("self", "__class__")}
    config["event_shape"] = tuple(config["event_shape"])
    for widths in ("hidden", "flow_hidden"):
        if config.get(widths) is not None:
            config[widths] = tuple(config[widths])
    sizes = {"latent_dim": config["latent_dim"], "num_classes": config["num_classes"]}
    sizes |= {f"event_shape[{i}]": size for i, size in enumerate(config["event_shape"])}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"expected {name} of at least 1, got {size}")
    if not config["event_shape"]:
        raise ValueError("expected an event_shape of at least one dimension, got ()")
    return config


def check_rows(x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Raises TypeError unless x is a tensor, ValueError unless it is (n, *event_shape) with rows."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected x to be a tensor, got {type(x).__name__}: use torch.as_tensor")
    if x.dim() == 0 or tuple(x.shape[1:]) != event_shape or len(x) == 0:
        raise ValueError(
            f"expected x of shape (n, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}: "
            "reshape the data, or build the model with their event_shape"
        )


def check_labels(y: Tensor | None, shape: torch.Size, num_classes: int | None) -> None:
    """Raises ValueError unless y is there if wanted, of that shape, and of integers 0 .. num_classes - 1."""
    _check_given(y, num_classes)
    if y is None or num_classes is None:
        return
    if y.shape != shape or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"expected integer labels y of shape {tuple(shape)}, got {y.dtype} {tuple(y.shape)}")
    outside = int(((y < 0) | (y >= num_classes)).sum())
    if outside:
        raise ValueError(
            f"expected labels y in 0 .. {num_classes - 1}, as num_classes={num_classes} says; "
            f"{outside} of {y.numel()} are not (min {y.min().item()}, max {y.max().item()})"
        )


def one_hot(y: Tensor | None, num_classes: int | None, dtype: torch.dtype) -> Tensor | None:
    """The labels one-hot, (*shape, num_classes), without a look at their values; None for a model without labels.

    Raises:
        ValueError: y is missing or not wanted.
    """
    _check_given(y, num_classes)
    if y is None or num_classes is None:
        return None
    return (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)).to(dtype)


def _check_given(y: Tensor | None, num_classes: int | None) -> None:
    if (y is None) != (num_classes is None):
        raise ValueError(
            "expected no labels y: the model was built without num_classes"
            if num_classes is None
            else f"expected labels y: the model was built with num_classes={num_classes}"
        )


def draw(distribution: TorchDistribution, mean: bool) -> Tensor:
    return mean_of(distribution) if mean else distribution.sample()
