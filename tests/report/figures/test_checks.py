"""Figures of replicated data and of ranks."""

import numpy as np

from ppgen.diagnostics import Ranks
from ppgen.report import figures


def test_uniform_ranks_are_inside_the_band():
    rng = np.random.default_rng(0)
    ranks = Ranks(rng.integers(0, 100, (300, 1)), 99, ("z",))
    for made, inside in ((ranks, True), (Ranks(ranks.ranks // 2, 99, ("z",)), False)):
        axes = figures.uniformity(made).axes[0]
        path = made.path()
        found = axes.lines[-1].get_ydata()[1:-1]
        held = (found >= path.low - path.expected - 1e-9) & (found <= path.high - path.expected + 1e-9)
        assert held.all() == inside


def test_replicates_and_data_have_the_same_bins():
    seen = np.arange(5.0).repeat(4)
    axes = figures.predictive_histograms({"y": (np.tile(seen, (10, 1)), seen)}).axes[0]
    *_, median, data = (patch.get_data().values for patch in axes.patches)
    np.testing.assert_array_equal(data, [4] * 5)
    np.testing.assert_array_equal(median, data)
