"""Estimators for scikit-learn: its own checks, closed forms, frames, pipelines, grid search and pickles."""

import pickle

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ppgen.sklearn import Classifier, GenerativeModel, Regressor

QUICK = {"fit_options": {"steps": 3, "compile": False}, "particles": 2}
FLOW = GenerativeModel("maf", model_options={"hidden": [4], "layers": 1}, **QUICK)
VAE = GenerativeModel("vae", model_options={"hidden": [4], "latent_dim": 1}, **QUICK)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
Y = X @ [1.0, -2.0] + 0.5 + RNG.normal(size=60)
IMPORTANCE = "the log evidence is estimated by importance sampling, whose draws belong to a batch of rows"


def exempt(estimator):
    """The checks that do not apply, with reasons."""
    if isinstance(estimator, GenerativeModel) and estimator.method == "vae":
        return dict.fromkeys(["check_methods_sample_order_invariance", "check_methods_subset_invariance"], IMPORTANCE)
    return {}


@parametrize_with_checks([FLOW, VAE], expected_failed_checks=exempt)
def test_generative_models_pass_the_checks_of_scikit_learn(estimator, check):
    check(clone(estimator))


@pytest.mark.extensive
@parametrize_with_checks([Regressor(restarts=1, draws=20), Classifier(restarts=1, draws=20)])
def test_programs_pass_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def line(x, y=None):
    """A conjugate regression."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    mean = b[0] + x[:, 0] * b[1] + x[:, 1] * b[2]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture(scope="module")
def regressor():
    return Regressor(line, draws=300, restarts=1).fit(X, Y)


def test_predictions_are_the_posterior_mean(regressor):
    design = np.column_stack([np.ones(60), X])
    covariance = np.linalg.inv(np.eye(3) + design.T @ design)
    mean = covariance @ design.T @ Y
    error = np.sqrt((design @ covariance * design).sum(1) / 300)
    assert np.all(np.abs(regressor.predict(X) - design @ mean) < 5 * error)
    spread = np.sqrt(1 + (design @ covariance * design).sum(1))
    interval = regressor.predict_interval(X, level=0.9)
    np.testing.assert_allclose(
        (interval - regressor.predict(X)[:, None]) / spread[:, None], [[-1.645, 1.645]] * 60, atol=0.2
    )


def test_predictions_do_not_depend_on_the_other_rows(regressor):
    alone = np.concatenate([regressor.predict(row[None]) for row in X[:5]])
    np.testing.assert_allclose(alone, regressor.predict(X)[:5], rtol=1e-12)


def test_levels_out_of_range_are_refused(regressor):
    with pytest.raises(ValueError, match="level: expected a probability between 0 and 1, got 90"):
        regressor.predict_interval(X, level=90)


def side(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    mean = x[:, 0] * b
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=mean), obs=y)


def test_a_program_of_two_classes_may_observe_a_bernoulli_site():
    y = np.where(X[:, 0] + RNG.normal(size=60) > 0, "right", "left")
    found = Classifier(side, restarts=1, draws=50).fit(X, y)
    probabilities = found.predict_proba(X)
    assert found.classes_.tolist() == ["left", "right"]
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.array_equal(found.predict(X), found.classes_[(X[:, 0] > 0).astype(int)])


@pytest.mark.slow
@pytest.mark.parametrize("classes", [["no", "yes"], [3, 5, 9]])
def test_a_classifier_predicts_the_classes_that_it_was_given(classes):
    centers = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])[: len(classes)]
    codes = np.arange(90) % len(classes)
    x, y = centers[codes] + RNG.normal(size=(90, 2)), np.array(classes)[codes]
    found = Classifier(restarts=1, draws=50).fit(x, y)
    probabilities = found.predict_proba(x)
    assert found.classes_.tolist() == classes
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.array_equal(found.predict(x), found.classes_[probabilities.argmax(1)])
    assert found.score(x, y) > 0.8


def by_name(county, x, num_county, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("county", num_county):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a[county] + b * x, 1.0), obs=y)


def test_a_program_takes_the_columns_of_a_frame_by_name():
    frame = pd.DataFrame({"x": X[:, 0], "unused": "text", "county": np.where(X[:, 1] > 0, "north", "south")})
    found = Regressor(by_name, draws=50, restarts=1).fit(frame, Y)
    assert found.score(frame, Y) > 0.6
    np.testing.assert_allclose(found.predict(frame[["county", "x"]].iloc[:3]), found.predict(frame)[:3])
    with pytest.raises(ValueError, match=r"row 0 .*column 'county': expected one of the 2 categories"):
        found.predict(frame.assign(county="west"))
    with pytest.raises(ValueError, match="no column 'x'"):
        found.predict(frame.drop(columns="x"))
    assert np.array_equal(pickle.loads(pickle.dumps(found)).predict(frame), found.predict(frame))


def test_estimators_of_programs_stand_in_pipelines():
    scores = cross_val_score(make_pipeline(StandardScaler(), Regressor(line, restarts=1, draws=20)), 9 * X, Y, cv=2)
    assert scores.min() > 0.5


@pytest.mark.slow
def test_the_default_regression_predicts_a_table():
    x, y = load_diabetes(return_X_y=True)
    scores = cross_val_score(make_pipeline(StandardScaler(), Regressor(restarts=1, draws=100)), x, y, cv=2)
    assert scores.min() > 0.3


def test_other_programs_are_named():
    def two(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(b, 1.0), obs=y)
            pyro.sample("v", dist.Normal(b, 1.0), obs=y)

    found = Regressor(two, draws=5, restarts=1).fit(X, Y)
    with pytest.raises(ValueError, match="expected a program that observes one site, got u, v"):
        found.predict(X)
    found = Classifier(line, draws=5, restarts=1).fit(X, Y > 0)
    with pytest.raises(ValueError, match="observes a Bernoulli or Categorical site, got Normal"):
        found.predict(X)


@pytest.mark.parametrize("estimator", [FLOW, VAE])
def test_rows_come_in_their_units_and_the_density_too(estimator):
    """Scaling all columns by 100 moves the log density by -2 log 100."""
    frame = pd.DataFrame(X * 100 + 7, columns=["a", "b"])
    found = clone(estimator).fit(frame)
    drawn = found.sample(500)
    assert drawn.columns.tolist() == ["a", "b"]
    assert 50 < drawn["a"].std() < 200
    small = clone(estimator).fit(X)
    np.testing.assert_allclose(
        found.score_samples(frame), small.score_samples(X) - 2 * np.log(100), rtol=1e-3, atol=1e-2
    )
    assert found.score(frame) == pytest.approx(found.score_samples(frame).mean())


def test_codes_of_a_flow_are_exact_and_those_of_an_autoencoder_have_its_width():
    flow = clone(FLOW).fit(X)
    np.testing.assert_allclose(flow.inverse_transform(flow.transform(X)), X, atol=1e-5)
    vae = clone(VAE).fit(X)
    assert vae.transform(X).shape == (60, 1)
    assert vae.inverse_transform(vae.transform(X)).shape == X.shape


def test_grid_search_chooses_by_the_density():
    options = [{"hidden": [4], "layers": 1}, {"hidden": [8], "layers": 1}]
    search = GridSearchCV(FLOW, {"model_options": options}, cv=2).fit(X)
    assert search.best_params_["model_options"] in options
    assert np.isfinite(search.best_score_)


def test_methods_that_a_model_does_not_have_are_absent():
    game = GenerativeModel("gan")
    assert not any(hasattr(game, name) for name in ("score_samples", "score", "transform"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "vea"}, "there is no 'vea' that models data; did you mean 'vae'"),
        ({"method": "dann"}, "there is no 'dann' that models data"),
        ({"model_options": {"hiden": [4]}}, "no option 'model.hiden'; did you mean 'model.hidden'"),
    ],
)
def test_unknown_methods_and_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GenerativeModel(**options).fit(X)


def test_models_are_pickled_with_their_weights():
    found = clone(VAE).fit(X)
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again.sample(5, random_state=1), found.sample(5, random_state=1))
    assert np.array_equal(again.transform(X), found.transform(X))
