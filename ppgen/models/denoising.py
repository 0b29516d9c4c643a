"""What models made of a denoiser share: its network, the labels that it is conditioned on, and checks of data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.diffusion import Denoiser
from ppgen.models.checks import check_event_shape, check_labels, check_levels, check_support, one_hot
from ppgen.nets import ResidualDense, UNet, lookup

__all__ = ["Denoising"]


class Denoising(nn.Module):
    """A denoiser, and data (n, *event_shape) with labels or contexts; arguments as `ppgen.models.Diffusion` has them.

    Raises:
        ValueError: an option is out of range or unknown.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        network: str | nn.Module | None,
        hidden: Sequence[int] | None,
        prediction_type: str,
        sigma_data: float,
        learned_scale: bool = False,
        by_noise_fraction: bool = False,
        levels: int | None,
        num_classes: int | None,
        context_dim: int,
        label_dropout: float,
        options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        if levels is not None and levels < 2:
            raise ValueError(f"expected levels of at least 2, got {levels}")
        if num_classes is not None and context_dim:
            raise ValueError(f"expected num_classes or context_dim, got both, {num_classes} and {context_dim}")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"expected label_dropout in [0, 1), got {label_dropout}")
        self.event_shape, self.sigma_data = tuple(event_shape), sigma_data
        self.levels: Any = levels  # K, or None
        self.num_classes, self.context_dim = num_classes, context_dim
        self.conditional = num_classes is not None or context_dim > 0
        self.label_dropout = label_dropout if self.conditional else 0.0
        width = (num_classes or 0) + context_dim
        self.denoiser = Denoiser(
            _network(network, self.event_shape, hidden, learned_scale, width, dict(options or {})),
            self.event_shape,
            prediction_type=prediction_type,
            sigma_data=sigma_data,
            learned_scale=learned_scale,
            by_noise_fraction=by_noise_fraction,
        )

    @classmethod
    def data_form(cls, options: Mapping[str, Any]) -> str:
        """The model scores gray levels where the data have them, whatever the options are."""
        return "levels"

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Whether the data are what this model expects; looks at every value, so call it once a data set.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (n, *event_shape), not finite, of integers without levels or of other levels; y is
                missing, not wanted, or no label.
        """
        check_event_shape(x, self.event_shape)
        if self.levels is not None:
            check_levels(x, self.levels, f"the support of a model of levels={self.levels}")
        elif not x.is_floating_point():
            raise ValueError(f"a density has no bound on integers, got {x.dtype}; build the model with their levels")
        else:
            check_support(x, x.isfinite(), "finite numbers", "drop or impute the rest")
        self._check_labels(y, x.shape[:1])

    def _check_labels(self, y: Tensor | None, shape: torch.Size) -> None:
        if self.context_dim:
            if y is None or tuple(y.shape) != (*shape, self.context_dim):
                got = "none" if y is None else tuple(y.shape)
                raise ValueError(f"expected contexts y of shape {(*shape, self.context_dim)}, got {got}")
        else:
            check_labels(y, shape, self.num_classes)

    def _context(self, y: Tensor | None) -> Tensor | None:
        if self.context_dim and y is not None:
            return y.to(self._dtype)
        return one_hot(y, self.num_classes, self._dtype)

    def _dropped(self, context: Tensor | None) -> Tensor | None:
        """The context, in training left out of some rows: zeros stand for none."""
        if context is None or not self.training or not self.label_dropout:
            return context
        return context * (torch.rand_like(context[:, :1]) >= self.label_dropout)

    def _scaled(self, x: Tensor) -> Tensor:
        """v: the data as the chain has them."""
        v = x.to(self._dtype)
        return v if self.levels is None else 2 * v / (self.levels - 1) - 1

    def _unscaled(self, v: Tensor) -> Tensor:
        """The data that v stands for."""
        return v if self.levels is None else self._real(v).round().clamp(0, self.levels - 1).long()

    def _real(self, v: Tensor) -> Tensor:
        """The same before levels are rounded."""
        return v if self.levels is None else (v + 1) / 2 * (self.levels - 1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype


def _network(
    network: str | nn.Module | None,
    event_shape: tuple[int, ...],
    hidden: Sequence[int] | None,
    twice: bool,
    context_dim: int,
    options: dict[str, Any],
) -> nn.Module:
    """The network of a denoiser."""
    if isinstance(network, nn.Module):
        if hidden is not None or options:
            raise ValueError(f"hidden and options are those of a network by name, got a module and {hidden}, {options}")
        return network
    images = len(event_shape) == 3
    name = ("unet" if images else "dense") if network is None else network
    make = lookup({"dense": ResidualDense, "unet": UNet}, name, option="network")
    first, *rest = event_shape
    out: Any = (2 * first if twice else first, *rest) if make is ResidualDense else (2 * first if twice else first)
    given = options | ({} if hidden is None else {"hidden": tuple(hidden)})
    width = Denoiser.level_dim + context_dim
    try:
        return make(event_shape, out, context_dim=width, **given)
    except TypeError as error:
        raise ValueError(f"network={name!r} has no such option: {error}") from error
