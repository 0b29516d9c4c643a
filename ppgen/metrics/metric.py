"""The base class of all metrics: two weighted samples in, one differentiable number out.

Notation of this package: ``x_1 .. x_n`` are rows drawn from a distribution ``P`` and ``y_1 .. y_m`` are rows drawn
from a distribution ``Q``. A row is a flattened event of ``d`` numbers. Rows carry non-negative weights ``p_i`` and
``q_j``, and each set of weights sums to one. ``D`` is the value that a metric returns, and ``|.|`` is the Euclidean
norm. Between the samples and ``D`` no value is read back into Python, so shapes are static and a training step that
contains a metric can be traced once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Metric", "Sample", "SiteValues", "check_weights", "rows", "site_values", "squared_distances"]

Sample: TypeAlias = Tensor | Sequence[Tensor]
"""The values of one sample site ``(n, *event)``, or a tuple of the values of several sites, all with the same ``n``."""

SiteValues: TypeAlias = tuple[Tensor, ...]
"""The values of all sites of a sample, ``(n, *event)`` each, in one dtype."""


@dataclass(kw_only=True, eq=False, repr=False)
class Metric(ABC):
    """A distance or divergence between two distributions, estimated from a weighted sample of each.

    ``metric(x, y, wx=None, wy=None)`` returns a scalar tensor of the samples' dtype, differentiable in both samples.

    - ``x`` ``(n, *event)`` and ``y`` ``(m, *event)`` are tensors, or tuples of tensors for joint distributions: see
      :func:`rows`.
    - ``wx`` ``(n,)`` and ``wy`` ``(m,)`` are non-negative weights on any scale; ``None`` means uniform weights. A row
      of weight zero affects neither the value nor any gradient, whatever it contains, NaN included. If all weights of
      a sample are zero, there is nothing to compare, and the value and its gradients are zero.

    A subclass is a dataclass of its options, decorated as this class is, and implements :meth:`estimate`.

    Args:
        name: The metric's label in reports; by default the name of its class.

    Raises:
        ValueError: On a call, if the events of the samples differ or the weights do not fit the samples.
    """

    name: str = ""

    title: ClassVar[str | None] = None
    """The name of the metric's line in `ppgen.evaluation.summary`; None leaves the metric out of the summary."""

    def __post_init__(self) -> None:
        self.name = self.name or self.label

    @classmethod
    def for_summary(cls) -> Self:
        """The metric with the options that `ppgen.evaluation.summary` uses."""
        return cls()

    @property
    def label(self) -> str:
        """The default of ``name``."""
        return type(self).__name__

    def __call__(self, x: Sample, y: Sample, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        """D, a scalar: see the class."""
        x, y = rows(x, name="x"), rows(y, name="y")
        if x.shape[1] != y.shape[1] or x.dtype != y.dtype:
            raise ValueError(
                f"{self.name}: x and y must have rows of the same width and dtype, got {tuple(x.shape)} of "
                f"{x.dtype} and {tuple(y.shape)} of {y.dtype} once flattened; reshape or convert one of them"
            )
        x, p, any_x = _weighted_rows(x, wx, "wx")
        y, q, any_y = _weighted_rows(y, wy, "wy")
        return torch.where(any_x & any_y, self.estimate(x, y, p, q), 0.0)

    @abstractmethod
    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The value ``D``, a scalar.

        Args:
            x: Rows ``(n, d)`` of ``P``.
            y: Rows ``(m, d)`` of ``Q``.
            p: Weights ``(n,)`` of ``x`` that sum to one.
            q: Weights ``(m,)`` of ``y`` that sum to one.
        """

    def __repr__(self) -> str:
        """The constructor call, with the options that differ from their defaults."""
        default = {field.name: field.default for field in fields(self)} | {"name": self.label}
        options = {name: getattr(self, name) for name in default}
        given = [f"{name}={_text(value)}" for name, value in options.items() if value != default[name]]
        return f"{type(self).__name__}({', '.join(given)})"


def rows(sample: Sample, *, name: str = "sample") -> Tensor:
    """Flattens the events of a sample to rows ``(n, d)``. The tensors of a tuple are flattened and concatenated.

    Args:
        sample: A tensor or a tuple of tensors.
        name: The sample's name, for error messages.

    Raises:
        TypeError: As :func:`site_values`.
        ValueError: As :func:`site_values`.
    """
    return torch.cat([site.unsqueeze(-1).flatten(1) for site in site_values(sample, name=name)], dim=1)


def site_values(sample: Sample, *, name: str = "sample") -> SiteValues:
    """The tensors of a sample, ``(n, *event)`` each, converted to one dtype.

    Args:
        sample: A tensor or a tuple of tensors.
        name: The sample's name, for error messages.

    Raises:
        TypeError: If the value of a site is not a tensor.
        ValueError: If there are no rows, the numbers of rows differ, or the common dtype is not floating point.
    """
    sites = [sample] if isinstance(sample, Tensor) else list(sample)
    if wrong := {type(site).__name__ for site in sites if not isinstance(site, Tensor)}:
        raise TypeError(f"{name}: expected a tensor or a tuple of tensors, got {type(sample).__name__} of {wrong}")
    shapes = [tuple(site.shape) for site in sites]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"{name}: expected rows (n, *event) with the same n >= 1 at every site, got {shapes}")
    dtype = reduce(torch.promote_types, (site.dtype for site in sites))
    if not dtype.is_floating_point:
        raise ValueError(f"{name}: expected floating-point events, got {dtype} {shapes}; use .float()")
    return tuple(site.to(dtype) for site in sites)


def check_weights(weights: Tensor, x: Tensor, name: str) -> Tensor:
    """The weights in the dtype and on the device of the sample.

    Args:
        weights: The weights of the rows.
        x: The sample ``(n, ...)``.
        name: The name of the weights, for the error message.

    Raises:
        ValueError: If the weights do not have shape ``(n,)``.
    """
    if weights.shape != x.shape[:1]:
        raise ValueError(f"{name}: expected one weight per row, ({len(x)},), got {tuple(weights.shape)}")
    return weights.to(x)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|^2`` as ``(n, m)``, from the Gram form ``|x|^2 + |y|^2 - 2 x.y`` about the common center.

    The Gram form is one matrix product, whereas differences need ``n m d`` memory. Centering keeps the rounding error
    relative to the extent of the samples, wherever the origin lies. A value within that error, of order ``sqrt(d)``
    units in the last place of ``|x|^2 + |y|^2``, is set to zero, so that coincident rows have distance exactly zero.
    This assumes matrix products of full precision, not TF32. The derivatives are always those of the Gram form, which
    is smooth.

    Args:
        x: Rows ``(n, d)``.
        y: Rows ``(m, d)``.
    """
    center = torch.cat((x, y)).detach().mean(0)
    x, y = x - center, y - center
    size = x.square().sum(1)[:, None] + y.square().sum(1)
    gram = size - 2 * x @ y.T
    error = torch.finfo(x.dtype).eps * (1 + math.sqrt(x.shape[1])) * size
    return gram + (torch.where(gram <= error, 0.0, gram) - gram).detach()


def _weighted_rows(x: Tensor, weights: Tensor | None, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their weights normalized to sum to one, and whether any weight is positive.

    Rows of weight zero are replaced by the mean of the others, where they do not affect the extent of the sample and
    have no gradient.
    """
    weights = x.new_ones(len(x)) if weights is None else check_weights(weights, x, name)
    present = (weights > 0)[:, None]
    any_present = present.any()
    weights = torch.where(any_present, weights, 1.0)
    p = weights / weights.sum()
    x = torch.where(present, x, 0.0)
    return torch.where(present, x, (p @ x).detach()), p, any_present


def _text(value: object) -> str:
    if isinstance(value, nn.Module):
        return type(value).__name__
    return getattr(value, "__name__", None) or repr(value)
