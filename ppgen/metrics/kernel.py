"""Metrics that compare all pairs of rows: maximum mean discrepancy and the energy distance.

Both are one quadratic form. With ``X, X'`` independent draws from ``P``, ``Y, Y'`` from ``Q`` and a similarity ``k``,

    D = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),

where each expectation is a weighted mean over pairs of rows. The biased estimate (a V-statistic) uses all pairs,
``E k(X, X') = sum_ij p_i p_j k(x_i, x_j)``, and is zero if the samples are equal. The unbiased estimate (a U-statistic)
leaves out the pair of a row with itself,

    E k(X, X') = sum_{i != j} p_i p_j k(x_i, x_j) / (1 - sum_i p_i^2),

and may be negative. With uniform weights the two are ``MMD_b^2`` and ``MMD_u^2`` (Lemma 6) of Gretton et al. 2012, "A
kernel two-sample test" (https://jmlr.org/papers/v13/gretton12a.html).

Time grows as ``(n + m)^2``, memory only as ``n + m``: see :mod:`ppgen.metrics.pairs`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.metrics.checks import check_positive
from ppgen.metrics.metric import Metric
from ppgen.metrics.pairs import PairBlock, fit_in_memory, pair_blocks, sum_over_pairs

__all__ = ["KERNELS", "MMD", "EnergyDistance", "PairMetric", "distance_power", "median_squared_distance"]

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda u: torch.exp(-u / 2),
    "imq": lambda u: 2 / (2 + u),
}
"""Kernels as functions of ``u = |x - y|^2 / s^2``, the squared distance in units of the squared bandwidth ``s^2``."""


@dataclass(kw_only=True, eq=False, repr=False)
class PairMetric(Metric):
    """The quadratic form of the module's docstring; a subclass defines the similarity ``k``.

    Args:
        unbiased: Whether to use the unbiased estimate, which needs two rows of each sample. If weights leave a sample
            only one row, it has no pairs, and the row represents a point mass: ``E k(X, X') = k(x, x)``.

    Raises:
        ValueError: On a call, if the unbiased estimate gets fewer than two rows, or if a kernel with parameters of its
            own gets more pairs than fit in memory.
    """

    unbiased: bool = True

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The weighted sum of similarities over all pairs."""
        n, m = x.shape[0], y.shape[0]
        if self.unbiased and min(n, m) < 2:
            raise ValueError(
                f"{self.name}: the unbiased estimate needs at least two rows of each sample, got {n} of x "
                f"and {m} of y; use a larger batch or unbiased=False"
            )
        blocks = pair_blocks(x, y, p, q)
        unit = self.unit(blocks)

        def block_sum(block: PairBlock) -> Tensor:
            return (self._pair_weights(block) * self.similarity(block.squared_distances() / unit)).sum()

        if not fit_in_memory(blocks) and self.similarity(x.new_ones(1)).requires_grad:
            raise ValueError(
                f"{self.name}: a kernel with parameters of its own needs all pairs in memory at once, got {n} "
                f"rows of x and {m} of y, which are too many; use smaller batches"
            )
        return sum_over_pairs(block_sum, x, y, p, q)

    @abstractmethod
    def similarity(self, d2: Tensor) -> Tensor:
        """The similarity ``k``, elementwise.

        Args:
            d2: Squared distances divided by :meth:`unit`.
        """

    def unit(self, blocks: list[PairBlock]) -> Tensor | float:
        """The squared distance by which squared distances are divided.

        Args:
            blocks: All pairs of rows.
        """
        return 1.0

    def _pair_weights(self, block: PairBlock) -> Tensor:
        """The weights of the pairs. Over all pairs of a sample with itself they sum to one."""
        r, s, start = block.r, block.s, block.start
        product = torch.outer(r, s)
        if start is None:
            return -2 * product
        if not self.unbiased:
            return product
        distinct = 2 * (s[1:] * s.cumsum(0)[:-1]).sum()
        index = torch.arange(start, start + len(r), device=r.device)
        diagonal = index[:, None] == torch.arange(len(s), device=r.device)
        normalized = torch.where(diagonal, 0.0, product) / torch.where(distinct > 0, distinct, 1.0)
        return torch.where(distinct > 0, normalized, product)


@dataclass(kw_only=True, eq=False, repr=False)
class MMD(PairMetric):
    """Squared maximum mean discrepancy, averaged over kernels of several bandwidths.

    ``k(x, y) = mean_a kernel(|x - y|^2 / (a sigma)^2)`` over the multipliers ``a`` in ``scales``. Gretton et al. 2012,
    https://jmlr.org/papers/v13/gretton12a.html.

    Args:
        kernel: With ``s = a sigma``, ``"rbf"`` is ``exp(-|x - y|^2 / (2 s^2))`` and ``"imq"`` is
            ``C / (C + |x - y|^2)`` with ``C = 2 s^2``. A function gets ``|x - y|^2 / s^2``, which is the plain squared
            distance if ``bandwidth=1, scales=(1,)``. Wasserstein autoencoders
            (https://arxiv.org/abs/1711.01558, section 4) use ``"imq"`` with ``C = 2 d sigma_z^2`` for a prior of
            standard deviation ``sigma_z``, which is ``bandwidth=sigma_z * sqrt(d), scales=(1,)``.
        scales: The multipliers ``a``.
        bandwidth: ``sigma``, or ``"median"`` for the median of ``|z - z'|`` over draws ``z != z'`` from the pooled
            distribution ``(P + Q) / 2``. No gradient passes through the median. It is over all pairs at every sample
            size; a histogram of log distances replaces the sort, so its relative error is at most a 4096th of the
            range of log distances. If all rows coincide, any bandwidth gives the same value, and ``sigma`` is one.
        unbiased: See :class:`PairMetric`. A median bandwidth depends on the sample, so the estimate then has mean zero
            for ``P = Q`` but a slight bias otherwise.

    Raises:
        ValueError: If the kernel is unknown, or if scales or the bandwidth are not positive.

    Example:
        >>> import torch
        >>> from ppgen import metrics
        >>> x, y = torch.randn(100, 2), torch.randn(100, 2)
        >>> mmd = metrics.MMD(kernel="imq")
        >>> bool(mmd(x, y + 1) > mmd(x, y))
        True
    """

    title = "MMD²"

    kernel: str | Callable[[Tensor], Tensor] = "rbf"
    scales: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0)
    bandwidth: str | float = "median"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scales = tuple(self.scales)
        if not callable(self.kernel) and self.kernel not in KERNELS:
            raise ValueError(f"kernel: expected one of {list(KERNELS)} or a function, got {self.kernel!r}")
        if not self.scales:
            raise ValueError("scales: expected at least one positive number, got ()")
        for scale in self.scales:
            check_positive("scales", scale, "positive numbers")
        if self.bandwidth != "median":
            check_positive("bandwidth", self.bandwidth, "'median' or a positive number")

    def unit(self, blocks: list[PairBlock]) -> Tensor | float:
        """The squared bandwidth ``sigma^2``."""
        return median_squared_distance(blocks) if isinstance(self.bandwidth, str) else self.bandwidth**2

    def similarity(self, d2: Tensor) -> Tensor:
        """The mean of the kernel over all scales."""
        kernel = self.kernel if callable(self.kernel) else KERNELS[self.kernel]
        return torch.stack([kernel(d2 / a**2) for a in self.scales]).mean(0)


