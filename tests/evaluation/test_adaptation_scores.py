"""Scores of adapted classifiers without target labels: closed forms, values of skada, assumptions, refusals."""

import math

import numpy as np
import pytest
import torch

from ppgen.evaluation import SCORERS, TransferPredictions, transfer_scores
from ppgen.evaluation.adaptation_scores import dev_risk
from ppgen.evaluation.domains import density_ratio
from ppgen.models import DANN

SURE = np.eye(3)[[0, 1, 2, 0, 1, 2]]
EVEN = np.full((6, 3), 1 / 3)
Y = np.array([0, 1, 2, 0, 1, 2])
SOFT = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]])

# name: scores of predictions that are sure and balanced, that know nothing, and that give every row one label
CLOSED = {
    "entropy": (0.0, -math.log(3), 0.0),
    "mutual_information": (math.log(3), 0.0, 0.0),
    "soft_neighborhood_density": (0.0, math.log(5), math.log(5)),
}


def predictions(target, **more):
    return TransferPredictions(SURE, Y, target, **more)


@pytest.mark.parametrize("name", CLOSED)
def test_scores_of_target_predictions_have_closed_forms(name):
    rows = SURE, EVEN, np.eye(3)[[1] * 6]
    found = [transfer_scores(predictions(target), [name])[name] for target in rows]
    assert found == pytest.approx(CLOSED[name], abs=1e-6)


def test_scores_are_those_of_skada():
    # of skada 0.6.0 on these rows; its entropy is a mean over classes too. Its deep embedded validation multiplies
    # weights (n, 1) by losses (n,) and averages (n, n) products, so that closed forms are its test
    found = transfer_scores(predictions(SOFT))
    assert found["entropy"] / 3 == pytest.approx(-0.2548061535895651, rel=1e-6)  # it adds 1e-7 to p
    assert found["soft_neighborhood_density"] == pytest.approx(0.3318198273390619, rel=1e-6)


def test_neighbors_in_blocks_are_those_in_one_matrix(monkeypatch):
    whole = transfer_scores(predictions(SOFT), ["soft_neighborhood_density"])
    monkeypatch.setattr("ppgen.evaluation.adaptation_scores.ROWS_AT_ONCE", 2)
    assert transfer_scores(predictions(SOFT), ["soft_neighborhood_density"]) == pytest.approx(whole)


def test_the_control_variate_removes_noise_of_the_weights_and_no_signal():
    rng = np.random.default_rng(0)
    weights = rng.gamma(2.0, 0.5, size=(400, 50))  # of mean one
    plain, risks = [], []
    for w in weights:
        plain.append(np.mean(3.0 * w))
        risks.append(dev_risk(np.full(50, 3.0), w))
    assert risks == pytest.approx([3.0] * 400)  # equal losses: the variate removes all noise
    assert np.std(plain) > 0.2
    assert dev_risk(np.arange(4.0), np.ones(4)) == 1.5


def test_the_density_ratio_is_that_of_shifted_gaussians():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 1)), rng.normal(size=(2000, 1)) + 1
    found = density_ratio(x, y)
    inside = np.abs(x[:, 0]) < 2
    assert np.log(found[inside]) == pytest.approx(x[inside, 0] - 0.5, abs=0.25)
    assert found.mean() == pytest.approx(1, abs=0.1)


def test_weighted_scores_follow_the_region_of_the_target():
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(3000, 1)), rng.normal(size=(3000, 1)) + 1
    y = (h[:, 0] > 0).astype(int)
    both = {}
    for name, right in (("right where the target is", h[:, 0] > 0), ("right elsewhere", h[:, 0] < 0)):
        p = np.where(right, y, 1 - y)
        source = np.eye(2)[p] * 0.8 + 0.1
        made = TransferPredictions(source, y, np.full((3000, 2), 0.5), h, g)
        both[name] = transfer_scores(made, ["importance_weighted", "deep_embedded_validation"])
    share = 0.8413  # of the target above zero
    for name, expected in (("right where the target is", share), ("right elsewhere", 1 - share)):
        log_loss = -expected * math.log(0.9) - (1 - expected) * math.log(0.1)
        assert both[name]["importance_weighted"] == pytest.approx(expected, abs=0.03)
        assert both[name]["deep_embedded_validation"] == pytest.approx(-log_loss, abs=0.08)


def test_clusters_agree_with_predictions_of_the_same_rows():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 40)
    h = np.eye(3)[truth] + 0.1 * rng.normal(size=(120, 3))
    found = {
        name: transfer_scores(predictions(np.eye(3)[labels], target_features=h), ["cluster_agreement"])[
            "cluster_agreement"
        ]
        for name, labels in (
            ("same", truth),
            ("exchanged", (truth + 1) % 3),
            ("half", np.where(np.arange(120) % 2, truth, rng.permutation(truth))),
            ("independent", rng.permutation(truth)),
            ("one", 0 * truth),
        )
    }
    assert found["same"] == found["exchanged"] == pytest.approx(1)
    assert 0.1 < found["half"] < 0.7
    assert abs(found["independent"]) < 0.05  # adjusted for chance
    assert found["one"] == 0


def test_circular_validation_is_the_accuracy_of_the_way_back():
    found = transfer_scores(predictions(SURE, reverse=np.array([0, 1, 2, 0, 0, 0])))
    assert found["circular_validation"] == pytest.approx(4 / 6)


def test_a_model_has_all_scores_that_its_predictions_suffice_for():
    torch.manual_seed(0)
    dann, x, target = DANN((2,), 3, latent_dim=4, hidden=(5,)), torch.randn(30, 2), torch.randn(20, 2)
    y = torch.arange(30) % 3
    found = transfer_scores(TransferPredictions.of(dann, x, y, target))
    assert list(found) == [name for name in SCORERS if name != "circular_validation"]
    assert all(map(math.isfinite, found.values()))
    assert found["entropy"] == pytest.approx(
        float(-torch.distributions.Categorical(dann.predict_proba(target)).entropy().mean()), rel=1e-5
    )
    bayesian = DANN((2,), 3, latent_dim=4, hidden=(5,), bayesian=True)
    assert transfer_scores(TransferPredictions.of(bayesian, x, y, target)) == transfer_scores(
        TransferPredictions.of(bayesian, x, y, target)
    )


BAD = {
    "classes": (lambda: TransferPredictions(SURE, Y, np.full((4, 2), 0.5)), r"probabilities \(n, K\) and \(m, K\)"),
    "logits": (lambda: TransferPredictions(SURE, Y, SOFT * 2), "target: expected probabilities"),
    "few labels": (lambda: TransferPredictions(SURE, Y[:-1], SOFT), "labels: expected a label for each of the 6 rows"),
    "unknown labels": (lambda: TransferPredictions(SURE, Y - 1, SOFT), r"labels: expected 0 .. 2, got -1 .. 1"),
    "no features": (lambda: transfer_scores(predictions(SOFT), ["importance_weighted"]), "need source_features"),
    "no target features": (lambda: transfer_scores(predictions(SOFT), ["cluster_agreement"]), "needs target_features"),
    "no way back": (lambda: transfer_scores(predictions(SOFT), ["circular_validation"]), "needs reverse"),
    "one row": (lambda: transfer_scores(predictions(SOFT[:1]), ["soft_neighborhood_density"]), "at least 2 rows"),
    "unknown scorer": (lambda: transfer_scores(predictions(SOFT), ["accuracy"]), "expected scorer to be one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_predictions_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
