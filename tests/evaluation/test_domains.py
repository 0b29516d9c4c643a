"""The risk of domain adaptation without target labels, and collapsed features."""

import numpy as np
import pytest
import torch

from ppgen.data import load
from ppgen.evaluation import adaptation_risk, contrast_inverted, feature_spread, features_collapsed


def test_equal_domains_have_the_risk_of_the_source():
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(2, 800, 3))
    wrong = rng.random(800) < 0.2
    risk = adaptation_risk(h, g, wrong)
    assert risk.source == wrong.mean()
    assert risk.effective_rows > 700
    assert risk.weighted == pytest.approx(risk.source, abs=4 * risk.weighted_error)  # level 6e-5
    assert risk.distance.p_value > 1e-3


def test_the_weighted_risk_is_that_of_a_shifted_target():
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 1)) + 1.0
    wrong = (rng.random(4000) < 1 / (1 + np.exp(-2 * h[:, 0]))).astype(int)  # more errors in the region of the target
    truth = (1 / (1 + np.exp(-2 * g[:, 0]))).mean()
    risk = adaptation_risk(torch.as_tensor(h), torch.as_tensor(g), torch.as_tensor(wrong))
    assert abs(risk.source - truth) > 0.2
    assert risk.weighted == pytest.approx(truth, abs=4 * risk.weighted_error)
    assert risk.effective_rows < 2000
    assert risk.distance.statistic > 0.6


def test_only_collapsed_features_are_reported():
    h = np.random.default_rng(0).normal(size=(50, 3))
    spreads = {
        "as they were": feature_spread(h + 5, h),
        "half as far": feature_spread(torch.as_tensor(h / 2), h),
        "next to nothing": feature_spread(h / 1000, h),
        "one": feature_spread(np.ones((50, 3)), h),
        "one from the start": feature_spread(np.ones((50, 3)), np.zeros((50, 3))),
        "from one to many": feature_spread(h, np.zeros((50, 3))),
    }
    assert list(spreads.values()) == pytest.approx([1, 0.5, 0.001, 0, 0, np.inf])
    found = features_collapsed(spreads)
    assert [finding.subject for finding in found] == ["next to nothing", "one", "one from the start"]
    assert "features collapsed (next to nothing): their spread is 0.001 of that before training" in str(found[0])


def test_errors_that_are_not_zeros_and_ones_are_refused():
    h = np.zeros((10, 2)) + np.arange(10)[:, None]
    for wrong in (np.ones(9), np.full(10, 0.5)):
        with pytest.raises(ValueError, match=r"wrong: expected \(10,\) zeros and ones"):
            adaptation_risk(h, h, wrong)


def test_contrast_is_inverted_where_negatives_are_nearer():
    x = torch.as_tensor(load("digits", form="unit").train.x[:200])
    here, there = x[:100], x[100:]
    for a, b in ((1.0, 0.0), (0.3, 2.0)):
        assert not contrast_inverted(here, a * there + b)
        assert contrast_inverted(here, b - a * there)
        assert contrast_inverted(b - a * here, there)
    even = torch.rand(80, 1, 6, 6, generator=torch.Generator().manual_seed(1))  # whose negatives look the same
    assert not contrast_inverted(even[:40], even[40:])
    assert not contrast_inverted(here, torch.ones_like(there))
    assert not contrast_inverted(here, 1 - there[:1])
    assert not contrast_inverted(here.flatten(1), 1 - there.flatten(1))
