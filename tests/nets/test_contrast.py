"""Features that stay the same where light and dark are exchanged."""

import pytest
import torch
from torch import nn

from ppgen import ELBO, fit
from ppgen.data import load
from ppgen.models import DANN, UNKNOWN
from ppgen.nets import ContrastInvariant, rows_of


def pair(a, b, n=12):
    """Images of a source, and the same ones with another contrast as the target."""
    x = torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, a * x + b]), torch.arange(2).repeat_interleave(n)


@pytest.mark.parametrize(("a", "b"), [(-1.0, 1.0), (2.0, 0.5), (-0.5, -3.0)], ids=["inverted", "brighter", "both"])
def test_features_do_not_depend_on_contrast(a, b):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))
    layer, (x, d) = ContrastInvariant(2, network), pair(a, b)
    with rows_of(layer, d):
        there, here = layer(x).chunk(2)
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-3)
    assert float(there.detach().std(0).min()) > 1e-3
    assert {name for name, _ in layer.named_parameters()} == {f"network.{n}" for n, _ in network.named_parameters()}


@pytest.mark.parametrize("features", [None, nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.ReLU())])
def test_what_the_source_teaches_holds_for_negatives(features):
    torch.manual_seed(0)
    x, d = pair(-1.0, 1.0)
    y = torch.where(d == 0, (x[:, 0].mean((1, 2)) > 0.5).long(), UNKNOWN)
    dann = DANN((2, 8, 8), 2, latent_dim=4, hidden=(4, 4), features=features, contrast_invariant=True)
    fit(dann.model, dann.guide, (x, y, d), loss=ELBO(), steps=3, batch_size=len(x), compile=False, progress=False)
    with rows_of(dann.features, d):
        there, here = dann.classifier(dann.features(x)).chunk(2)
    torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-4)
    assert float(there.detach().std(0).min()) > 1e-3


def test_only_images_have_contrast():
    with pytest.raises(ValueError, match=r"contrast_invariant is for images \(channels, height, width\), got event_sh"):
        DANN((5,), 2, contrast_invariant=True)


@pytest.mark.slow
def test_a_classifier_of_digits_reads_negatives():
    digits = load("digits", form="unit").train
    x, y = torch.as_tensor(digits.x[:1000]), torch.as_tensor(digits.y[:1000])
    d = torch.arange(1000) % 2
    rows = torch.where(d[:, None, None, None] == 0, x, 1 - x), torch.where(d == 0, y, UNKNOWN), d
    right = {}
    for invariant in (False, True):
        torch.manual_seed(0)
        dann = DANN((1, 8, 8), 10, hidden=(16, 32), contrast_invariant=invariant)
        fit(dann.model, dann.guide, rows, loss=ELBO(), steps=150, batch_size=64, compile=False, progress=False)
        right[invariant] = float((dann.predict(rows[0][d == 1]) == y[d == 1]).float().mean())
    assert right[False] < 0.4
    assert right[True] > 0.75
