"""Invariants of every two-sample test, closed forms, and checks of arguments."""

import math
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from ppgen.evaluation import TwoSample, classifier_test, energy_test, ks_test, mmd_test, two_sample
from ppgen.metrics import MMD, EnergyDistance

PERMUTATIONS = 99

PERMUTATION_TESTS: dict[str, Callable[..., TwoSample]] = {
    "sliced": partial(ks_test, projections=10, permutations=PERMUTATIONS),
    "mmd": partial(mmd_test, permutations=PERMUTATIONS),
    "mmd imq": partial(mmd_test, kernel="imq", bandwidth=1.5, scales=(0.5, 1.0, 2.0), permutations=PERMUTATIONS),
    "energy": partial(energy_test, permutations=PERMUTATIONS),
}
CLASSIFIERS: dict[str, Callable[..., TwoSample]] = {
    "logistic": partial(classifier_test, folds=3),
    "knn": partial(classifier_test, classifier="knn", folds=3),
    "mlp": partial(classifier_test, classifier="mlp", folds=2),
    "tree": partial(classifier_test, classifier=DecisionTreeClassifier(random_state=0), folds=3),
    "margin": partial(classifier_test, classifier=LinearSVC(random_state=0), folds=4),
}
TESTS = PERMUTATION_TESTS | CLASSIFIERS


