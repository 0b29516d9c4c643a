"""The agreement of two classifiers on generated rows."""

import numpy as np
import pytest

from ppgen.evaluation import label_agreement


def clusters(n: int, seed: int, kinds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(kinds, size=n)
    return 4 * np.eye(kinds)[y] + rng.standard_normal((n, kinds)), y


def test_classifiers_agree_on_data_and_not_on_noise():
    data, y = clusters(400, 0)
    held_out, _ = clusters(400, 1)
    noise = np.random.default_rng(2).uniform(-6, 8, size=(400, 4))
    good, bad = label_agreement(data, y, held_out), label_agreement(data, y, noise)
    assert good.share > 0.95
    assert bad.share < good.share - 0.05
    assert good.drawn.sum() == pytest.approx(1)


def test_labels_that_are_never_generated_have_share_zero():
    data, y = clusters(400, 0)
    held_out, labels = clusters(400, 1)
    drawn = label_agreement(data, y, held_out[labels != 2]).drawn
    assert drawn[2] < 0.02
    assert drawn[[0, 1, 3]].min() > 0.2


def test_labels_are_checked():
    data, y = clusters(20, 0)
    with pytest.raises(ValueError, match="at least two distinct values"):
        label_agreement(data, np.zeros(20), data)
    with pytest.raises(ValueError, match=r"\(20,\) labels"):
        label_agreement(data, y[:5], data)
