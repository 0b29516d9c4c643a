"""Coverage of data: planted mode dropping and noise, expectations for equal distributions, definitions by loops."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppgen.data.toy import gaussians_grid, gaussians_ring
from ppgen.evaluation import coverage, mode_coverage, two_sample, uncovered_data

SIDE = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
GRID = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), axis=-1).reshape(25, 2)


def normal(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def clusters(*sizes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unit Gaussians in the plane with centers at distance 20, and the label of each row."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    return rng.standard_normal((len(y), 2)) + 20 * y[:, None] * [1, 0], y


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - y, axis=-1)


# -- mode_coverage --------------------------------------------------------------------------------------------------


def test_samples_of_the_true_distribution_capture_all_modes():
    x, y = gaussians_grid(2500)
    result = mode_coverage(x, GRID, sigma=0.05)
    assert (result.captured, result.total) == (25, 25)
    assert np.array_equal(result.counts, np.bincount(y))
    # P(chi_2 <= 3) = .9889 with a standard error of .002; 2 m KL is about chi-squared with 24 degrees of freedom
    assert result.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.008)
    assert 2 * 2500 * result.reverse_kl < stats.chi2.ppf(0.999, 24)


def test_dropped_modes_are_counted():
    x, y = gaussians_ring(4000)
    centers = np.stack([x[y == k].mean(0) for k in range(8)])
    result = mode_coverage(torch.as_tensor(x[y < 2]), torch.as_tensor(centers), sigma=0.01)
    assert (result.captured, result.total) == (2, 8)
    f = result.counts[:2] / result.counts.sum()
    assert result.reverse_kl == pytest.approx(np.sum(f * np.log(8 * f)))
    assert result.reverse_kl == pytest.approx(math.log(4), abs=0.01)


def test_a_captured_mode_has_a_row_of_high_quality():
    centers = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = np.array([[0.29, 0.0], [9.0, 0.0], [10.0, 0.31], [0.0, 0.0]])
    result = mode_coverage(x, centers, sigma=0.1)
    assert (result.captured, result.high_quality) == (1, 0.5)
    assert result.counts.tolist() == [2, 2, 0]
    assert result.reverse_kl == pytest.approx(math.log(1.5))
    assert mode_coverage(x, centers, sigma=0.1, radius=3.2).captured == 2
    assert mode_coverage(x[:1], centers, sigma=0.1).reverse_kl == pytest.approx(math.log(3))


def test_arguments_of_mode_coverage_are_checked():
    x, centers = normal((5, 2), (3, 2))
    with pytest.raises(ValueError, match="sigma: expected a positive number, got 0"):
        mode_coverage(x, centers, sigma=0)
    with pytest.raises(ValueError, match="radius"):
        mode_coverage(x, centers, sigma=1, radius=math.inf)
    with pytest.raises(ValueError, match="generated and centers: expected events of the same shape"):
        mode_coverage(x, centers[:, :1], sigma=1)


# -- coverage -------------------------------------------------------------------------------------------------------


def coverage_by_loops(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, ...]:
    n, m = len(x), len(y)
    around_x = [sorted(math.dist(a, b) for j, b in enumerate(x) if i != j)[k - 1] for i, a in enumerate(x)]
    around_y = [sorted(math.dist(a, b) for j, b in enumerate(y) if i != j)[k - 1] for i, a in enumerate(y)]
    in_x = np.array([[math.dist(x[i], y[j]) <= around_x[i] for j in range(m)] for i in range(n)])
    in_y = np.array([[math.dist(x[i], y[j]) <= around_y[j] for j in range(m)] for i in range(n)])
    return in_x.any(0).mean(), in_y.any(1).mean(), in_x.sum() / (k * m), in_x.any(1).mean()


def values(result: object) -> tuple[float, ...]:
    return tuple(vars(result).values())


@pytest.mark.parametrize("integers", [False, True])
def test_coverage_is_its_definition(integers, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal((20, 4)) + 0.5
    if integers:  # many rows coincide and many distances are equal
        x, y = np.rint(x[:, :2]), np.rint(y[:, :2])
    expected = coverage_by_loops(x, y, 3)
    assert values(coverage(x, y, k=3)) == pytest.approx(expected)
    monkeypatch.setattr(two_sample, "MAX_ENTRIES", 70)
    assert values(coverage(torch.as_tensor(x), torch.as_tensor(y), k=3)) == pytest.approx(expected)


def test_expectations_for_equal_distributions():
    """The means of 200 repeats are within four standard errors."""
    n, m, k = 40, 25, 3
    result = [coverage(*normal((n, 2), (m, 2), seed=seed), k=k) for seed in range(200)]
    uncovered = math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    for name, expected in (("density", 1.0), ("coverage", 1 - uncovered)):
        got = np.array([getattr(one, name) for one in result])
        assert got.mean() == pytest.approx(expected, abs=4 * got.std() / math.sqrt(len(got)))


def test_mode_collapse_has_high_precision_and_low_recall():
    data, _ = clusters(200, 200, seed=1)
    result = coverage(data, clusters(400, seed=2)[0])
    assert min(result.precision, result.density) > 0.85
    assert max(result.recall, result.coverage) < 0.55


def test_noise_has_low_precision_and_high_recall():
    data, _ = clusters(400, seed=1)
    generated = np.concatenate([clusters(200, seed=2)[0], clusters(0, 200, seed=3)[0]])
    result = coverage(data, generated)
    assert max(result.precision, result.density) < 0.6
    assert min(result.recall, result.coverage) > 0.75


def test_copies_of_the_data_have_perfect_coverage():
    x, y = normal((50, 3), (40, 3))
    result = coverage(x, x[::-1])
    assert (result.precision, result.recall, result.coverage) == (1, 1, 1)
    assert values(coverage(x[::-1], np.roll(y, 7, axis=0))) == pytest.approx(values(coverage(x, y)))


def test_arguments_of_coverage_are_checked():
    x, y = normal((9, 2), (5, 2))
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: expected 1 to 4, .* got {k}"):
            coverage(x, y, k=k)
    with pytest.raises(ValueError, match="data: 9 of 9 rows have values that are not finite"):
        coverage(x * np.nan, y)


# -- uncovered_data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("integers", [False, True])
def test_uncovered_data_controls_its_level(k, integers):
    """For equal distributions a datum, or a label, is flagged in a share .1 of 200 repeats at most (level .001)."""
    flagged = labeled = 0
    for seed in range(200):
        x, y = normal((40, 2), (30, 2), seed=seed)
        if integers:
            x, y = np.rint(x), np.rint(y)
        result = uncovered_data(x, y, k=k, level=0.1, permutations=19, seed=seed)
        flagged += len(result.flagged) > 0
        labeled += result.by_label(np.digitize(x[:, 0], [-0.5, 0.5]))[0].p_value <= 0.1
    assert max(flagged, labeled) <= stats.binom.ppf(0.999, 200, 0.1)


def test_a_dropped_cluster_is_detected_and_ranked_first():
    data, y = clusters(150, 25, 125)
    generated, _ = clusters(180, 0, 120, seed=1)
    result = uncovered_data(data, generated)
    assert set(y[result.order[:25]]) == {1}
    assert set(y[result.flagged]) == {1}
    assert len(result.flagged) == 25
    assert np.array_equal(result.flagged, result.order[:25])
    # nothing is flagged if the generator covers the data, or more than the data
    assert len(uncovered_data(data, clusters(150, 25, 125, seed=1)[0]).flagged) == 0
    assert len(uncovered_data(data, clusters(150, 25, 125, 100, seed=1)[0]).flagged) == 0


@pytest.mark.parametrize(("n", "m"), [(1000, 1000), (300, 30), (30, 300), (2, 2)])
def test_the_default_k_is_the_smallest_for_which_no_generated_neighbor_is_significant(n, m):
    k = uncovered_data(*normal((n, 2), (m, 2)), permutations=19).k
    share = (n - 1) / (n + m - 1)
    assert k == n + m - 1 or n * share**k <= 0.05 / 4
    assert n * share ** (k - 1) > 0.05 / 4


def test_shares_equal_their_definition(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(30, 2)), rng.integers(1, 6, size=(20, 2))
    pooled = np.concatenate([x, y])
    shares, nearest_generated = [], []
    for i in range(30):
        distance = np.delete(distances(pooled[i : i + 1], pooled)[0], i)
        near = distance <= np.sort(distance)[6]
        shares.append(near[29:].sum() / near.sum())
        nearest_generated.append(distance[29:].min())
    result = uncovered_data(x, y, k=7)
    assert np.allclose(result.share, shares)
    assert result.expected == 20 / 49
    keys = [(shares[i], -nearest_generated[i]) for i in result.order]
    assert keys == sorted(keys)
    monkeypatch.setattr(two_sample, "MAX_ENTRIES", 120)
    blocked = uncovered_data(x, y, k=7)
    assert np.array_equal(blocked.share, result.share)
    assert np.array_equal(blocked.p_values, result.p_values)


def test_p_values_count_permutations():
    x, y = normal((40, 2), (40, 2))
    result = uncovered_data(x, y + 0.5, permutations=99)
    assert np.all(np.diff(result.p_values[result.order]) >= 0)
    counts = result.p_values * 100
    assert np.allclose(counts, np.rint(counts))
    assert counts.min() >= 1
    assert result.p_values[result.order[-1]] == 1
    assert set(result.flagged) == set(np.flatnonzero(result.p_values <= 0.05))


def test_neither_the_order_nor_the_repetition_of_rows_matters():
    data, y = clusters(60, 20, seed=4)
    generated, _ = clusters(80, 0, seed=5)
    shuffle = np.random.default_rng(0).permutation(80)
    result = uncovered_data(data, generated)
    shuffled = uncovered_data(torch.as_tensor(data[shuffle]), torch.as_tensor(generated[::-1].copy()))
    assert np.array_equal(shuffled.share, result.share[shuffle])
    assert np.array_equal(shuffle[shuffled.order][:20], result.order[:20])
    twice = uncovered_data(np.repeat(data, 2, axis=0), np.repeat(generated, 2, axis=0))
    assert np.array_equal(twice.share[::2], twice.share[1::2])
    assert set(np.repeat(y, 2)[twice.flagged]) == {1}
    # if all rows coincide, every share is the expected one, in any order of the rows
    equal = uncovered_data(np.ones((20, 2)), np.ones((15, 2)))
    assert np.allclose(equal.share, equal.expected)
    assert len(equal.flagged) == 0


def test_labels_that_are_never_generated_are_ranked_first():
    data, y = clusters(150, 50, 100)
    generated, _ = clusters(150, 0, 150, seed=1)
    result = uncovered_data(data, generated)
    names = np.array(["zero", "one", "two"])[y]
    table = result.by_label(names)
    assert [row.label for row in table] == ["one", "zero", "two"]
    first = table[0]
    assert (first.count, first.generated, first.flagged) == (50, 0, 50)
    assert first.p_value < 1e-6
    assert table[1].p_value > 0.05
    for column in ("expected", "generated"):
        assert sum(getattr(row, column) for row in table) == pytest.approx(1)
    assert sum(row.flagged for row in table) == len(result.flagged)
    assert [row.label for row in result.by_label(torch.as_tensor(y))] == [1, 0, 2]


def test_p_values_of_labels_are_those_of_fisher_with_the_correction_of_holm():
    data, y = clusters(40, 30, 30)
    result = uncovered_data(data, clusters(20, 40, 30, seed=1)[0])
    reference = np.flatnonzero(result.nearest < 0)
    assert len(reference) == 50
    assert set(result.nearest) - {-1} <= set(reference)
    held = y[result.nearest[:100] >= 0]  # clusters are separate, so every row is assigned its own label
    p = []
    for label, generated in enumerate((20, 40, 30)):
        count = np.sum(held == label)
        p.append(
            stats.fisher_exact([[generated, 90 - generated], [count, len(held) - count]], alternative="less").pvalue
        )
    table = {row.label: row.p_value for row in result.by_label(y)}
    low, middle, high = np.argsort(p)
    assert table[low] == pytest.approx(min(1, 3 * p[low]))
    assert table[middle] == pytest.approx(min(1, max(3 * p[low], 2 * p[middle])))
    assert table[high] == pytest.approx(min(1, max(3 * p[low], 2 * p[middle], p[high])))


def test_arguments_of_uncovered_data_are_checked():
    x, y = normal((9, 2), (5, 2))
    with pytest.raises(ValueError, match=r"a p-value of 0.05 needs at least 19, got 18"):
        uncovered_data(x, y, permutations=18)
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1, got 1"):
        uncovered_data(x, y, level=1)
    for k in (0, 14):
        with pytest.raises(ValueError, match=f"k: expected 1 to 13, .* got {k}"):
            uncovered_data(x, y, k=k)
    with pytest.raises(ValueError, match=r"generated: expected .* at least 2 rows"):
        uncovered_data(x, y[:1])
    with pytest.raises(ValueError, match=r"y: expected one label per datum, \(9,\), got \(5,\)"):
        uncovered_data(x, y).by_label(np.zeros(5))
