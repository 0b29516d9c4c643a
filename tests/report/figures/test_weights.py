"""Figures of importance weights."""

import numpy as np
import pytest

from ppgen.report import figures


def test_the_mean_weight_is_one():
    log_weights = np.random.default_rng(0).normal(size=100)
    smooth = log_weights - np.logaddexp.reduce(log_weights)
    left, right = figures.weight_tail(log_weights, smooth, 0.2).axes
    heights = left.lines[0].get_ydata()
    assert heights.mean() == pytest.approx(1.0)
    assert (np.diff(heights) <= 0).all()
    shares = np.exp(smooth)
    assert right.get_title(loc="left") == f"effective sample size {1 / np.square(shares).sum():.0f} of 100"
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.cumsum(np.sort(shares)[::-1]))


def test_the_weight_of_a_shifted_component_is_at_one_end():
    z = np.random.default_rng(0).normal(size=4000)
    weights = np.exp(0.5 * z)
    axes = figures.weights_by_rank({"z": z}, weights / weights.sum()).axes[0]
    heights = axes.patches[-1].get_data().values
    assert heights.sum() == pytest.approx(20)
    assert (np.diff(heights) > 0).all()
    assert "mean +0.5" in axes.get_title(loc="left")
