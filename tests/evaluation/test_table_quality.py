"""The quality of synthetic tables: closed forms, invariances, and what each number notices."""

import math

import numpy as np
import pandas as pd
import pytest

from ppgen.data.schema import Schema
from ppgen.evaluation.mixed_columns import MixedColumns
from ppgen.evaluation.table_quality import RARE, associations, table_quality


def rows(n, seed, *, dependent=True):
    """Mixed columns with missing cells; without `dependent` the marginals are the same."""
    rng = np.random.default_rng(seed)
    age = rng.normal(50, 10, n)
    other = age if dependent else rng.permutation(age)
    income = np.exp(other / 20 + rng.normal(0, 0.2, n))
    income[rng.random(n) < 0.1] = np.nan
    plan = np.where(other + rng.normal(0, 5, n) > 50, "pro, yearly", "free")
    land = rng.choice(["Österreich", "it", 'M"T', "fr"], n, p=[0.5, 0.32, 0.02, 0.16])
    when = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, n), "D")
    return pd.DataFrame({"age": age, "income": income, "plan": plan, "land": land, "when": when, "ok": other < 45})


TRAIN, TEST = rows(700, 1), rows(500, 2)


@pytest.fixture(scope="module")
def good():
    return table_quality(rows(700, 3), TRAIN, TEST, target="plan")


def test_rows_of_the_same_distribution_are_as_good_as_training_rows(good):
    """Bounds that a good sampler passes in at least 999 of 1000 cases, by the noise of 500 test rows."""
    numbers = good.numbers
    assert numbers["mean marginal distance"] < 0.1
    assert numbers["association error"] < 0.1
    assert abs(numbers["detection AUC"] - 0.5) < 0.07
    assert numbers["detection score"] > 0.86
    labels = [f"balanced accuracy of plan, trained on {kind} rows" for kind in ("synthetic", "training")]
    assert abs(numbers[labels[0]] - numbers[labels[1]]) < 0.1
    assert numbers["rare categories covered"] == 1
    assert abs(numbers["closer to training rows"] - 0.5) < 3.3 * math.sqrt(0.25 / 500)
    assert numbers["copies of training rows"] == 0


def test_lost_dependence_is_detected_though_the_marginals_are_right(good):
    bad = table_quality(rows(700, 3, dependent=False), TRAIN, TEST, target="age").numbers
    assert bad["mean marginal distance"] < 0.1
    assert bad["detection AUC"] > 0.8
    assert bad["association error"] > 3 * good.numbers["association error"]
    assert bad["R² of age, trained on synthetic rows"] < 0.2
    assert bad["R² of age, trained on training rows"] > 0.6


def test_a_lost_category_and_wrong_missing_cells_show_in_their_columns(good):
    wrong = rows(700, 3)
    wrong["land"] = wrong["land"].where(wrong["land"] != 'M"T', "it")
    wrong["income"] = wrong["income"].fillna(1.0)
    quality = table_quality(wrong, TRAIN, TEST)
    assert quality.numbers["rare categories covered"] == 0
    assert quality.marginals.loc["land", ["rare categories", "covered"]].tolist() == [1, 0]
    assert quality.marginals.loc["income", "missing"] == 0
    assert quality.marginals.loc["income", "distance"] > 0.05 + good.marginals.loc["income", "distance"]
    assert quality.marginals.loc["age", "distance"] == good.marginals.loc["age", "distance"]


def test_copies_are_counted():
    half = pd.concat([TRAIN.iloc[:350], rows(350, 3)])
    numbers = table_quality(half, TRAIN, TEST).numbers
    assert numbers["copies of training rows"] == 0.5
    assert numbers["copies of training rows among test rows"] == 0
    assert numbers["closer to training rows"] > 0.55
    assert numbers["distance to the closest training row, 5 % quantile"] == 0 < numbers["the same of test rows"]


def test_the_order_of_rows_columns_and_categories_changes_nothing(good):
    order = TRAIN.columns[::-1]
    renamed = {"land": {"it": "zz", "fr": "aa"}}
    frames = [f[order].replace(renamed) for f in (rows(700, 3), TRAIN, TEST)]
    other = table_quality(*frames)
    pd.testing.assert_frame_equal(other.marginals.loc[good.marginals.index], good.marginals)
    names = good.associations.index
    pd.testing.assert_frame_equal(other.associations.loc[names, names], good.associations)
    assert abs(other.numbers["detection AUC"] - good.numbers["detection AUC"]) < 0.05


def associated(a, b):
    frame = pd.DataFrame({"a": a, "b": b})
    kinds = {name: "continuous" if frame[name].dtype == float else "categorical" for name in frame}
    return associations(MixedColumns.of([frame], ["frame"], Schema.infer(frame, kinds=kinds)), 0).loc["a", "b"]


def test_closed_forms_of_associations():
    x = np.arange(400.0)
    group = np.repeat(["a", "b"], 200)
    assert associated(x, np.exp(-x)) == pytest.approx(-1)
    assert associated(group, np.repeat(["u", "v"], 200)) == pytest.approx(1)
    assert associated(group, np.tile(["u", "v"], 200)) == 0
    # two groups of ranks 1 .. 200 and 201 .. 400: between 200^2 / 4, all (400^2 - 1) / 12
    assert associated(x, group) == pytest.approx(math.sqrt(200**2 / 4 / ((400**2 - 1) / 12)))
    assert associated(x, np.tile(["a", "b"], 200)) < 0.01
    assert associated(x, np.full(400, 1.0)) == 0
    half = np.where(x < 200, x, np.nan)
    assert associated(half, -x) == pytest.approx(-1)


def test_closed_forms_of_marginal_distances():
    frame = pd.DataFrame({"x": np.arange(100.0) + 0.5, "c": ["a"] * 50 + ["b"] * 50})
    other = pd.DataFrame({"x": np.arange(100.0) + 25.5, "c": ["a"] * 80 + ["c"] * 10 + [None] * 10})
    found = table_quality(other, frame, frame).marginals
    assert found.loc["x", "distance"] == pytest.approx(0.25)
    assert found.loc["c", "distance"] == pytest.approx(0.5)  # b loses .5
    assert (found["of training rows"] == 0).all()


def test_rare_means_below_a_share_of_training_rows():
    assert (TRAIN["land"] == 'M"T').mean() < RARE < (TRAIN["land"] == "fr").mean()


def test_a_number_is_predicted_with_its_explained_variance():
    numbers = table_quality(rows(300, 3), TRAIN, TEST, target="income").numbers
    assert 0.5 < numbers["R² of income, trained on synthetic rows"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="age"), "synthetic: there is no column 'age'"),
        (lambda f: f.assign(age=["old"] * len(f)), r"synthetic, row 0 .*, column 'age': expected a finite number"),
        (lambda f: f.iloc[:5], "expected at least 20 rows of each frame, got 5 synthetic rows"),
    ],
)
def test_rows_that_cannot_be_compared_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        table_quality(change(rows(50, 3)), TRAIN, TEST)


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="target: there is no column 'Plan'; there are 'age'"):
        table_quality(rows(50, 3), TRAIN, TEST, target="Plan")
