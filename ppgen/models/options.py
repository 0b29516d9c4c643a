"""Options of models: one dataclass for each, whose fields are the keyword arguments of the model's constructor.

::

    class VAE(EncoderDecoder):
        @constructed_from(VAEOptions)
        def __init__(self, options: VAEOptions) -> None:
            ...

    VAE((6,), latent_dim=2)  # options = VAEOptions((6,), latent_dim=2)

The constructor has the signature, the types and the documentation of the dataclass, for type checkers, editors and the
command line, so that the arguments that models share are written down once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from inspect import Signature, getdoc, signature
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from ppgen.nets import defaults_for

__all__ = ["NetworkOptions", "constructed_from"]

P = ParamSpec("P")
Model = TypeVar("Model")
Options = TypeVar("Options")


def constructed_from(
    options: Callable[P, Options],
) -> Callable[[Callable[[Model, Options], None]], Callable[Concatenate[Model, P], None]]:
    """A decorator that gives ``__init__(self, options)`` the arguments of the dataclass `options`."""

    def decorate(init: Callable[[Model, Options], None]) -> Callable[Concatenate[Model, P], None]:
        @wraps(init)
        def __init__(self: Model, *args: P.args, **kwargs: P.kwargs) -> None:
            init(self, options(*args, **kwargs))

        this, *_ = signature(init).parameters.values()
        described: Any = __init__
        described.__signature__ = Signature([this, *signature(options).parameters.values()])
        described.__doc__ = _argument_docs(options)
        return __init__

    return decorate


def _argument_docs(options: Any) -> str:
    """The sections "Attributes" of a dataclass and its bases, as one section "Args"."""
    docs = [getdoc(kind) or "" for kind in reversed(options.__mro__)]
    sections = [doc.partition("Attributes:\n")[2].partition("\n\n")[0] for doc in docs]
    return "\n".join(["The constructor.\n\nArgs:", *filter(None, sections)])


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of a model with a network between data and a vector.

    What is "auto", and widths and dropout that are None, become those of `ppgen.nets.defaults_for`.

    Attributes:
        event_shape: (features,) of a table or (channels, height, width) of images.
        latent_dim: the width of the latent vector.
        hidden: hidden widths (channels, when convolutional) from data to vector, reversed in a decoder.
        network: "dense", or for images "convolutional", "growing" or "pyramid"; "auto" for one of the first two.
        num_classes: the number of labels of a conditional model; None without labels.
        norm: a row of `ppgen.nets.NORMS`, None for none, or "auto".
        dropout: the probability of dropout.
        activation: a row of `ppgen.nets.ACTIVATIONS`.

    Raises:
        ValueError: for sizes below 1.
    """

    kind: ClassVar[str] = "generator"  # the row of `ppgen.nets.KINDS`

    event_shape: Sequence[int] = field(kw_only=False)
    latent_dim: int = 8
    hidden: Sequence[int] | None = None
    network: str = "auto"
    num_classes: int | None = None
    norm: str | None = "auto"
    dropout: float | None = None
    activation: str = "silu"

    def __post_init__(self) -> None:
        for name, value in self.as_dict().items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if not self.event_shape:
            raise ValueError("expected an event_shape of at least one dimension, got ()")
        sizes = {"latent_dim": self.latent_dim, "num_classes": self.num_classes}
        sizes |= {f"event_shape[{i}]": size for i, size in enumerate(self.event_shape)}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"expected {name} of at least 1, got {size}")
        chosen = defaults_for(self.kind, self.event_shape, network=self.network)
        hidden = chosen.hidden if self.hidden is None else self.hidden
        resolved: dict[str, Any] = {"network": chosen.network, "hidden": hidden}
        if self.norm == "auto":
            resolved["norm"] = chosen.norm
        if self.dropout is None:
            resolved["dropout"] = chosen.dropout
        for name, value in resolved.items():
            object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as the constructor of the model accepts them."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    def network_options(self, *, reverse: bool = False) -> dict[str, Any]:
        """Keyword arguments of the network.

        Args:
            reverse: whether the network leads from the vector to data.
        """
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout, "activation": self.activation}
        if self.hidden is not None:
            options["hidden"] = self.hidden[::-1] if reverse else self.hidden
        return options
