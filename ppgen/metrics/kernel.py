"""Metrics that compare all pairs of rows: maximum mean discrepancy and the energy distance.

Both are one quadratic form. With ``X, X'`` independent draws of ``P``, ``Y, Y'`` of ``Q`` and a similarity
``k``,

    D = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),

where each expectation is a weighted mean over pairs of rows. The biased estimate (a V-statistic) takes all
pairs, ``E k(X, X') = sum_ij p_i p_j k(x_i, x_j)``, and is zero where the samples are equal. The unbiased one
(a U-statistic) leaves out a row's pair with itself,

    E k(X, X') = sum_{i != j} p_i p_j k(x_i, x_j) / (1 - sum_i p_i^2),

and may be negative. At uniform weights they are ``MMD_b^2`` and ``MMD_u^2`` (Lemma 6) of Gretton et al.
2012, "A kernel two-sample test". Time and memory grow as ``(n + m)^2``.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.metric import Metric, squared_distances

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda u: torch.exp(-u / 2),
    "imq": lambda u: 2 / (2 + u),
}
"""Kernels as functions of ``u = |x - y|^2 / s^2``, the squared distance in units of the squared bandwidth."""


@dataclass(kw_only=True, eq=False, repr=False)
class PairMetric(Metric):
    """The quadratic form above; a subclass says what ``k`` is.

    ``unbiased=True`` needs two rows of each sample and raises ``ValueError`` with fewer. Where weights leave
    a sample only one row it has no pair, and that row stands for a point mass: ``E k(X, X') = k(x, x)``.
    """

    unbiased: bool = True

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        n, m = x.shape[0], y.shape[0]
        if self.unbiased and min(n, m) < 2:
            raise ValueError(
                f"{self.name}: the unbiased estimate needs at least two rows of each sample, got {n} of x "
                f"and {m} of y; use a larger batch or unbiased=False"
            )
        d2 = _blocks(squared_distances(x, x), squared_distances(x, y), squared_distances(y, y))
        signed = _blocks(self._own_pairs(p), -torch.outer(p, q), self._own_pairs(q))
        return (signed * self.similarity(d2, torch.cat((p, q)) / 2)).sum()

    @abstractmethod
    def similarity(self, d2: Tensor, r: Tensor) -> Tensor:
        """``k``, elementwise in the squared distances ``d2`` of the pooled rows, whose weights are ``r``."""

    def _own_pairs(self, p: Tensor) -> Tensor:
        """Weights of a sample's pairs with itself, summing to one."""
        every = torch.outer(p, p)
        if not self.unbiased:
            return every
        distinct = every - torch.diag(p * p)
        total = distinct.sum()
        return torch.where(total > 0, distinct / torch.where(total > 0, total, 1.0), every)


@dataclass(kw_only=True, eq=False, repr=False)
class MMD(PairMetric):
    """Squared maximum mean discrepancy (Gretton et al. 2012), averaged over kernels of several bandwidths.

    ``k(x, y) = mean_a kernel(|x - y|^2 / (a sigma)^2)`` over the multipliers ``a`` in ``scales``.

    - ``kernel``: with ``s = a sigma``, ``"rbf"`` is ``exp(-|x - y|^2 / (2 s^2))`` and ``"imq"`` is
      ``C / (C + |x - y|^2)`` with ``C = 2 s^2``; or a function of ``|x - y|^2 / s^2``, which is the plain
      squared distance at ``bandwidth=1, scales=(1,)``. Wasserstein autoencoders (Tolstikhin et al. 2018,
      section 4) take ``"imq"`` with ``C = 2 d sigma_z^2`` for a prior of scale ``sigma_z``, which is
      ``bandwidth=sigma_z * sqrt(d), scales=(1,)``.
    - ``bandwidth``: ``sigma``, or ``"median"`` for the median of ``|z - z'|`` over draws ``z != z'`` of the
      pooled law ``(P + Q) / 2``. No gradient passes through it. All pairs count at every sample size; a
      histogram of log distances stands in for the sort, so the median is right to a 4096th of their range.
      Where all rows coincide the bandwidth does not matter, and ``sigma`` is one.
    - ``unbiased``: see the module and :class:`PairMetric`. A median bandwidth depends on the sample, so that
      the estimate then has mean zero for ``P = Q`` but a slight bias elsewhere.

    Raises ``ValueError`` for an unknown kernel and for scales or a bandwidth that are not positive.
    """

    kernel: str | Callable[[Tensor], Tensor] = "rbf"
    scales: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0)
    bandwidth: str | float = "median"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scales = tuple(self.scales)
        if not callable(self.kernel) and self.kernel not in KERNELS:
            raise ValueError(f"kernel: expected one of {list(KERNELS)} or a function, got {self.kernel!r}")
        if not self.scales or not all(_positive(a) for a in self.scales):
            raise ValueError(f"scales: expected one or more positive numbers, got {self.scales}")
        if self.bandwidth != "median" and not _positive(self.bandwidth):
            raise ValueError(f"bandwidth: expected 'median' or a positive number, got {self.bandwidth!r}")

    def similarity(self, d2: Tensor, r: Tensor) -> Tensor:
        kernel = self.kernel if callable(self.kernel) else KERNELS[self.kernel]
        if isinstance(self.bandwidth, str):
            u = d2 / median_squared_distance(d2.detach(), r.detach())
        else:
            u = d2 / self.bandwidth**2
        return torch.stack([kernel(u / a**2) for a in self.scales]).mean(0)


