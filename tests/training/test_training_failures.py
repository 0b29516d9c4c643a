"""The watch on games: each sign is seen where it is planted, alone, and none where a game is healthy."""

import numpy as np
import pytest

from ppgen.training.training_failures import LEAST, REMEDIES, training_warnings

STEPS = 2000
ELSEWHERE = {"features collapsed"}  # seen by `ppgen.diagnostics.features_collapsed`
RNG = np.random.default_rng(0)


def adversarial_metrics(edge, slope=0.1, programs=0.1) -> dict[str, np.ndarray]:
    """What a chain would have kept of one critic: noise of ten percent on the gradients."""
    flicker = 1 + 0.1 * RNG.standard_normal((2, STEPS))
    return {
        "critic D(x)": -np.asarray(edge, dtype=float) * np.ones(STEPS),
        "gradient of critic D(x)": np.asarray(slope) * flicker[0],
        "gradient of the programs": np.asarray(programs) * flicker[1],
    }


def signs(given, upper_bound: float | None = np.log(2)) -> list[str]:
    return [finding.sign for finding in training_warnings(given, {"D(x)": upper_bound})]


t = np.arange(STEPS) / STEPS
noise = 0.01 * RNG.standard_normal(STEPS)
late = np.where(t > 0.6, 1e-6, 1.0)
PLANTED = {
    "critic won": adversarial_metrics(0.68 + 0.1 * noise),
    "critic collapsed": adversarial_metrics(1e-5 * noise, slope=0.1 * late),
    "nothing to learn": adversarial_metrics(0.5 + noise, programs=0.1 * late),
    "circles": adversarial_metrics(0.1 + 0.2 * np.sin(40 * t) + noise),
    "critic diverges": adversarial_metrics(0.2 + noise, slope=np.where(t > 0.85, 100.0, 0.1)),
}
HEALTHY = {
    "still": adversarial_metrics(0.05 + noise),
    "at rest": adversarial_metrics(noise),
    "learning": adversarial_metrics(0.6 * np.exp(-8 * t) + noise),
    "rates that decay": adversarial_metrics(0.02 + noise, slope=0.1 * (1.05 - t), programs=0.1 * (1.05 - t)),
    "a noisy critic": adversarial_metrics(0.05 + 10 * noise),
}


def test_every_sign_is_planted():
    assert {*PLANTED, *ALIGNED} | ELSEWHERE == set(REMEDIES)


@pytest.mark.parametrize("sign", PLANTED)
def test_a_planted_sign_is_seen_alone(sign):
    assert signs(PLANTED[sign]) == [sign]


@pytest.mark.parametrize("game", HEALTHY)
def test_nothing_is_seen_of_a_healthy_game(game):
    assert signs(HEALTHY[game]) == []


@pytest.mark.parametrize("sign", [sign for sign in PLANTED if sign != "critic won"])
def test_signs_are_seen_of_a_divergence_without_a_ceiling(sign):
    assert signs(PLANTED[sign], upper_bound=None) == [sign]


ALIGNED = {
    "critic never fooled": adversarial_metrics(0.68 * (1 - np.exp(-20 * t)) + noise),
    "critic at chance too early": adversarial_metrics(noise),
}
FOOLED = {
    "fooled": adversarial_metrics(0.4 * (1 - np.exp(-50 * t)) * (1 - t) + noise),
    "nearly won, then fooled": adversarial_metrics(0.68 * (1 - np.exp(-50 * t)) * (t < 0.5) + noise),
    "half fooled": adversarial_metrics(0.5 - 0.1 * t + noise),
    "at rest in the end": adversarial_metrics(0.1 * (t < 0.2) + noise),
    "small under a penalty": adversarial_metrics(0.01 * (1 - t) + 0.1 * noise),
}


def of_aligned(given, **options) -> list[str]:
    return [finding.sign for finding in training_warnings(given, {"D(x)": np.log(2)}, aligned={"D(x)"}, **options)]


@pytest.mark.parametrize("sign", ALIGNED)
def test_a_planted_sign_is_seen_alone_of_a_critic_that_is_meant_to_fail(sign):
    assert of_aligned(ALIGNED[sign]) == [sign]
    assert sign not in signs(ALIGNED[sign])


@pytest.mark.parametrize("game", FOOLED)
def test_nothing_is_seen_of_a_critic_that_was_fooled(game):
    assert of_aligned(FOOLED[game]) == []


def test_a_critic_is_yet_to_be_fooled_while_the_run_goes_on():
    assert of_aligned(ALIGNED["critic never fooled"], over=False) == []
    assert of_aligned(ALIGNED["critic at chance too early"], over=False) == ["critic at chance too early"]


@pytest.mark.parametrize("sign", ["circles", "critic collapsed", "critic diverges", "nothing to learn"])
def test_the_other_signs_are_seen_of_aligned_critics_too(sign):
    assert sign in of_aligned(PLANTED[sign])


def test_nothing_is_said_of_a_few_steps():
    assert signs({name: values[: LEAST - 1] for name, values in PLANTED["critic won"].items()}) == []


def test_a_finding_names_the_critic_what_was_seen_and_what_helps():
    (finding,) = training_warnings(PLANTED["critic won"], {"D(x)": np.log(2)})
    assert finding.player == "critic D(x)"
    assert "0.68 of at most 0.693" in str(finding)
    assert "penalty" in finding.remedy


def test_a_loss_without_critics_has_no_findings():
    assert training_warnings({}) == []
