"""Metrics between samples, critics trained for the purpose; labels of draws; all measures together."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from ppgen import metrics as m
from ppgen.evaluation import estimate, label_agreement
from ppgen.evaluation.summary import C2ST, METRICS, measure


def critic(*shapes) -> nn.Module:
    width = sum(int(np.prod(shape)) for shape in shapes)
    return nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, 1))


def gaussians(n: int, shift: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 1, generator=generator)
    return x, y + shift


def test_a_metric_of_samples_is_taken_as_it_is():
    x, y = gaussians(50, 1.0)
    assert estimate(m.EnergyDistance(), x, y) == float(m.EnergyDistance()(x, y))


def test_a_critic_tells_laws_apart_on_rows_it_has_not_seen():
    """N(0, 1) and N(2, 1), by quadrature; 2000 held-out rows each, the deviation of their mean is below 0.01."""
    x, y = gaussians(4000, 2.0)
    grid = np.linspace(-10, 12, 10001)
    p, q = norm.pdf(grid), norm.pdf(grid, 2)
    exact = np.log(2) - np.trapezoid((p * np.log1p(q / p) + q * np.log1p(p / q)) / 2, grid)
    value = estimate(m.JensenShannon(critic, lr=3e-3), x, y, steps=400)
    assert exact - 0.04 < value < exact + 4 * 0.01  # level 3e-5 from above


def test_samples_of_one_law_are_not_told_apart():
    """A critic that memorizes gains nothing: 500 held-out rows, the deviation of its value is below 0.02."""
    x, y = gaussians(1000, 0.0)
    assert estimate(m.JensenShannon(critic, lr=1e-2), x, y, steps=300) < 4 * 0.02  # level 3e-5


def test_the_metrics_own_critic_and_the_random_state_stay():
    network = nn.Linear(1, 1)
    before, metric = network.weight.detach().clone(), m.JensenShannon(network)
    torch.manual_seed(3)
    first = torch.rand(3)
    torch.manual_seed(3)
    values = {estimate(metric, *gaussians(64, 1.0), steps=5, seed=4) for _ in range(2)}
    assert len(values) == 1
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(network.weight, before)
    assert metric.network is None


def test_a_critic_needs_rows():
    with pytest.raises(ValueError, match="at least four rows"):
        estimate(m.JensenShannon(critic), torch.randn(3, 1), torch.randn(9, 1))


def clusters(n: int, seed: int, kinds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(kinds, size=n)
    return 4 * np.eye(kinds)[y] + rng.standard_normal((n, kinds)), y


def test_classifiers_agree_on_data_and_not_on_junk():
    data, y = clusters(400, 0)
    held_out, _ = clusters(400, 1)
    junk = np.random.default_rng(2).uniform(-6, 8, size=(400, 4))
    good, bad = label_agreement(data, y, held_out), label_agreement(data, y, junk)
    assert good.share > 0.95
    assert bad.share < good.share - 0.05
    assert good.drawn.sum() == pytest.approx(1)


def test_labels_that_are_never_drawn_have_no_share():
    data, y = clusters(400, 0)
    held_out, labels = clusters(400, 1)
    drawn = label_agreement(data, y, held_out[labels != 2]).drawn
    assert drawn[2] < 0.02
    assert drawn[[0, 1, 3]].min() > 0.2


def test_labels_have_to_fit():
    data, y = clusters(20, 0)
    with pytest.raises(ValueError, match="at least two kinds"):
        label_agreement(data, np.zeros(20), data)
    with pytest.raises(ValueError, match=r"\(20,\) labels"):
        label_agreement(data, y[:5], data)


def test_every_metric_ranks_a_better_model_first():
    """Draws shifted by half and by two deviations; 300 rows, where noise is a tenth of either value or less."""
    (data, _), (near, _) = clusters(300, 0), clusters(300, 1)
    good, bad = (measure(near + shift, data) for shift in (0.5, 2.0))
    assert set(METRICS) < set(good)
    for name in METRICS:
        if name != "CORAL":  # which a shift leaves as it is
            assert good[name] < bad[name], name
    assert good["precision"] > bad["precision"]
    assert good[C2ST] < bad[C2ST]


def test_measures_do_not_depend_on_units():
    (data, _), (near, _) = clusters(100, 0), clusters(100, 1)
    scale = np.array([1.0, 10.0, 100.0, 0.1])
    one, other = (measure(a, b, metrics=False) for a, b in ((near, data), (near * scale + 7, data * scale + 7)))
    assert one == pytest.approx(other, rel=1e-6)


def test_modes_and_labels_are_measured_where_they_are_known():
    data, y = clusters(200, 0)
    numbers = measure(data, data, labeled=(data, y), modes=(4 * np.eye(4), 1.0), metrics=False)
    assert numbers["labels drawn"] == 4
    assert numbers["modes captured"] == 4
    assert numbers["share of the rarest label"] > 0.1
