"""What all models with a denoiser share: the network, its conditioning on labels or contexts, and the scale of data.

The denoiser sees data x as v: as they are, or gray levels 0 .. K - 1 mapped to [-1, 1].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.diffusion import Denoiser
from ppgen.models.checks import check_event_shape, check_labels, check_levels, check_support, one_hot
from ppgen.nets import ResidualDense, UNet, defaults_for, lookup

__all__ = ["DenoiserOptions", "DenoisingModel"]

NETWORKS: dict[str, Any] = {"dense": ResidualDense, "unet": UNet}


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions:
    """Options of a model with a denoiser.

    Attributes:
        event_shape: (features,) of a table or (channels, height, width) of images.
        network: "dense", "unet", or a module as `ppgen.diffusion.Denoiser` calls it; None for "unet" of images and
            "dense" of tables.
        hidden: hidden widths of the network, see `ppgen.nets.ResidualDense` and `ppgen.nets.UNet`; None for those of
            `ppgen.nets.defaults_for`.
        sigma_data: the standard deviation of an element of v, by which the network's input and output are scaled.
        levels: K, of data that are integers 0 .. K - 1; None for real numbers.
        num_classes: the number of labels of a conditional model; None without labels.
        context_dim: the width of contexts (n, context_dim), which replace labels.
        label_dropout: the probability that a label or context is dropped in training, which guidance needs.
        options: further options of the network, such as ``{"attention": True}``.

    Raises:
        ValueError: if an option is out of range.
    """

    event_shape: Sequence[int] = field(kw_only=False)
    network: str | nn.Module | None = None
    hidden: Sequence[int] | None = None
    sigma_data: float = 1.0
    levels: int | None = None
    num_classes: int | None = None
    context_dim: int = 0
    label_dropout: float = 0.1
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"expected levels of at least 2, got {self.levels}")
        if self.num_classes is not None and self.context_dim:
            got = f"{self.num_classes} and {self.context_dim}"
            raise ValueError(f"expected num_classes or context_dim, got both, {got}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"expected label_dropout in [0, 1), got {self.label_dropout}")

    def network_options(self) -> dict[str, Any]:
        """Further options of the network alone."""
        return dict(self.options or {})

    def make_network(self, *, learned_scale: bool) -> nn.Module:
        """The network of the denoiser.

        Args:
            learned_scale: whether it has twice as many outputs, the second half for a standard deviation.

        Raises:
            ValueError: if the network is unknown or does not accept an option.
        """
        options = self.network_options()
        if isinstance(self.network, nn.Module):
            if self.hidden is not None or options:
                raise ValueError(
                    "hidden and options are those of a network by name, got a module and "
                    f"hidden={self.hidden}, options={options}"
                )
            return self.network
        chosen = defaults_for("denoiser", self.event_shape, network=self.network)
        name, hidden = chosen.network, chosen.hidden if self.hidden is None else self.hidden
        make = lookup(NETWORKS, name, option="network")
        first, *rest = self.event_shape
        channels = 2 * first if learned_scale else first
        out = (channels, *rest) if make is ResidualDense else channels
        if hidden is not None:
            options["hidden"] = tuple(hidden)
        context_dim = Denoiser.level_dim + (self.num_classes or 0) + self.context_dim
        try:
            return make(tuple(self.event_shape), out, context_dim=context_dim, **options)
        except TypeError as error:
            raise ValueError(f"network={name!r} has no such option: {error}") from error


class DenoisingModel(nn.Module):
    """A denoiser E[v | z], and the map between data x and v.

    Args:
        options: the options of the constructor.
        prediction_type: the target of the network, a row of `ppgen.diffusion.PREDICTION_TYPES`.
        learned_scale: whether the network predicts a standard deviation of v given z as well.
        by_noise_fraction: the embedding of the noise level, see `ppgen.diffusion.Denoiser`.

    Raises:
        ValueError: if an option is unknown or out of range.
    """

    def __init__(
        self,
        options: DenoiserOptions,
        *,
        prediction_type: str,
        learned_scale: bool = False,
        by_noise_fraction: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape, self.sigma_data = tuple(options.event_shape), options.sigma_data
        self.levels: Any = options.levels  # int or None
        self.num_classes, self.context_dim = options.num_classes, options.context_dim
        self.conditional = self.num_classes is not None or self.context_dim > 0
        self.label_dropout = options.label_dropout if self.conditional else 0.0
        self.denoiser = Denoiser(
            options.make_network(learned_scale=learned_scale),
            self.event_shape,
            prediction_type=prediction_type,
            sigma_data=self.sigma_data,
            learned_scale=learned_scale,
            by_noise_fraction=by_noise_fraction,
        )

    @classmethod
    def data_form(cls, options: Mapping[str, Any]) -> str:
        """The model scores gray levels where the data have them, whatever the options are."""
        return "levels"

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Checks the data. This reads every value, so call it once for a data set.

        Args:
            x: data (n, *event_shape).
            y: labels (n,) or contexts (n, context_dim), if and only if the model is conditional.

        Raises:
            TypeError: if x is not a tensor.
            ValueError: if x is not (n, *event_shape), is not finite, has integers in a model without levels or values
                that are no levels; if y is missing, not expected, or not valid.
        """
        check_event_shape(x, self.event_shape)
        if self.levels is not None:
            check_levels(x, self.levels, f"the support of a model of levels={self.levels}")
        elif not x.is_floating_point():
            raise ValueError(f"a density has no bound on integers, got {x.dtype}; build the model with their levels")
        else:
            check_support(x, x.isfinite(), "finite numbers", "drop or impute the rest")
        self.check_labels(y, x.shape[:1])

    def check_labels(self, y: Tensor | None, shape: torch.Size) -> None:
        """Checks labels or contexts.

        Args:
            y: labels (*shape), contexts (*shape, context_dim), or None.
            shape: the expected shape.

        Raises:
            ValueError: if y is missing, not expected, or not valid.
        """
        if self.context_dim:
            if y is None or tuple(y.shape) != (*shape, self.context_dim):
                got = "none" if y is None else tuple(y.shape)
                raise ValueError(f"expected contexts y of shape {(*shape, self.context_dim)}, got {got}")
        else:
            check_labels(y, shape, self.num_classes)

    def unscale(self, v: Tensor) -> Tensor:
        """The data x of v, before levels are rounded."""
        return v if self.levels is None else (v + 1) / 2 * (self.levels - 1)

    def _scale(self, x: Tensor) -> Tensor:
        """The values v of data x."""
        v = x.to(self._dtype)
        return v if self.levels is None else 2 * v / (self.levels - 1) - 1

    def _context(self, y: Tensor | None) -> Tensor | None:
        """The context of the network: one-hot labels, or contexts."""
        if self.context_dim and y is not None:
            return y.to(self._dtype)
        return one_hot(y, self.num_classes, self._dtype)

    def _drop_context(self, context: Tensor | None) -> Tensor | None:
        """In training, replaces the context by zeros with probability `label_dropout`, row by row."""
        if context is None or not self.training or not self.label_dropout:
            return context
        return context * (torch.rand_like(context[:, :1]) >= self.label_dropout)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype
