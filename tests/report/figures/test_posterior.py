"""Figures of the posterior and of k-hat."""

import numpy as np
import pytest
import xarray as xr
from reports import posterior_tree, text_of

from ppgen.report import figures
from ppgen.utils import arviz_versions as versions


def test_a_bound_belongs_to_the_class_below_it():
    figure = figures.khat(np.array([-np.inf, 0.3, 0.5, 0.6, 0.7, 0.71, 3.0, np.inf, np.nan, 0.5]))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "40% good (up to 0.5)",
        "20% usable (up to 0.7)",
        "40% not to be trusted",
    ]
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 10
    good = [p for p in figure.axes[0].patches if p.get_height() and p.get_facecolor()[:3] == (0, 158 / 255, 115 / 255)]
    assert max(p.get_x() + p.get_width() for p in good) == pytest.approx(0.5)


def test_the_posterior_shows_global_latents_then_those_of_the_first_datum():
    titles = [axes.get_title(loc="left") for axes in figures.posterior(posterior_tree(dim=3)).axes]
    assert titles == ["mu", "z[0], datum 0", "z[1], datum 0", "z[2], datum 0"]
    assert "6 of 9 components" in text_of(figures.posterior(posterior_tree()))


@pytest.mark.filterwarnings("ignore")  # ArviZ 0.23 announces 1.0 when it is imported
def test_the_posterior_is_drawn_by_histograms_without_arviz_plots(monkeypatch):
    import arviz

    assert versions.IS_NEW or not figures.posterior(posterior_tree()).axes[0].patches
    monkeypatch.delattr(arviz, "plot_posterior", raising=False)
    assert figures.posterior(posterior_tree()).axes[0].patches


def test_constant_draws_and_draws_that_are_not_finite_are_drawn():
    group = xr.Dataset({"z": (("chain", "draw", "i"), np.array([[[1.0, np.nan], [1.0, 2.0], [1.0, 3.0]]]))})
    assert len(figures.posterior({"posterior": group}).axes) == 2