@dataclass(kw_only=True, eq=False, repr=False)
class Energy(PairMetric):
    """Energy distance ``2 E|X - Y|^b - E|X - X'|^b - E|Y - Y'|^b`` (Székely and Rizzo 2013).

    Zero only for equal laws, at any ``exponent`` ``b`` between 0 and 2, both excluded. It has no bandwidth:
    scaling the data by ``c`` scales it by ``c^b``. No root is taken. Where two rows coincide and the gradient
    of ``|x - y|^b`` does not exist, zero stands for it.

    Raises ``ValueError`` for an exponent out of range.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.exponent < 2:
            raise ValueError(f"exponent: expected a number between 0 and 2, excluded, got {self.exponent}")

    def similarity(self, d2: Tensor, r: Tensor) -> Tensor:
        # Two wheres, so that no infinite slope at zero meets a zero and turns into NaN.
        same = d2 == 0
        return -torch.where(same, 0.0, torch.where(same, 1.0, d2) ** (self.exponent / 2))


def median_squared_distance(d2: Tensor, r: Tensor) -> Tensor:
    """Lower median of the positive entries of ``d2`` ``(N, N)`` under weights ``r_i r_j``; one if none is.

    A histogram finds the bin that holds the median and its largest entry is returned: exact where a bin holds
    one value. Bins are equal in the logarithm, so that outliers cost no resolution.
    """
    bins = 4096
    mass = torch.where(d2 > 0, torch.outer(r, r), 0.0).flatten()
    # A pair without mass sits at one, where it has a logarithm and weighs nothing.
    d2 = torch.where(mass > 0, d2.flatten(), 1.0)
    low, high = d2.log().aminmax()
    slot = ((d2.log() - low) * (bins / torch.where(high > low, high - low, 1.0))).long()
    below = mass.new_zeros(bins + 1).scatter_add(0, slot, mass).cumsum(0)
    # Just under one half, so that rounding cannot decide between the two middle distances of an even number.
    middle = (below < (0.5 - 1e-5) * below[-1]).sum()
    return torch.where(slot <= middle, d2, 0.0).amax()


def _blocks(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    return torch.cat((torch.cat((xx, xy), dim=1), torch.cat((xy.T, yy), dim=1)))


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
