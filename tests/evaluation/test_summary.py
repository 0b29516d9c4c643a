"""The summary of all measures."""

import numpy as np
import pytest

from ppgen import metrics as m
from ppgen.evaluation.summary import C2ST, METRICS, measure


def clusters(n: int, seed: int, kinds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(kinds, size=n)
    return 4 * np.eye(kinds)[y] + rng.standard_normal((n, kinds)), y


def test_a_metric_with_a_title_is_in_the_summary():
    titles = [kind.title for kind in m.METRICS.values() if kind.title is not None]
    assert sorted(METRICS) == sorted(titles)
    assert all(isinstance(make(), m.Metric) for make in METRICS.values())


@pytest.mark.slow
def test_every_metric_ranks_a_better_model_first():
    """For draws shifted by half and by two standard deviations; the noise of 300 rows is at most a tenth of a value."""
    (data, _), (near, _) = clusters(300, 0), clusters(300, 1)
    good, bad = (measure(near + shift, data) for shift in (0.5, 2.0))
    assert set(METRICS) < set(good)
    for name in METRICS:
        if name != "CORAL":  # which does not depend on the mean
            assert good[name] < bad[name], name
    assert good["precision"] > bad["precision"]
    assert good[C2ST] < bad[C2ST]


def test_measures_do_not_depend_on_units():
    (data, _), (near, _) = clusters(100, 0), clusters(100, 1)
    scale = np.array([1.0, 10.0, 100.0, 0.1])
    one, other = (measure(a, b, metrics=False) for a, b in ((near, data), (near * scale + 7, data * scale + 7)))
    assert one == pytest.approx(other, rel=1e-6)


def test_modes_and_labels_are_measured_if_they_are_known():
    data, y = clusters(200, 0)
    numbers = measure(data, data, labeled=(data, y), modes=(4 * np.eye(4), 1.0), metrics=False)
    assert numbers["labels drawn"] == 4
    assert numbers["modes captured"] == 4
    assert numbers["share of the rarest label"] > 0.1
