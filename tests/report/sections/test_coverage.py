"""The section on coverage of the data."""

import numpy as np
import pytest

from ppgen.report import Figure
from ppgen.report.sections.coverage import coverage_section


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_uncovered_data_and_labels_are_shown(shape):
    """Three clusters, of which the draws leave out the last."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 60)
    data = 8.0 * y.reshape(-1, *[1] * len(shape)) + rng.standard_normal((180, *shape))
    draws = data[rng.choice(120, 180)] + 0.1 * rng.standard_normal((180, *shape))
    section = coverage_section(data, draws, y, label_names=("a", "b", "c"))
    numbers, picture, labels = section.items
    assert isinstance(picture, Figure)
    assert dict(numbers.rows)["data not covered"] == "60 of 180"
    assert numbers.caption.startswith("180 samples and 180 data. With other numbers of rows")
    assert ("pixel by pixel" in numbers.caption) == (len(shape) == 3)
    assert {row[0]: row[-1] for row in labels.rows} == {"a": "", "b": "", "c": "never generated"}
    whole = coverage_section(data, data + 0.1 * rng.standard_normal(data.shape), y)
    assert dict(whole.items[0].rows)["data not covered"] == "0 of 180"
    assert len(whole.items) == 2
