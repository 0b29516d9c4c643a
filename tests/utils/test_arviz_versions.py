"""What differs between versions of ArviZ."""

import numpy as np
import pytest

from ppgen.utils import arviz_versions as versions


@pytest.mark.parametrize("shape", [0.3, 0.9])
def test_psislw_recovers_the_tail_of_pareto_weights(shape):
    rng = np.random.default_rng(0)
    log_w = -shape * np.log(rng.uniform(size=20_000))  # Pareto with tail index 1 / shape
    log_smooth, khat = versions.psislw(log_w)
    assert khat == pytest.approx(shape, abs=0.15)
    assert np.exp(log_smooth).sum() == pytest.approx(1.0)
    assert np.corrcoef(log_smooth, log_w)[0, 1] > 0.95
