"""Metrics that compare all pairs of rows: maximum mean discrepancy and the energy distance.

Both are one quadratic form. With ``X, X'`` independent draws of ``P``, ``Y, Y'`` of ``Q`` and a similarity
``k``,

    D = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),

where each expectation is a weighted mean over pairs of rows. The biased estimate (a V-statistic) takes all
pairs, ``E k(X, X') = sum_ij p_i p_j k(x_i, x_j)``, and is zero where the samples are equal. The unbiased one
(a U-statistic) leaves out a row's pair with itself,

    E k(X, X') = sum_{i != j} p_i p_j k(x_i, x_j) / (1 - sum_i p_i^2),

and may be negative. At uniform weights they are ``MMD_b^2`` and ``MMD_u^2`` (Lemma 6) of Gretton et al.
2012, "A kernel two-sample test".

Time grows as ``(n + m)^2``, memory only as ``n + m``: see :mod:`ppgen.metrics.pairs`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.metric import Metric
from ppgen.metrics.pairs import Block, at_once, pair_blocks, sum_over_pairs

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
        blocks = pair_blocks(x, y, p, q)
        unit = self.unit(blocks)

        def part(block: Block) -> Tensor:
            return (self._weights(block) * self.similarity(block.distances() / unit)).sum()

        if not at_once(blocks) and self.similarity(x.new_ones(1)).requires_grad:
            raise ValueError(
                f"{self.name}: a kernel with parameters of its own takes all pairs at once, got {n} "
                f"rows of x and {m} of y, too many for that; use smaller batches"
            )
        return sum_over_pairs(part, x, y, p, q)

    @abstractmethod
    def similarity(self, d2: Tensor) -> Tensor:
        """``k``, elementwise in the squared distances, which come divided by :meth:`unit`."""

    def unit(self, blocks: list[Block]) -> Tensor | float:
        """The squared distance that counts as one, given all pairs."""
        return 1.0

    def _weights(self, block: Block) -> Tensor:
        """Weights of the pairs; over all pairs of a sample with itself they sum to one."""
        r, s, start = block.r, block.s, block.start
        every = torch.outer(r, s)
        if start is None:
            return -2 * every
        if not self.unbiased:
            return every
        distinct = 2 * (s[1:] * s.cumsum(0)[:-1]).sum()
        rows = torch.arange(start, start + len(r), device=r.device)
        itself = rows[:, None] == torch.arange(len(s), device=r.device)
        return torch.where(
            distinct > 0, torch.where(itself, 0.0, every) / torch.where(distinct > 0, distinct, 1.0), every
        )


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

    def unit(self, blocks: list[Block]) -> Tensor | float:
        return median_squared_distance(blocks) if isinstance(self.bandwidth, str) else self.bandwidth**2

    def similarity(self, d2: Tensor) -> Tensor:
        kernel = self.kernel if callable(self.kernel) else KERNELS[self.kernel]
        return torch.stack([kernel(d2 / a**2) for a in self.scales]).mean(0)


@dataclass(kw_only=True, eq=False, repr=False)
class EnergyDistance(PairMetric):
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

    def similarity(self, d2: Tensor) -> Tensor:
        return -distance_power(d2, self.exponent)


def distance_power(d2: Tensor, exponent: float) -> Tensor:
    """``|x - y|^b`` of squared distances; where they are zero and the gradient may not exist, zero stands for it."""
    if exponent == 2:
        return d2
    # Two wheres, so that no infinite slope at zero meets a zero and turns into NaN.
    same = d2 == 0
    return torch.where(same, 0.0, torch.where(same, 1.0, d2) ** (exponent / 2))


@torch.no_grad()
def median_squared_distance(blocks: list[Block]) -> Tensor:
    """Lower median of the positive squared distances under the products of weights; one if none is positive.

    The blocks hold the pairs of a sample with itself twice, as ``(i, j)`` and ``(j, i)``, those of two samples
    once. A histogram finds the bin that holds the median, whose largest distance is returned: exact where a bin
    holds one value. Bins are equal in the logarithm, so that outliers cost no resolution.
    """
    bins = 4096

    def pairs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for block in blocks:
            d2 = block.distances().flatten()
            mass = torch.outer(block.r, block.s if block.start is not None else 2 * block.s).flatten()
            mass = torch.where(d2 > 0, mass, 0.0)
            # A pair without mass sits at one, where it has a logarithm and weighs nothing.
            d2 = torch.where(mass > 0, d2, 1.0)
            yield d2, d2.log(), mass

    whole = list(pairs()) if at_once(blocks) else None

    def slots() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for d2, log, mass in whole or pairs():
            yield d2, ((log - low) * per_log).long(), mass

    # Running extremes and sums: a list with an entry a block would lie between the blocks' memory.
    low, high = blocks[0].a.new_full((), math.inf), blocks[0].a.new_full((), -math.inf)
    for _, log, _ in whole or pairs():
        low, high = torch.minimum(low, log.amin()), torch.maximum(high, log.amax())
    per_log = bins / torch.where(high > low, high - low, 1.0)
    histogram = low.new_zeros(bins + 1)
    for _, slot, mass in slots():
        histogram = histogram.scatter_add(0, slot, mass)
    below = histogram.cumsum(0)
    # Just under one half, so that rounding cannot decide between the two middle distances of an even number.
    middle = (below < (0.5 - 1e-5) * below[-1]).sum()
    median = torch.zeros_like(low)
    for d2, slot, _ in slots():
        median = torch.maximum(median, torch.where(slot <= middle, d2, 0.0).amax())
    return median


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