def over(tests: dict[str, Callable[..., TwoSample]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("test", [pytest.param(test, id=name) for name, test in tests.items()])


def normal(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def null_of(result: TwoSample) -> np.ndarray:
    assert result.null is not None
    return result.null


@pytest.mark.slow
@over({name: test for name, test in TESTS.items() if name != "mlp"})
def test_the_level_is_controlled(test):
    """The number of rejections in 150 null repeats is at most the .999 quantile for the nominal level."""
    p = [test(*normal((24, 3), (16, 3), seed=1000 + i), seed=i).p_value for i in range(150)]
    for level in (0.1, 0.5):
        assert np.sum(np.array(p) <= level) <= stats.binom.ppf(0.999, len(p), level)


@over(TESTS)
def test_separate_distributions_are_distinguished(test):
    x, y = normal((60, 3), (40, 3))
    result = test(x, y + 4)
    assert result.p_value <= 0.01
    assert result.statistic > test(x, y).statistic


@over(TESTS)
def test_events_are_flattened_and_tensors_are_accepted(test):
    x, y = (sample.astype(np.float32) for sample in normal((30, 2, 2), (24, 2, 2)))
    expected = test(x.reshape(30, 4), y.reshape(24, 4))
    for result in (test(x, y), test(torch.tensor(x, requires_grad=True), torch.tensor(y))):
        assert (result.statistic, result.p_value) == (expected.statistic, expected.p_value)


@over(TESTS)
def test_seeds_determine_the_result_and_global_random_states_are_kept(test):
    x, y = normal((30, 3), (30, 3))
    np.random.seed(3)  # noqa: NPY002
    before = pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    assert test(x, y, seed=1).p_value == test(x, y, seed=1).p_value
    assert len({test(x, y, seed=seed).p_value for seed in range(6)}) > 1
    assert pickle.dumps(np.random.get_state()) == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@over({name: test for name, test in TESTS.items() if name not in ("mmd imq", "tree", "margin")})
def test_units_and_origin_do_not_matter(test):
    x, y = normal((30, 3), (24, 3))
    assert test(4 * x - 8, 4 * y - 8).p_value == pytest.approx(test(x, y).p_value)


@over(PERMUTATION_TESTS)
def test_neither_the_order_of_rows_nor_of_samples_changes_the_statistic(test):
    x, y = normal((30, 3), (24, 3))
    statistic = test(x, y).statistic
    assert test(x[::-1], np.roll(y, 5, axis=0)).statistic == pytest.approx(statistic)
    assert test(y, x).statistic == pytest.approx(statistic)


@over(PERMUTATION_TESTS)
def test_p_values_count_permutations(test):
    x, y = normal((30, 3), (24, 3))
    result = test(x, y + 0.2)
    assert null_of(result).shape == (PERMUTATIONS,)
    assert result.p_value == (1 + np.sum(null_of(result) >= result.statistic)) / (1 + PERMUTATIONS)
    assert test(x, y + 9).p_value == 1 / (1 + PERMUTATIONS)


@over(PERMUTATION_TESTS)
def test_a_permutation_has_the_statistic_of_its_two_samples(test):
    """The first permutation, given as data."""
    x, y = normal((30, 3), (24, 3))
    pooled = np.concatenate([x, y])
    rng = np.random.default_rng(0)
    rng.standard_normal((3, 10)) if test is PERMUTATION_TESTS["sliced"] else rng.permutation(54)
    first = two_sample.permute_labels(30, 24, PERMUTATIONS, rng)[:, 1]
    assert test(pooled[first], pooled[~first]).statistic == pytest.approx(null_of(test(x, y))[0])


@over(PERMUTATION_TESTS)
def test_equal_rows_have_statistic_zero(test):
    result = test(np.full((9, 2), 0.1), np.full((5, 2), 0.1))  # in binary, the mean of fourteen tenths is not .1
    assert (result.statistic, result.p_value) == (0, 1)


@over(CLASSIFIERS)
def test_p_values_of_a_classifier_without_information_are_not_small(test):
    p = [test(np.ones((12, 2)), np.ones((9, 2)), seed=seed).p_value for seed in range(20)]
    assert min(p) > 0.001
    assert np.mean(p) > 0.4  # stochastically at least uniform: the mean of 20 has a standard error of .065


@over(TESTS)
def test_constant_columns_and_repeated_rows_are_allowed(test):
    x, y = normal((30, 3), (24, 3))
    x[:, 1] = y[:, 1] = 7.0
    assert 0 < test(np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0)).p_value <= 1


@pytest.mark.parametrize("name", ["sliced", "mmd", "energy"])
def test_blocks_change_nothing(name, monkeypatch):
    x, y = normal((30, 3), (24, 3))
    expected = PERMUTATION_TESTS[name](x, y)
    monkeypatch.setattr(two_sample, "MAX_ENTRIES", 500)
    assert null_of(PERMUTATION_TESTS[name](x, y)) == pytest.approx(null_of(expected), rel=1e-9, abs=1e-14)


def test_one_dimension_is_that_of_scipy():
    x, y = normal((30,), (24,))
    expected = stats.ks_2samp(x, y)
    for result in (ks_test(x, y), ks_test(x[:, None], y[:, None])):
        assert (result.statistic, result.p_value, result.null) == (expected.statistic, expected.pvalue, None)


def test_kolmogorov_smirnov_statistics_are_those_of_scipy_with_ties_too():
    values = np.random.default_rng(0).integers(6, size=40).astype(float)
    labels = two_sample.permute_labels(25, 15, 5, np.random.default_rng(1))
    expected = [stats.ks_2samp(values[is_x], values[~is_x]).statistic for is_x in labels.T]
    assert np.allclose(two_sample._ks_statistics(values, labels), expected)


def test_statistics_are_those_of_the_metrics():
    x, y = normal((30, 3), (24, 3))
    a, b = torch.as_tensor(x), torch.as_tensor(y)
    assert energy_test(x, y, exponent=0.7).statistic == pytest.approx(EnergyDistance(exponent=0.7)(a, b).item())
    assert mmd_test(x, y, bandwidth=2.0).statistic == pytest.approx(MMD(bandwidth=2.0, scales=(1.0,))(a, b).item())
    # the median is over pooled pairs, which have equal weights if the samples have the same size
    result = mmd_test(x[:24], y, kernel="imq", scales=(0.5, 2.0))
    assert result.statistic == pytest.approx(MMD(kernel="imq", scales=(0.5, 2.0))(a[:24], b).item())


def test_a_perfect_classifier_has_the_smallest_p_value():
    """With two folds, 10 x and 6 y are held out, and all are correct: one of the choices of 6 from 16."""
    result = classifier_test(np.zeros(20), np.ones(12), folds=2)
    assert result.statistic == 1
    assert result.p_value == pytest.approx(1 / math.comb(16, 6))


def test_a_random_classifier_scores_one_half_for_all_sizes():
    """The standard error of the mean of 100 accuracies of 57 held-out rows, 10 of them y, is below .01."""
    x, y = normal((60, 2), (12, 2))
    dummy = DummyClassifier()
    accuracy = [classifier_test(x, y, classifier=dummy, seed=seed).statistic for seed in range(100)]
    assert np.mean(accuracy) == pytest.approx(0.5, abs=0.03)
    assert classifier_test(x, y, classifier=dummy).name == "classifier (DummyClassifier)"


def test_differences_of_variance_are_detected():
    x, y = normal((200, 2), (200, 2))
    y *= 2
    assert classifier_test(x, y, classifier="logistic").p_value > 0.05
    for test in (ks_test, mmd_test, energy_test, partial(classifier_test, classifier="knn")):
        assert test(x, y).p_value <= 0.01


@over({"ks": ks_test, "mmd": mmd_test, "energy": energy_test, "classifier": classifier_test})
def test_samples_are_checked(test):
    x, y = normal((8, 3), (7, 3))
    with_nan = np.where(np.arange(7)[:, None] == 2, np.nan, y)
    with pytest.raises(TypeError, match="x: expected a NumPy array or a torch tensor, got list"):
        test(x.tolist(), y)
    with pytest.raises(TypeError, match="y: expected real numbers, got dtype complex128"):
        test(x, y + 1j)
    with pytest.raises(TypeError, match=r"y: expected real numbers, got dtype torch.complex64"):
        test(x, torch.ones(7, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="events of the same shape"):
        test(x, y[:, :2])
    with pytest.raises(ValueError, match="y: 1 of 7 rows have values that are not finite"):
        test(x, with_nan)
    with pytest.raises(ValueError, match=r"x: expected .* at least 2 rows, got shape \(1, 3\)"):
        test(x[:1], y)


def test_options_are_checked():
    x, y = normal((8, 3), (7, 3))
    for test in (ks_test, mmd_test, energy_test):
        with pytest.raises(ValueError, match="permutations: expected an integer of at least 1, got 0"):
            test(x, y, permutations=0)
    with pytest.raises(ValueError, match="projections"):
        ks_test(x, y, projections=0)
    with pytest.raises(ValueError, match="exponent"):
        energy_test(x, y, exponent=2)
    with pytest.raises(ValueError, match="bandwidth"):
        mmd_test(x, y, bandwidth=-1.0)
    with pytest.raises(ValueError, match="folds: expected an integer of at least 2"):
        classifier_test(x, y, folds=1)
    with pytest.raises(ValueError, match="use fewer folds"):
        classifier_test(x, y, folds=8)
    with pytest.raises(ValueError, match="'logistic', 'knn', 'mlp', got 'forest'"):
        classifier_test(x, y, classifier="forest")
    with pytest.raises(TypeError, match="predict_proba or decision_function"):
        classifier_test(x, y, classifier=3)
