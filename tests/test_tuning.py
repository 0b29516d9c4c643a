"""The choice among ways of adaptation without target labels."""

import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

import ppgen.tuning as tuning_module
from ppgen import ELBO, fit
from ppgen.data import load, moons, rotated_moons
from ppgen.losses import Ramp
from ppgen.models import DANN, UNKNOWN
from ppgen.tuning import CANDIDATES, SOURCE_ONLY, candidate_loss, needs_contrast_invariance, score_of, tune_adaptation

QUICK = {"batch_size": 64, "compile": False, "progress": False, "optim": partial(torch.optim.Adam, lr=0.02)}
FEW = {"coral 1": {"distance": "coral", "alpha": 1.0}, "conditional": CANDIDATES["jensen_shannon 0.3, conditional"]}


def two_moons(n, seed, degrees):
    (x, y), (there, theirs) = moons(n, seed=seed), rotated_moons(n, degrees=degrees, seed=seed + 1)
    rows = torch.as_tensor(np.concatenate([x, there]))
    labels = torch.as_tensor(np.concatenate([y, np.full(n, UNKNOWN)]))
    return (rows, labels, torch.arange(2).repeat_interleave(n)), torch.as_tensor(theirs)


ROWS, _ = two_moons(60, 0, 30.0)
HELD_OUT, THEIRS = two_moons(40, 10, 30.0)
make_model = partial(DANN, (2,), 2, latent_dim=8, hidden=(8,), activation="tanh")


def test_the_candidate_with_the_best_score_is_kept_with_its_weights():
    tuning = tune_adaptation(make_model, ROWS, HELD_OUT, candidates=FEW, steps=6, loss={"hidden": (8,)}, **QUICK)
    assert list(tuning.scores) == [SOURCE_ONLY, *FEW]
    best = max(tuning.scores, key=lambda name: tuning.scores[name][tuning.scorer])
    assert tuning.chosen == best
    assert tuning.candidate == ({SOURCE_ONLY: CANDIDATES[SOURCE_ONLY]} | FEW)[best]
    assert tuning.fit.chains[0].best_step == 6
    again = tune_adaptation(make_model, ROWS, HELD_OUT, candidates={}, steps=6, **QUICK)
    assert again.scores[SOURCE_ONLY] == tuning.scores[SOURCE_ONLY]
    assert f"chosen by {tuning.scorer}: {best}" in str(tuning)


def test_labels_of_the_target_are_not_seen():
    x, y, d = HELD_OUT
    known = torch.where(d == 1, 1 - torch.cat([THEIRS, THEIRS]), y)
    found = [
        tune_adaptation(make_model, ROWS, rows, candidates={}, steps=2, **QUICK).scores
        for rows in (HELD_OUT, (x, known, d))
    ]
    assert found[0] == found[1]


def test_the_source_alone_is_kept_where_adaptation_does_not_help():
    ruin = {"ruin": {"distance": "coral", "alpha": 1e4}}
    tuning = tune_adaptation(make_model, ROWS, HELD_OUT, candidates=ruin, steps=40, **QUICK)
    assert tuning.chosen == SOURCE_ONLY


@pytest.mark.parametrize("asked", [None, False])
def test_features_of_negatives_are_those_of_the_images(asked):
    digits = load("digits", form="unit").train
    x, y = torch.as_tensor(digits.x[:40]), torch.as_tensor(digits.y[:40]) % 2
    d = torch.arange(2).repeat_interleave(20)
    rows = torch.where(d[:, None, None, None] == 0, x, 1 - x), torch.where(d == 0, y, UNKNOWN), d
    options = QUICK | {"batch_size": 40, "steps": 2, "contrast_invariant": asked}
    with nullcontext() if asked is False else pytest.warns(UserWarning, match="images look like negatives of the sou"):
        tuning = tune_adaptation(partial(DANN, (1, 8, 8), 2, hidden=(4,)), rows, rows, candidates={}, **options)
    assert tuning.model.config["contrast_invariant"] == (True if asked is None else None)
    assert not needs_contrast_invariance(ROWS)  # a table


