"""What a generator leaves out: n data x_1 .. x_n of a law P beside m generated rows y_1 .. y_m of a law Q.

Rows are events of d numbers once flattened, and near is Euclidean: standardize columns of different units first, and
images do better as features than as pixels. B(x, r) is the closed ball, r_k(x_i) the distance of datum x_i from its
k-th nearest among the other data, and r_k(y_j) that of y_j among the other generated rows. Of all functions here,
`mode_coverage` alone has to be told where the modes are. All take NumPy arrays or torch tensors, compute in double
precision, and hold no matrix of all distances.
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

from ppgen.evaluation.two_sample import Rows, blocks, deal, paired_rows

__all__ = ["Coverage", "Label", "ModeCoverage", "UncoveredData", "coverage", "mode_coverage", "uncovered_data"]

ROUNDING = 1 + 1e-9  # of squared radii: a row at the very edge is in the ball, however its distance was rounded


@dataclass(frozen=True)
class ModeCoverage:
    """How many of the `total` modes were `captured`, and how well: see `mode_coverage`. `reverse_kl` is in nats."""

    captured: int
    total: int
    high_quality: float
    reverse_kl: float
    counts: np.ndarray


def mode_coverage(generated: Rows, centers: Rows, *, sigma: float, radius: float = 3.0) -> ModeCoverage:
    """Modes captured by generated rows, where the data are equal Gaussians N(mu_k, sigma^2 I), k = 1 .. K.

    A row belongs to its nearest center and is of high quality within `radius` * sigma of it; `counts` (K,) tells how
    many belong to each. A mode is captured by one row of high quality. With f = counts / m,

        reverse_kl = KL(f, uniform) = sum_k f_k log(K f_k),

    where a mode without rows contributes 0: dropping modes shows as the rest being too frequent, and log K is the
    worst. VEEGAN (Srivastava et al. 2017); PacGAN (Lin et al. 2018).

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: for events that differ in shape, values that are not finite, or a sigma or radius that is not
            positive.
    """
    rows, mu = paired_rows(generated, centers, names=("generated", "centers"), least=1)
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
    """Fidelity (`precision`, `density`) and variety (`recall`, `coverage`) of generated rows: see `coverage`."""

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(data: Rows, generated: Rows, *, k: int = 5) -> Coverage:
    """Are generated rows like data, and is all of the data reached? By balls around k-th nearest neighbors.

        precision = 1/m sum_j 1[y_j in B(x_i, r_k(x_i)) for some i]           generated rows that are like data
        recall    = 1/n sum_i 1[x_i in B(y_j, r_k(y_j)) for some j]           data that are like generated rows
        density   = 1/(k m) sum_j #{i: y_j in B(x_i, r_k(x_i))}               as precision, and counts how often
        coverage  = 1/n sum_i 1[y_j in B(x_i, r_k(x_i)) for some j]           data that have a generated row near

    The first two are Kynkäänniemi et al. 2019 (who take k = 3), the others Naeem et al. 2020 (k = 5). A generator
    that repeats one mode has high precision and low recall and coverage; one that adds junk the reverse. For P = Q and
    distances without ties, E density = 1 and E coverage = 1 - prod_{l < k} (n - 1 - l) / (n + m - 1 - l), about
    1 - 2^-k for n = m. Density may exceed 1. Recall trusts the generated rows' balls, which junk makes large.

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: for events that differ in shape, values that are not finite, or a k that is not from 1 to one less
            than the rows of either sample.
    """
    x, y = (torch.as_tensor(rows) for rows in paired_rows(data, generated, names=("data", "generated")))
    n, m = len(x), len(y)
    if not 1 <= k < min(n, m):
        raise ValueError(f"k: expected 1 to {min(n, m) - 1}, below the number of rows ({n}, {m}), got {k}")
    around_x, around_y = _squared_radii(x, k), _squared_radii(y, k)
    balls = torch.zeros(m, dtype=torch.long)  # of data, that each generated row is in
    covered, recalled = 0, 0
    for block, d2 in blocks(x, y):
        near = d2 <= around_x[block, None]
        balls += near.sum(0)
        covered += int(near.any(1).sum())
        recalled += int((d2 <= around_y).any(1).sum())
    return Coverage(
        precision=float((balls > 0).double().mean()),
        recall=recalled / n,
        density=float(balls.sum()) / (k * m),
        coverage=covered / n,
    )


@dataclass(frozen=True)
class Label:
    """How often one label is generated: a row of `UncoveredData.by_label`."""

    label: object
    count: int
    expected: float
    generated: float
    flagged: int
    p_value: float


@dataclass(frozen=True)
class UncoveredData:
    """Which data the generator does not reach: see `uncovered_data`.

    order           (n,) indices of the data, least reached first
    share           (n,) share of generated rows around each datum, which is `expected` on average if P = Q
    p_values        (n,) for "the generator reaches this datum", adjusted for looking at all of them
    flagged         indices of the data with a p-value of at most the level, least reached first
    k, expected     neighbors looked at, and m / (n + m - 1)
    nearest         (n + m,) the reference datum nearest to each datum and generated row, for `by_label`; one half of
                    the data, drawn at random, is the reference and has -1
    """

    order: np.ndarray
    share: np.ndarray
    p_values: np.ndarray
    flagged: np.ndarray
    k: int
    expected: float
    nearest: np.ndarray

    def by_label(self, y: Sequence | np.ndarray | Tensor) -> list[Label]:
        """Which labels are generated too seldom, given the data's labels y (n,): a row a label, worst first.

        A row of either sample counts as the label of the reference datum nearest to it. `count` is how many data have
        the label; `expected` is the share of the other half of the data that counts as it and `generated` that of the
        generated rows; `flagged` is how many of its data are. Since the reference is apart from both, these two shares
        have one law if P = Q, however often the nearest label is wrong: the p-value is that of Fisher's exact test
        that the generated share is the lower one, after Holm's correction for all labels.

        Raises:
            ValueError: if y is not (n,).
        """
        labels = np.asarray(y.numpy(force=True) if isinstance(y, Tensor) else y)
        n = len(self.share)
        if labels.shape != (n,):
            raise ValueError(f"y: expected a label a datum, ({n},), got {labels.shape}")
        names, own = np.unique(labels, return_inverse=True)
        held, made = self.nearest[:n], self.nearest[n:]
        count, flagged, expected, generated = (
            np.bincount(own[which], minlength=len(names))
            for which in (slice(None), self.flagged, held[held >= 0], made)
        )
        h, m = expected.sum(), generated.sum()
        p_values = _holm(stats.hypergeom.cdf(generated, h + m, expected + generated, m))
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
    """Which data lie where the generator does not draw, ranked, and those of which that is sure.

    Pool all N = n + m rows. The neighbors of x_i are the others within the distance of its k-th nearest: k of them,
    or more where several are equally far. Its share s_i is that of generated rows among them, low where Q has less
    mass than P and m / (N - 1) on average if P = Q. Of B permutations of which pooled rows are data, each with a least
    share t_b over its data,

        p_i = (1 + #{b: t_b <= s_i}) / (1 + B),

    so that for P = Q the chance that any datum is flagged is at most the level. Data are ranked by their share, and
    equal shares by the distance of the nearest generated row, farthest first.

    The default k is the least for which a datum without generated neighbors would pass Bonferroni's correction with
    room to spare,

        n ((n - 1) / (N - 1))^k <= level / 4,

    about log2(4 n / level) for n = m: 17 for a thousand data. A part of the data that is never generated is then
    flagged if it has more than k rows and lies apart. A larger k finds parts that are only rarer than they should be.
    With few generated rows the k that this takes grows, up to N - 1, where nothing can be found.

    Args:
        data, generated: (n, *event) and (m, *event).
        k: how many neighbors.
        level: the chance, for P = Q, that anything is flagged, at most.
        permutations: B, at least 1 / level - 1.
        seed: of the permutations and of the half of the data that `UncoveredData.by_label` refers to.

    Raises:
        TypeError: for anything but arrays of real numbers.
        ValueError: for fewer than two rows, events that differ in shape, values that are not finite, a level not
            between 0 and 1, too few permutations for it, or a k that is not from 1 to N - 1.
    """
    x, y = paired_rows(data, generated, names=("data", "generated"))
    n, m = len(x), len(y)
    others = n + m - 1
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    if (1 + permutations) * level < 1:
        raise ValueError(
            f"permutations: a p-value of {level} takes at least {math.ceil(1 / level) - 1}, got {permutations}"
        )
    if k is None:
        k = min(others, math.ceil(math.log(level / (4 * n)) / math.log((n - 1) / others)))
    if not 1 <= k <= others:
        raise ValueError(f"k: expected 1 to {others}, below the number of pooled rows, got {k}")
    rng = np.random.default_rng(seed)
    is_data = deal(n, m, permutations, rng)
    reference = np.sort(rng.permutation(n)[: n // 2])
    pooled = torch.as_tensor(np.concatenate([x, y]))
    truth, distance, nearest = np.empty(n + m), np.empty(n + m), np.empty(n + m, dtype=int)
    least = np.ones(permutations)
    for block, d2 in blocks(pooled, pooled):
        d2.diagonal(block.start).fill_(torch.inf)
        near = csr_matrix((d2 <= d2.kthvalue(k, dim=1, keepdim=True).values * ROUNDING).numpy(), dtype=np.int64)
        share = near @ ~is_data / np.diff(near.indptr)[:, None]
        truth[block] = share[:, 0]
        least = np.minimum(least, np.where(is_data[block], share, 1.0).min(axis=0)[1:])
        distance[block] = d2[:, n:].amin(1)
        nearest[block] = reference[d2[:, reference].argmin(1)]
    nearest[reference] = -1
    share = truth[:n]
    p_values = (1 + np.searchsorted(np.sort(least), share, side="right")) / (1 + permutations)
    order = np.lexsort((-distance[:n], share))
    return UncoveredData(order, share, p_values, order[p_values[order] <= level], k, m / others, nearest)


def _squared_radii(x: Tensor, k: int) -> Tensor:
    """r_k(x_i)^2 of each row (n,), rounded up."""
    radii = torch.empty(len(x), dtype=x.dtype)
    for block, d2 in blocks(x, x):
        d2.diagonal(block.start).fill_(torch.inf)
        radii[block] = d2.kthvalue(k, dim=1).values
    return radii * ROUNDING


def _holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted so that the chance of any false one up to a, among all, is at most a (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return adjusted
