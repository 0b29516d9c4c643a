"""Augmented images: flips and shifts by random numbers of seed, epoch and batch, with the labels of their rows."""

import numpy as np
import pytest
import torch
from data_files import GRAY, same, save_images

import ppgen
from ppgen import data
from ppgen.training.sources import own_random


def drawn(images, rows, key=(0, 0, 0)):
    with own_random(key):
        return images.__getitems__(rows)


def test_half_of_the_images_are_mirrored():
    d = data.load("digits", form="unit")
    images = data.Augmented(d)
    x = torch.stack(drawn(images, list(range(400)))).numpy()
    train = d.train.x[:400]
    kept, mirrored = (np.all(x == other, axis=(1, 2, 3)) for other in (train, train[..., ::-1]))
    assert (kept | mirrored).all()
    assert 150 < kept.sum() < 250  # five standard deviations


@pytest.mark.parametrize("form", ["unit", "integer", "binary", "continuous"])
def test_shifted_images_are_windows_of_padded_ones(form):
    """All nine windows occur, and what moves in has the lowest level: 0, or below 1/17 if dequantized."""
    d = data.load("digits", form=form)
    x = np.stack(drawn(data.Augmented(d, flip=False, shift=1), [5] * 200))
    assert x.dtype == d.x.dtype
    inner = d.train.x[5, 0]
    found = set()
    for image in x[:, 0]:
        for down in (0, 1, 2):
            for right in (0, 1, 2):
                wide = np.full((10, 10), np.nan)
                wide[1:9, 1:9] = inner
                seen = wide[down : down + 8, right : right + 8]
                known = ~np.isnan(seen)
                if same(image[known], seen[known].astype(image.dtype)):
                    found.add((down, right))
                    assert (image[~known] < (1 / 17 if form == "continuous" else 1e-9)).all()
    assert len(found) == 9
    if form == "continuous":
        assert len(np.unique(x[x < 1 / 17])) > 100  # noise, not one value with infinite density


def test_a_batch_depends_on_its_key_alone(tmp_path):
    for name in ("cat", "dog"):
        save_images(tmp_path / name, GRAY)
    options = {"form": "unit", "validation": 0.0, "test": 0.0}
    streamed, plain = (data.load(tmp_path, stream=stream, **options) for stream in (True, False))
    batches = [
        drawn(data.Augmented(d, labels=True, shift=1), [3, 1, 4], key)
        for d, key in ((plain, (0, 2, 8)), (streamed, (0, 2, 8)), (plain, (0, 3, 8)))
    ]
    for (one, label), (other, other_label) in zip(*batches[:2], strict=True):
        assert torch.equal(one, other)
        assert label == other_label
    assert [int(label) for _, label in batches[0]] == plain.train.y[[3, 1, 4]].tolist()
    assert any(not torch.equal(one, other) for (one, _), (other, _) in zip(batches[0], batches[2], strict=True))


def test_a_resumed_fit_sees_the_same_images(tmp_path):
    images = data.Augmented(data.load("digits", form="unit", size=100), shift=1)
    whole, resumed = (ppgen.models.VAE((1, 8, 8), latent_dim=2, hidden=(8,)) for _ in range(2))
    resumed.load_state_dict(whole.state_dict())
    options = {"batch_size": 20, "steps": 10, "compile": False, "progress": False}
    expected = ppgen.fit(whole.model, whole.guide, images, **options).history["loss"]
    assert len(set(expected)) == 10

    def stop(step):
        if step.number == 6:
            raise KeyboardInterrupt

    options["checkpoint"] = tmp_path / "run"
    ppgen.fit(resumed.model, resumed.guide, images, callbacks=[stop], **options)
    again = ppgen.fit(resumed.model, resumed.guide, images, **options)
    assert np.array_equal(again.history["loss"], expected)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("moons", {}, r"moons: flip and shift are of images, and these data have rows of shape \(2,\)"),
        ("digits", {"shift": 4}, "0 or more pixels, less than half of 8, got 4"),
        ("digits", {"shift": -1}, "got -1"),
    ],
)
def test_what_cannot_be_augmented_is_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        data.Augmented(data.load(source, size=20), **options)


def test_images_of_real_numbers_have_no_lowest_level(tmp_path):
    np.save(tmp_path / "x.npy", GRAY / 2)
    with pytest.raises(ValueError, match=r"shift=1: what moves in has the lowest gray level, and x\.npy has none"):
        data.Augmented(data.load(tmp_path / "x.npy"), shift=1)
