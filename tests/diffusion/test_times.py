"""Times of training steps."""

import pytest
import torch

from ppgen.diffusion import TIMES


@pytest.mark.parametrize("times", TIMES)
def test_times_are_uniform(times):
    torch.manual_seed(0)
    u = TIMES[times](torch.zeros(20_001))
    assert ((u >= 0) & (u <= 1)).all()
    # twenty equal intervals, each frequency within five standard errors of independent times
    assert (torch.histc(u, 20, 0, 1) / len(u) - 0.05).abs().max() < 5 * (0.05 * 0.95 / len(u)) ** 0.5
