"""What every metric shares: two weighted samples in, one differentiable number out.

Throughout this package ``x_1 .. x_n`` are rows drawn from a law ``P`` and ``y_1 .. y_m`` rows drawn from a
law ``Q``, each row a flattened event of ``d`` numbers. Rows carry non-negative weights ``p_i`` and ``q_j``,
which each sum to one. ``D`` is the number that a metric returns, and ``|.|`` is the Euclidean norm. Nothing
on the way from samples to ``D`` reads a value back into Python, so that shapes stay static and a step that
holds a metric can be traced once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor, nn

Sample: TypeAlias = Tensor | Sequence[Tensor]
"""Rows of one site ``(n, *event)``, or a tuple of such tensors with the same ``n`` for joined sites."""


@dataclass(kw_only=True, eq=False, repr=False)
class Metric(ABC):
    """How far apart two laws are, estimated from a weighted sample of each.

    ``metric(x, y, wx=None, wy=None)`` returns a scalar tensor of the samples' dtype, differentiable in both.

    - ``x`` ``(n, *event)`` and ``y`` ``(m, *event)``, or tuples for joint laws: see :func:`rows`.
    - ``wx`` ``(n,)`` and ``wy`` ``(m,)`` are non-negative weights of any scale; ``None`` is uniform. A row of
      weight zero reaches neither the value nor a gradient, whatever it holds, NaN included. Where one
      sample's weights are all zero there is nothing to compare, and the value and its gradients are zero.

    A subclass is a dataclass of its options, decorated as this class is, and implements :meth:`estimate`.
    ``name`` labels the metric in reports and is the class name unless given.

    Raises ``ValueError`` where the samples do not pair up or the weights do not fit them.
    """

    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.label

    @property
    def label(self) -> str:
        """The name of a metric that was given none."""
        return type(self).__name__

    def __call__(self, x: Sample, y: Sample, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        x, y = rows(x, name="x"), rows(y, name="y")
        if x.shape[1] != y.shape[1] or x.dtype != y.dtype:
            raise ValueError(
                f"{self.name}: x and y must have rows of the same width and dtype, got {tuple(x.shape)} of "
                f"{x.dtype} and {tuple(y.shape)} of {y.dtype} once flattened; reshape or convert one of them"
            )
        x, p, some_x = _weighted(x, wx, "wx")
        y, q, some_y = _weighted(y, wy, "wy")
        return torch.where(some_x & some_y, self.estimate(x, y, p, q), 0.0)

    @abstractmethod
    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """``D``, a scalar, of rows ``x`` ``(n, d)`` and ``y`` ``(m, d)`` with weights ``p`` and ``q``."""

    def __repr__(self) -> str:
        """The constructor call, with the options that differ from their defaults."""
        default = {field.name: field.default for field in fields(self)} | {"name": self.label}
        options = {name: getattr(self, name) for name in default}
        given = [f"{name}={_text(value)}" for name, value in options.items() if value != default[name]]
        return f"{type(self).__name__}({', '.join(given)})"


def rows(sample: Sample, *, name: str = "sample") -> Tensor:
    """Events flattened to rows ``(n, d)``; the tensors of a tuple are flattened and concatenated.

    Raises as :func:`sites_of` does.
    """
    return torch.cat([site.unsqueeze(-1).flatten(1) for site in sites_of(sample, name=name)], dim=1)


def sites_of(sample: Sample, *, name: str = "sample") -> tuple[Tensor, ...]:
    """The tensors of a sample, ``(n, *event)`` each, brought to one dtype.

    Raises ``ValueError``, naming the sample ``name``, where there is no row, where the tensors of a tuple
    disagree in ``n``, or where that dtype is not floating point; ``TypeError`` where a site is not a tensor.
    """
    sites = [sample] if isinstance(sample, Tensor) else list(sample)
    if odd := {type(site).__name__ for site in sites if not isinstance(site, Tensor)}:
        raise TypeError(f"{name}: expected a tensor or a tuple of them, got {type(sample).__name__} of {odd}")
    shapes = [tuple(site.shape) for site in sites]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"{name}: expected rows (n, *event) with one n >= 1 at every site, got {shapes}")
    dtype = reduce(torch.promote_types, (site.dtype for site in sites))
    if not dtype.is_floating_point:
        raise ValueError(f"{name}: expected floating-point events, got {dtype} {shapes}; use .float()")
    return tuple(site.to(dtype) for site in sites)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|^2`` as ``(n, m)``, by the Gram form ``|x|^2 + |y|^2 - 2 x.y`` about the common center.

    The Gram form is one matrix product, where differences take ``n m d`` memory. Centering keeps its rounding
    error relative to the samples' own extent, wherever the origin lies. A value within that error, of order
    ``sqrt(d)`` units in the last place of ``|x|^2 + |y|^2``, becomes zero, so that coincident rows are at
    distance zero exactly; products are taken to have full precision, which TF32 has not. The derivatives are
    always those of the Gram form, which is smooth.
    """
    center = torch.cat((x, y)).detach().mean(0)
    x, y = x - center, y - center
    size = x.square().sum(1)[:, None] + y.square().sum(1)
    gram = size - 2 * x @ y.T
    error = torch.finfo(x.dtype).eps * (1 + math.sqrt(x.shape[1])) * size
    return gram + (torch.where(gram <= error, 0.0, gram) - gram).detach()


def _weighted(x: Tensor, weights: Tensor | None, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their weights normalized to sum to one, and whether any weight is positive.

    Rows of weight zero move to the mean of the others, where they distort nothing and hold no gradient.
    """
    if weights is None:
        weights = x.new_ones(x.shape[0])
    if weights.shape != x.shape[:1]:
        raise ValueError(f"{name}: expected a weight a row, ({x.shape[0]},), got {tuple(weights.shape)}")
    weights = weights.to(x)
    present = (weights > 0)[:, None]
    some = present.any()
    weights = torch.where(some, weights, 1.0)
    p = weights / weights.sum()
    x = torch.where(present, x, 0.0)
    return torch.where(present, x, (p @ x).detach()), p, some


def _text(value: object) -> str:
    if isinstance(value, nn.Module):
        return type(value).__name__
    return getattr(value, "__name__", None) or repr(value)
