"""Samples of images: means beside the draws at the same codes, and a row for each label."""

import numpy as np
import pandas as pd
import torch
from reports import fit_of

from ppgen import data, models
from ppgen.report.context import RunContext
from ppgen.report.sections import samples as section
from ppgen.report.sections.samples import columns_of_samples, samples


def context(model, digits):
    return RunContext(fit=fit_of(), model=model, data=digits)


def test_means_stand_beside_the_draws_of_the_same_codes():
    """With a tiny noise the draws are their means."""
    digits = data.load("digits", size=80)
    model = models.VAE((1, 8, 8), covariance="fixed", scale=1e-6)
    found = context(model, digits)
    drawn, means = section._draw(found, 11, [], means=True)
    assert len(drawn) == len(means) == 11
    assert np.allclose(drawn, means, atol=1e-4)
    assert drawn.std(0).max() > 1e-3  # of different codes
    figure = samples(found).items[0].picture
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["data", "generated", "means, without noise"]


def test_a_model_without_noise_has_no_means():
    digits = data.load("digits", size=80)
    figure = samples(context(models.Generator((1, 8, 8)), digits)).items[0].picture
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["data", "generated"]


def test_a_conditional_model_has_a_row_for_each_label():
    digits = data.load("digits", size=80)
    named = data.load("digits", size=80)
    object.__setattr__(named, "label_names", ("zero", "one", *map(str, range(2, 9)), "a very long name of nine"))
    model = models.VAE((1, 8, 8), num_classes=10)
    for found, first in ((digits, "label 0"), (named, "zero")):
        state = torch.get_rng_state()
        items = samples(context(model, found)).items
        assert torch.equal(state, torch.get_rng_state())
        rows = [axes.get_ylabel() for axes in items[1].picture.axes]
        assert len(rows) == 10
        assert rows[0] == first
        assert "Means E[x | z] of each label" in items[1].caption
    assert "…" in rows[-1]


def test_a_table_has_each_column_and_pairs_of_columns(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 3)), columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = data.load(tmp_path / "t.csv")
    figures = [item.picture for item in columns_of_samples(context(models.VAE((3,), latent_dim=2), table)).items]
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["a", "b", "c"]
    assert [axes.get_title(loc="left") for axes in figures[1].axes[:3]] == ["data", "synthetic", "synthetic minus data"]
    digits = data.load("digits", size=80)
    assert columns_of_samples(context(models.VAE((1, 8, 8)), digits)) is None