@dataclass(kw_only=True, eq=False, repr=False)
class EnergyDistance(PairMetric):
    """Energy distance ``2 E|X - Y|^b - E|X - X'|^b - E|Y - Y'|^b``.

    It is zero only for equal distributions. It has no bandwidth: if the data are multiplied by ``c``, it is multiplied
    by ``c^b``. No root is taken. If two rows coincide and the gradient of ``|x - y|^b`` does not exist, zero is used.
    Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.

    Args:
        exponent: ``b``, between 0 and 2, both excluded.

    Raises:
        ValueError: If the exponent is out of range.

    Example:
        >>> import torch
        >>> from ppgen import metrics
        >>> metrics.EnergyDistance()(torch.zeros(3, 1), torch.ones(3, 1))
        tensor(2.)
    """

    title = "energy distance"

    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.exponent < 2:
            raise ValueError(f"exponent: expected a number between 0 and 2, both excluded, got {self.exponent}")

    def similarity(self, d2: Tensor) -> Tensor:
        """``-|x - y|^b``."""
        return -distance_power(d2, self.exponent)


def distance_power(d2: Tensor, exponent: float) -> Tensor:
    """``|x - y|^b`` from squared distances. If they are zero, where the gradient may not exist, the gradient is zero.

    Args:
        d2: Squared distances.
        exponent: ``b``.
    """
    if exponent == 2:
        return d2
    # Two calls of where, so that the infinite derivative at zero is never multiplied by zero, which would give NaN.
    same = d2 == 0
    return torch.where(same, 0.0, torch.where(same, 1.0, d2) ** (exponent / 2))


@torch.no_grad()
def median_squared_distance(blocks: list[PairBlock]) -> Tensor:
    """The lower weighted median of the positive squared distances; one if none is positive.

    A pair has the product of its rows' weights. A histogram finds the bin that contains the median, and the largest
    distance in that bin is returned, which is exact if the bin contains one value. The bins are equal on a logarithmic
    scale, so that outliers cost no resolution.

    Args:
        blocks: The pairs of a sample with itself twice, as ``(i, j)`` and ``(j, i)``, and those of two samples once.
    """
    bins = 4096

    def pairs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for block in blocks:
            d2 = block.squared_distances().flatten()
            mass = torch.outer(block.r, block.s if block.start is not None else 2 * block.s).flatten()
            mass = torch.where(d2 > 0, mass, 0.0)
            # A pair without mass gets distance one, where the logarithm is finite.
            d2 = torch.where(mass > 0, d2, 1.0)
            yield d2, d2.log(), mass

    in_memory = list(pairs()) if fit_in_memory(blocks) else None

    def binned() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for d2, log, mass in in_memory or pairs():
            yield d2, ((log - low) * bins_per_log).long(), mass

    # Running extremes and sums: a list with one small entry per block would fragment the memory between the blocks.
    low, high = blocks[0].a.new_full((), math.inf), blocks[0].a.new_full((), -math.inf)
    for _, log, _ in in_memory or pairs():
        low, high = torch.minimum(low, log.amin()), torch.maximum(high, log.amax())
    bins_per_log = bins / torch.where(high > low, high - low, 1.0)
    histogram = low.new_zeros(bins + 1)
    for _, index, mass in binned():
        histogram = histogram.scatter_add(0, index, mass)
    cumulative = histogram.cumsum(0)
    # Slightly less than one half, so that rounding cannot decide between the two middle distances of an even number.
    middle = (cumulative < (0.5 - 1e-5) * cumulative[-1]).sum()
    median = torch.zeros_like(low)
    for d2, index, _ in binned():
        median = torch.maximum(median, torch.where(index <= middle, d2, 0.0).amax())
    return median
