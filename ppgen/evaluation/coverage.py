"""Coverage of data by a generator: n data x_1 .. x_n from P compared with m generated rows y_1 .. y_m from Q.

A row is an event, flattened to d numbers, and distances are Euclidean: standardize columns of different units first,
and use features of images rather than pixels. B(x, r) is the closed ball, r_k(x_i) the distance of datum x_i from its
k-th nearest among the other data, and r_k(y_j) that of y_j among the other generated rows. `mode_coverage` alone needs
to know where the modes are. All functions accept NumPy arrays and torch tensors, compute in double precision, and never
hold a matrix of all distances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree
from torch import Tensor

from ppgen.evaluation.two_sample import Rows, distance_blocks, flatten_samples, permute_labels

__all__ = ["Coverage", "Label", "ModeCoverage", "UncoveredData", "coverage", "mode_coverage", "uncovered_data"]

RADIUS_TOLERANCE = (
    1 + 1e-9
)  # of squared radii, so that a row on the surface of a ball counts as inside despite rounding


@dataclass(frozen=True)
class ModeCoverage:
    """Which modes are captured by generated rows: see `mode_coverage`.

    Attributes:
        captured: The number of captured modes.
        total: The number of modes K.
        high_quality: The share of rows of high quality.
        reverse_kl: KL(frequencies of the modes, uniform), in nats.
        counts: (K,), how many rows belong to each mode.
    """

    captured: int
    total: int
    high_quality: float
    reverse_kl: float
    counts: np.ndarray


def mode_coverage(generated: Rows, centers: Rows, *, sigma: float, radius: float = 3.0) -> ModeCoverage:
    """Modes captured by generated rows, if the data are an equal mixture of Gaussians N(mu_k, sigma^2 I), k = 1 .. K.

    A row belongs to its nearest center and is of high quality within `radius` * sigma of it. A mode is captured if it
    has at least one row of high quality. With f = counts / m,

        reverse_kl = KL(f, uniform) = sum_k f_k log(K f_k),

    where a mode without rows contributes 0: dropped modes show in the others being too frequent, and log K is the
    worst value. VEEGAN (Srivastava et al. 2017, https://arxiv.org/abs/1705.07761); PacGAN (Lin et al. 2018,
    https://arxiv.org/abs/1712.04086).

    Args:
        generated: Rows (m, *event).
        centers: The means mu_k, (K, *event).
        sigma: The standard deviation of each mode.
        radius: The radius of high quality, in standard deviations.

    Raises:
        TypeError: If an argument is not an array of real numbers.
        ValueError: If events differ in shape, values are not finite, or sigma or radius is not positive.

    Example:
        >>> from ppgen import data, evaluation
        >>> centers, sigma = data.modes("ring")
        >>> x, y = data.gaussians_ring(200)
        >>> found = evaluation.mode_coverage(x[y < 6], centers, sigma=sigma)
        >>> found.captured, found.total
        (6, 8)
    """
    rows, mu = flatten_samples(generated, centers, names=("generated", "centers"), least=1)
    for name, value in (("sigma", sigma), ("radius", radius)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a positive number, got {value}")
    distance, mode = KDTree(mu).query(rows)
    good = distance <= radius * sigma
    counts = np.bincount(mode, minlength=len(mu))
    return ModeCoverage(
        captured=len(np.unique(mode[good])),
        total=len(mu),
        high_quality=float(good.mean()),
        reverse_kl=float(stats.entropy(counts, np.ones(len(mu)))),
        counts=counts,
    )


@dataclass(frozen=True)
class Coverage:
    """Fidelity and diversity of generated rows: see `coverage`.

    Attributes:
        precision: Fidelity, from whether a row is inside any ball.
        recall: Diversity, from balls around generated rows.
        density: Fidelity, from how many balls a row is inside.
        coverage: Diversity, from balls around data.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(data: Rows, generated: Rows, *, k: int = 5) -> Coverage:
    """Precision, recall, density and coverage, from balls with k-th nearest neighbor distances as radii.

        precision = 1/m sum_j 1[y_j in B(x_i, r_k(x_i)) for some i]      generated rows near data
        recall    = 1/n sum_i 1[x_i in B(y_j, r_k(y_j)) for some j]      data near generated rows
        density   = 1/(k m) sum_j #{i: y_j in B(x_i, r_k(x_i))}          like precision, but counts all balls
        coverage  = 1/n sum_i 1[y_j in B(x_i, r_k(x_i)) for some j]      data with a generated row nearby

    The first two are from Kynkäänniemi et al. 2019 (https://arxiv.org/abs/1904.06991; they use k = 3), the others from
    Naeem et al. 2020 (https://arxiv.org/abs/2002.09797; k = 5). A generator that repeats one mode has high precision
    and low recall and coverage; one that adds noise has the reverse. For P = Q and distances without ties, E density =
    1 and E coverage = 1 - prod_{l < k} (n - 1 - l) / (n + m - 1 - l), about 1 - 2^-k for n = m. Density may exceed 1.
    Recall uses the balls of generated rows, which outliers make large.

    Args:
        data: Rows (n, *event).
        generated: Rows (m, *event).
        k: Which neighbor is used.

    Raises:
        TypeError: If an argument is not an array of real numbers.
        ValueError: If events differ in shape, values are not finite, or k is not from 1 to one less than the number of
            rows of either sample.
    """
    x, y = (torch.as_tensor(rows) for rows in flatten_samples(data, generated, names=("data", "generated")))
    n, m = len(x), len(y)
    if not 1 <= k < min(n, m):
        raise ValueError(f"k: expected 1 to {min(n, m) - 1}, below the number of rows ({n}, {m}), got {k}")
    radii_x, radii_y = _squared_radii(x, k), _squared_radii(y, k)
    balls = torch.zeros(m, dtype=torch.long)  # of data, that contain each generated row
    covered, recalled = 0, 0
    for block, d2 in distance_blocks(x, y):
        near = d2 <= radii_x[block, None]
        balls += near.sum(0)
        covered += int(near.any(1).sum())
        recalled += int((d2 <= radii_y).any(1).sum())
    return Coverage(
        precision=float((balls > 0).double().mean()),
        recall=recalled / n,
        density=float(balls.sum()) / (k * m),
        coverage=covered / n,
    )


@dataclass(frozen=True)
class Label:
    """How often one label is generated: a row of `UncoveredData.by_label`.

    Attributes:
        label: The label.
        count: The number of data with the label.
        expected: The share of held-out data whose nearest reference datum has the label.
        generated: The share of generated rows whose nearest reference datum has the label.
        flagged: The number of flagged data with the label.
        p_value: For "the label is generated often enough", after Holm's correction.
    """

    label: object
    count: int
    expected: float
    generated: float
    flagged: int
    p_value: float


@dataclass(frozen=True)
class UncoveredData:
    """Which data the generator does not cover: see `uncovered_data`.

    Attributes:
        order: (n,) indices of the data, least covered first.
        share: (n,) the share of generated rows among the neighbors of each datum, which is `expected` on average if
            P = Q.
        p_values: (n,) for "the generator covers this datum", adjusted for testing all data.
        flagged: Indices of the data with a p-value of at most the level, least covered first.
        k: The number of neighbors.
        expected: m / (n + m - 1).
        nearest: (n + m,) the reference datum nearest to each datum and generated row, for `by_label`. A random half of
            the data is the reference and has the value -1.
    """

    order: np.ndarray
    share: np.ndarray
    p_values: np.ndarray
    flagged: np.ndarray
    k: int
    expected: float
    nearest: np.ndarray

    def by_label(self, y: Sequence | np.ndarray | Tensor) -> list[Label]:
        """Which labels are generated too rarely: a row for each label, smallest p-value first.

        A row of either sample is assigned the label of the reference datum nearest to it. `Label.expected` is the share
        of the label in the other half of the data, and `Label.generated` its share in the generated rows. Since the
        reference is disjoint from both, the two shares have the same distribution if P = Q, however often the nearest
        label is wrong. The p-value is that of Fisher's exact test against a smaller share of generated rows, with
        Holm's correction for all labels.

        Args:
            y: The labels (n,) of the data.

        Raises:
            ValueError: If y is not (n,).
        """
        labels = np.asarray(y.numpy(force=True) if isinstance(y, Tensor) else y)
        n = len(self.share)
        if labels.shape != (n,):
            raise ValueError(f"y: expected one label per datum, ({n},), got {labels.shape}")
        names, index = np.unique(labels, return_inverse=True)
        nearest_to_data, nearest_to_generated = self.nearest[:n], self.nearest[n:]
        count, flagged, expected, generated = (
            np.bincount(index[rows], minlength=len(names))
            for rows in (slice(None), self.flagged, nearest_to_data[nearest_to_data >= 0], nearest_to_generated)
        )
        h, m = expected.sum(), generated.sum()
        p_values = _holm_correction(stats.hypergeom.cdf(generated, h + m, expected + generated, m))
        table = [
            Label(
                label=name,
                count=int(count[i]),
                expected=float(expected[i] / h),
                generated=float(generated[i] / m),
                flagged=int(flagged[i]),
                p_value=float(p_values[i]),
            )
            for i, name in enumerate(names.tolist())
        ]
        return sorted(table, key=lambda row: (row.p_value, row.generated - row.expected))


def uncovered_data(
    data: Rows,
    generated: Rows,
    *,
    k: int | None = None,
    level: float = 0.05,
    permutations: int = 200,
    seed: int = 0,
) -> UncoveredData:
    """Which data lie where the generator puts too little mass: a ranking, and the significant data.

    Pool all N = n + m rows. The neighbors of x_i are the other rows within the distance of its k-th nearest: k rows, or
    more if there are ties. The share s_i is that of generated rows among the neighbors. It is low where Q has less mass
    than P, and m / (N - 1) on average if P = Q. With B permutations of the labels, of which each has a smallest share
    t_b over its data,

        p_i = (1 + #{b: t_b <= s_i}) / (1 + B),

    so that for P = Q the probability that any datum is flagged is at most the level. Data are ranked by their share,
    and equal shares by the distance of the nearest generated row, largest first.

    The default k is the smallest for which a datum without generated neighbors passes Bonferroni's correction by a
    margin,

        n ((n - 1) / (N - 1))^k <= level / 4,

    about log2(4 n / level) for n = m: 17 for a thousand data. A separate part of the data that is never generated is
    then flagged if it has more than k rows. A larger k detects parts that are generated, but too rarely. With few
    generated rows the default k grows, up to N - 1, where nothing can be detected.

    Args:
        data: Rows (n, *event).
        generated: Rows (m, *event).
        k: The number of neighbors.
        level: The largest probability, for P = Q, that anything is flagged.
        permutations: B, at least 1 / level - 1.
        seed: The seed of the permutations and of the reference half of `UncoveredData.by_label`.

    Raises:
        TypeError: If an argument is not an array of real numbers.
        ValueError: If there are fewer than two rows, events differ in shape, values are not finite, the level is not
            between 0 and 1, there are too few permutations for it, or k is not from 1 to N - 1.

    Example:
        >>> from ppgen import data, evaluation
        >>> x, y = data.gaussians_ring(200)
        >>> generated, mode = data.gaussians_ring(200, seed=1)
        >>> found = evaluation.uncovered_data(x, generated[mode > 0])  # mode 0 is dropped
        >>> set(y[found.flagged].tolist())
        {0}
    """
    x, y = flatten_samples(data, generated, names=("data", "generated"))
    n, m = len(x), len(y)
    others = n + m - 1
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    if (1 + permutations) * level < 1:
        raise ValueError(
            f"permutations: a p-value of {level} needs at least {math.ceil(1 / level) - 1}, got {permutations}"
        )
    if k is None:
        k = min(others, math.ceil(math.log(level / (4 * n)) / math.log((n - 1) / others)))
    if not 1 <= k <= others:
        raise ValueError(f"k: expected 1 to {others}, below the number of pooled rows, got {k}")
    rng = np.random.default_rng(seed)
    is_data = permute_labels(n, m, permutations, rng)
    reference = np.sort(rng.permutation(n)[: n // 2])
    pooled = torch.as_tensor(np.concatenate([x, y]))
    observed, distance, nearest = np.empty(n + m), np.empty(n + m), np.empty(n + m, dtype=int)
    smallest = np.ones(permutations)
    for block, d2 in distance_blocks(pooled, pooled):
        d2.diagonal(block.start).fill_(torch.inf)
        radii = d2.kthvalue(k, dim=1, keepdim=True).values * RADIUS_TOLERANCE
        near = csr_matrix((d2 <= radii).numpy(), dtype=np.int64)
        share = near @ ~is_data / np.diff(near.indptr)[:, None]
        observed[block] = share[:, 0]
        smallest = np.minimum(smallest, np.where(is_data[block], share, 1.0).min(axis=0)[1:])
        distance[block] = d2[:, n:].amin(1)
        nearest[block] = reference[d2[:, reference].argmin(1)]
    nearest[reference] = -1
    share = observed[:n]
    p_values = (1 + np.searchsorted(np.sort(smallest), share, side="right")) / (1 + permutations)
    order = np.lexsort((-distance[:n], share))
    return UncoveredData(order, share, p_values, order[p_values[order] <= level], k, m / others, nearest)


def _squared_radii(x: Tensor, k: int) -> Tensor:
    """r_k(x_i)^2 of each row (n,), with a tolerance for rounding."""
    radii = torch.empty(len(x), dtype=x.dtype)
    for block, d2 in distance_blocks(x, x):
        d2.diagonal(block.start).fill_(torch.inf)
        radii[block] = d2.kthvalue(k, dim=1).values
    return radii * RADIUS_TOLERANCE


def _holm_correction(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the family-wise error rate (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return adjusted
