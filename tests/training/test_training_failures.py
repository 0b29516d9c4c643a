"""Training warnings: each planted failure of adversarial training is reported alone, and none in a good run."""

import numpy as np
import pytest

from ppgen.training.training_failures import ADVICE, MIN_STEPS, CriticProperties, training_warnings

STEPS = 2000
FOUND_ELSEWHERE = {"features collapsed"}  # by `ppgen.evaluation.features_collapsed`
RNG = np.random.default_rng(0)


def adversarial_metrics(objective, gradient=0.1, programs=0.1) -> dict[str, np.ndarray]:
    """The metrics of a chain with one critic, with ten percent of noise on the gradient norms."""
    noisy = 1 + 0.1 * RNG.standard_normal((2, STEPS))
    return {
        "critic D(x)": -np.asarray(objective, dtype=float) * np.ones(STEPS),
        "gradient of critic D(x)": np.asarray(gradient) * noisy[0],
        "gradient of the programs": np.asarray(programs) * noisy[1],
    }


def names(metrics, upper_bound: float | None = np.log(2)) -> list[str]:
    """The warnings about an ordinary critic."""
    return [warning.name for warning in training_warnings(metrics, CriticProperties({"D(x)": upper_bound}))]


def alignment_names(metrics, **options) -> list[str]:
    """The warnings about a critic that should fail."""
    critics = CriticProperties({"D(x)": np.log(2)}, frozenset({"D(x)"}))
    return [warning.name for warning in training_warnings(metrics, critics, **options)]


t = np.arange(STEPS) / STEPS
noise = 0.01 * RNG.standard_normal(STEPS)
late = np.where(t > 0.6, 1e-6, 1.0)
FAILURES = {
    "critic won": adversarial_metrics(0.68 + 0.1 * noise),
    "critic collapsed": adversarial_metrics(1e-5 * noise, gradient=0.1 * late),
    "vanishing gradients": adversarial_metrics(0.5 + noise, programs=0.1 * late),
    "oscillation": adversarial_metrics(0.1 + 0.2 * np.sin(40 * t) + noise),
    "critic diverges": adversarial_metrics(0.2 + noise, gradient=np.where(t > 0.85, 100.0, 0.1)),
}
GOOD_RUNS = {
    "constant": adversarial_metrics(0.05 + noise),
    "converged": adversarial_metrics(noise),
    "learning": adversarial_metrics(0.6 * np.exp(-8 * t) + noise),
    "decaying learning rates": adversarial_metrics(0.02 + noise, gradient=0.1 * (1.05 - t), programs=0.1 * (1.05 - t)),
    "a noisy critic": adversarial_metrics(0.05 + 10 * noise),
}
ALIGNMENT_FAILURES = {
    "critic never fooled": adversarial_metrics(0.68 * (1 - np.exp(-20 * t)) + noise),
    "critic at chance too early": adversarial_metrics(noise),
}
GOOD_ALIGNMENTS = {
    "fooled": adversarial_metrics(0.4 * (1 - np.exp(-50 * t)) * (1 - t) + noise),
    "nearly won, then fooled": adversarial_metrics(0.68 * (1 - np.exp(-50 * t)) * (t < 0.5) + noise),
    "half fooled": adversarial_metrics(0.5 - 0.1 * t + noise),
    "at chance at the end": adversarial_metrics(0.1 * (t < 0.2) + noise),
    "small under a penalty": adversarial_metrics(0.01 * (1 - t) + 0.1 * noise),
}


def test_every_kind_of_warning_has_a_planted_failure():
    assert {*FAILURES, *ALIGNMENT_FAILURES} | FOUND_ELSEWHERE == set(ADVICE)


@pytest.mark.parametrize("name", FAILURES)
def test_a_planted_failure_is_the_only_warning(name):
    assert names(FAILURES[name]) == [name]


@pytest.mark.parametrize("run", GOOD_RUNS)
def test_a_good_run_has_no_warnings(run):
    assert names(GOOD_RUNS[run]) == []


@pytest.mark.parametrize("name", [name for name in FAILURES if name != "critic won"])
def test_failures_are_found_without_an_upper_bound(name):
    assert names(FAILURES[name], upper_bound=None) == [name]


@pytest.mark.parametrize("name", ALIGNMENT_FAILURES)
def test_a_planted_failure_of_alignment_is_the_only_warning(name):
    assert alignment_names(ALIGNMENT_FAILURES[name]) == [name]
    assert name not in names(ALIGNMENT_FAILURES[name])


@pytest.mark.parametrize("run", GOOD_ALIGNMENTS)
def test_a_critic_that_was_fooled_has_no_warnings(run):
    assert alignment_names(GOOD_ALIGNMENTS[run]) == []


def test_never_fooled_is_reported_only_at_the_end():
    assert alignment_names(ALIGNMENT_FAILURES["critic never fooled"], finished=False) == []
    early = alignment_names(ALIGNMENT_FAILURES["critic at chance too early"], finished=False)
    assert early == ["critic at chance too early"]


@pytest.mark.parametrize("name", ["oscillation", "critic collapsed", "critic diverges", "vanishing gradients"])
def test_other_failures_are_found_in_alignment_too(name):
    assert name in alignment_names(FAILURES[name])


def test_a_few_steps_have_no_warnings():
    assert names({name: values[: MIN_STEPS - 1] for name, values in FAILURES["critic won"].items()}) == []


def test_a_warning_names_the_critic_the_observation_and_the_fix():
    (warning,) = training_warnings(FAILURES["critic won"], CriticProperties({"D(x)": np.log(2)}))
    assert warning.subject == "critic D(x)"
    assert "0.68 of at most 0.693" in str(warning)
    assert "penalty" in warning.advice


def test_a_loss_without_critics_has_no_warnings():
    assert training_warnings({}) == []