def test_candidates_that_contradict_each_other_are_reported(monkeypatch):
    train = lambda _, candidate, *rest: (Constant(candidate["label"]), None)  # noqa: E731
    monkeypatch.setattr(tuning_module, "_train", train)
    monkeypatch.setattr(tuning_module, "SOURCE_ONLY", "zero")

    def tune(*labels):
        candidates = {f"label {k}": {"label": label} for k, label in enumerate(labels)}
        return tune_adaptation(
            make_model, ROWS, HELD_OUT, candidates=candidates | {"zero": {"label": 0}}, scorer="entropy", **QUICK
        )

    with warnings.catch_warnings(action="error"):
        assert tune(0, 0, 1).agreement == pytest.approx(
            {"zero": 2 / 3, "label 0": 2 / 3, "label 1": 2 / 3, "label 2": 0}
        )
    with pytest.warns(UserWarning, match="another candidate gives only 33% of the rows of the target the same label"):
        tune(0, 1, 1)


class Constant:
    """A model that gives all rows one label."""

    def __init__(self, label):
        self.label = label

    def predict_proba(self, x, d=1):
        return torch.eye(2)[[self.label] * len(x)]

    def features_of(self, x, d=1):
        return x


def test_circular_validation_trains_in_reverse():
    tuning = tune_adaptation(make_model, ROWS, HELD_OUT, candidates={}, scorer="circular_validation", steps=30, **QUICK)
    assert 0.6 < tuning.scores[SOURCE_ONLY]["circular_validation"] <= 1


def test_a_candidate_that_fails_is_left_out(monkeypatch):
    train = tuning_module._train

    def failing(make_model, candidate, *rest):
        if candidate.get("conditional"):
            raise FloatingPointError("the loss is nan at step 1")
        return train(make_model, candidate, *rest)

    monkeypatch.setattr(tuning_module, "_train", failing)
    fails = {"fails": FEW["conditional"]}
    with pytest.warns(UserWarning, match="tune_adaptation: fails is left out: the loss is nan at step 1"):
        tuning = tune_adaptation(make_model, ROWS, HELD_OUT, candidates=fails, steps=2, **QUICK)
    assert tuning.scores["fails"] == {}
    assert tuning.chosen == SOURCE_ONLY
    monkeypatch.setattr(tuning_module, "CANDIDATES", {})
    monkeypatch.setattr(tuning_module, "SOURCE_ONLY", "fails")
    monkeypatch.setattr(tuning_module, "_train", raising)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(FloatingPointError, match="no candidate could be trained"),
    ):
        tune_adaptation(make_model, ROWS, HELD_OUT, steps=2, **QUICK)


def raising(*_):
    raise FloatingPointError("the loss is nan at step 1")


def test_candidates_are_arguments_of_the_recipe():
    losses = {name: str(candidate_loss(candidate)) for name, candidate in CANDIDATES.items()}
    assert losses.pop(SOURCE_ONLY) == "ELBO"
    assert len(set(losses.values())) == len(losses)
    assert "Ramp(0 -> 0.3)" in losses["mmd 0.3"]
    assert "posterior(hy)" in losses["jensen_shannon 0.3, conditional"]
    assert "0.5" in str(candidate_loss({"distance": "coral", "alpha": Ramp(0.5)}))


def test_rows_that_cannot_be_scored_are_refused():
    x, y, d = HELD_OUT
    for rows in ((x[d == 0], y[d == 0], d[d == 0]), (x, torch.full_like(y, UNKNOWN), d)):
        with pytest.raises(ValueError, match="expected labeled ones of the source and some of the target, got"):
            tune_adaptation(make_model, ROWS, rows, steps=1, **QUICK)
    with pytest.raises(ValueError, match="expected scorer to be one of"):
        tune_adaptation(make_model, ROWS, HELD_OUT, scorer="accuracy", steps=1, **QUICK)


def test_a_score_chooses_the_weights_of_a_run():
    torch.manual_seed(0)
    dann, (x, y, d) = make_model(), ROWS
    score = score_of(dann, HELD_OUT, "mutual_information")
    options = QUICK | {"batch_size": 40}
    fitted = fit(dann.model, dann.guide, (x, y, d), loss=ELBO(), score=score, steps=9, patience=5, **options)
    checks = fitted.chains[0].validation["loss"]
    assert len(checks) > 0
    assert score() == pytest.approx(checks.min(), abs=1e-6)
    with pytest.raises(ValueError, match="circular_validation trains a second model"):
        score_of(dann, HELD_OUT, "circular_validation")
