"""Figures of the course of training."""

import numpy as np
from reports import RNG, chain, text_of

from ppgen.report import figures


def test_the_frame_leaves_out_an_early_spike():
    spiked = chain(200)
    spiked.history["loss"][:3] = 1e9
    axes = figures.loss_curves([spiked]).axes[0]
    assert axes.get_ylim()[1] < 60
    assert axes.get_ylim()[0] < spiked.history["loss"].min()
    beyond = sum(spiked.history["loss"] > axes.get_ylim()[1])
    assert 3 <= beyond <= 0.03 * 220 + 1
    assert f"{beyond} of 220 values lie above the frame" in text_of(axes.figure)


def test_the_frame_has_the_best_held_out_losses_however_far_above_the_others():
    """Of a run that overfits from its start."""
    overfitted = chain(200)
    overfitted.validation["loss"] = np.geomspace(1e3, 1e6, len(overfitted.validation["loss"]))
    low, high = figures.loss_curves([overfitted]).axes[0].get_ylim()
    assert low < overfitted.history["loss"].min()
    assert 1e3 < high < 1e5


def test_the_thick_line_is_a_moving_average():
    history = {"loss": RNG.normal(size=200)}
    (thin, thick) = figures.term_breakdown(history).axes[0].lines
    assert np.array_equal(thin.get_ydata(), history["loss"])
    steps = thick.get_xdata()
    assert steps[0] == 1
    window = np.convolve(history["loss"], np.ones(5) / 5, mode="valid")  # 200 steps: 5 at a time
    np.testing.assert_allclose(thick.get_ydata()[2:-2], window)


def test_the_frame_has_the_log_evidence_and_not_the_start():
    trace = -5 - 1000 * np.exp(-np.arange(400) / 10.0)
    broken = np.where(np.arange(len(trace)) % 3 == 0, -np.inf, trace)[None]
    below = figures.elbo_trace(broken, (-9.0, -9.1, -8.9)).axes[0]
    assert below.get_ylim()[0] < -9.1
    axes = figures.elbo_trace(np.stack([trace, trace - 500]), (-4.0, -4.1, -3.9)).axes[0]
    low, high = axes.get_ylim()
    assert -10 < low < -5
    assert -3.9 < high < -3
    assert "ended below the frame: 1" in text_of(axes.figure)
