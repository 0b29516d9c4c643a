"""Calibration: exact samplers pass at the stated level, wrong ones do not, and tables say what they say."""

from types import MappingProxyType

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

import ppgen
from ppgen.diagnostics import Ranks, calibrate, sbc, sbc_of, tarp

RIGHT = MappingProxyType({"shift": 0.0, "width": 1.0})
WRONG = {
    "narrow": {"shift": 0.0, "width": 0.7},
    "wide": {"shift": 0.0, "width": 1.5},
    "shifted": {"shift": 0.35, "width": 1.0},
}


def gaussians(rng, simulations=300, draws=99, width=1, *, right=RIGHT):
    """z ~ N(0, 1), x ~ N(z, 1), z | x ~ N(x / 2, 1 / 2): truths, and draws of a right or wrong posterior."""
    z = rng.normal(size=(simulations, width))
    x = z + rng.normal(size=z.shape)
    noise = rng.normal(size=(simulations, draws, width)) * 0.5**0.5
    return z, (x / 2 + right["shift"])[:, None] + right["width"] * noise


# their level


@pytest.mark.parametrize("kind", ["ranks", "coverage", "symmetry", "distances"])
def test_right_draws_pass_at_the_level(kind):
    """p-values at most .1 and at most .3 of 300 exact samplers; binomial ends of probability 1e-4 each."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(300):
        of = calibrate(*gaussians(rng, 40, 19), seed=seed)
        ranks = of.distances if kind == "distances" else of.ranks
        found.append({"coverage": ranks.coverage.p_values, "symmetry": ranks.symmetry}.get(kind, ranks.p_values))
    for level in (0.1, 0.3):
        passed = int((np.concatenate(found) <= level).sum())
        assert stats.binom.sf(passed - 1, 300, level) > 1e-4
        # a discrete test may be a little below its level, and is not far below
        assert stats.binom.cdf(passed, 300, 0.6 * level) > 1e-4


@pytest.mark.parametrize("name", WRONG)
def test_wrong_draws_fail(name):
    of = calibrate(*gaussians(np.random.default_rng(1), right=WRONG[name]))
    assert of.p_value < 0.01
    assert of.ranks.p_values[0] < 0.005
    narrower = {"narrow": -1, "wide": 1}.get(name)
    if narrower is not None:  # the shares of central intervals leave the band where they should
        path = of.ranks.coverage.path()
        end = path.low if narrower < 0 else path.high
        assert (narrower * (path.found[:, 0] - end) > 0).any()
        assert of.ranks.symmetry[0] > 0.01  # and there is no bias
    else:
        assert of.ranks.symmetry[0] < 0.001


@pytest.mark.parametrize(("size", "draws"), [(30, 9), (200, 99), (500, 1001)])
def test_the_band_is_the_test(size, draws):
    """A path is in the band of level 1 - a where its p-value is more than a; of right ranks and of some others."""
    rng = np.random.default_rng(2)
    columns = [(draws * rng.beta(a, b, size=size)).round() for a, b in [(1, 1)] * 10 + [(1, 1.3), (1.2, 1.2)] * 5]
    ranks = Ranks(np.stack(columns, -1).astype(int), draws, tuple(map(str, range(20))))
    passed = set()
    for level in (0.5, 0.9, 0.99):
        path = ranks.path(level)
        inside = ((path.found >= path.low[:, None]) & (path.found <= path.high[:, None])).all(0)
        np.testing.assert_array_equal(inside, ranks.p_values > 1 - level + 1e-12)
        passed |= set(inside)
    assert passed == {True, False}


def test_the_band_is_near_arvizs():
    """Whose optimized one, of 0.2x, rounds counts down; of three counts in 200 at most."""
    ecdf_utils = pytest.importorskip("arviz.stats.ecdf_utils")
    path = Ranks(np.zeros((200, 1), int), 49, ("z",)).path(0.9)
    low, high = ecdf_utils.ecdf_confidence_band(200, path.expected, path.expected, prob=0.9, method="optimized")
    assert np.abs(path.low - low).max() <= 3 / 200
    assert np.abs(path.high - high).max() <= 3 / 200


# what they count


def test_ranks_and_shares_of_central_intervals_are_counted():
    rng = np.random.default_rng(3)
    truths, draws = rng.normal(size=(50, 2, 3)), rng.normal(size=(50, 19, 2, 3))
    of = calibrate(truths, draws)
    assert of.ranks.names[:4] == ("z[0, 0]", "z[0, 1]", "z[0, 2]", "z[1, 0]")
    np.testing.assert_array_equal(of.ranks.ranks, (draws < truths[:, None]).sum(1).reshape(50, 6))
    path = of.ranks.coverage.path()
    np.testing.assert_allclose(path.expected, np.arange(1, 10) / 10)
    ordered = np.sort(draws, axis=1).reshape(50, 19, 6)
    for j, share in enumerate(path.found):  # from the (10 - j)-th smallest draw to the one as far from the other end
        low, high = ordered[:, 8 - j], ordered[:, 10 + j]
        inside = (truths.reshape(50, 6) > low) & (truths.reshape(50, 6) < high)
        np.testing.assert_allclose(share, inside.mean(0))


def test_ties_are_settled_at_random():
    """A coin that inference knows nothing about."""
    rng = np.random.default_rng(4)
    of = calibrate(rng.integers(0, 2, size=400), rng.integers(0, 2, size=(400, 19)))
    assert of.ranks.p_values[0] > 0.001
    assert len(np.unique(of.ranks.ranks)) == 20


def test_distances_detect_a_wrong_correlation():
    """Draws with the right marginals, whose correlation has the wrong sign."""
    rng = np.random.default_rng(5)
    tril = np.linalg.cholesky([[1.0, 0.9], [0.9, 1.0]])
    truths, draws = rng.normal(size=(500, 2)) @ tril.T, rng.normal(size=(500, 99, 2)) @ tril.T
    assert calibrate(truths, draws).p_value > 0.01
    of = calibrate(truths, draws * np.array([1.0, -1.0]))
    assert (of.ranks.p_values > 0.01).all()
    assert of.distances.p_values[0] < 0.005


def test_draws_of_the_prior_pass_unless_references_depend_on_the_data():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(500, 1))
    x, prior = z + 0.3 * rng.normal(size=z.shape), rng.normal(size=(500, 99, 1))
    assert calibrate(z, prior).p_value > 0.01
    assert tarp(z, prior, references=x).p_values[0] < 0.005
    posterior = (x / 1.09)[:, None] + (0.09 / 1.09) ** 0.5 * rng.normal(size=prior.shape)
    assert tarp(z, posterior, references=x).p_values[0] > 0.01


def test_the_text_of_a_calibration_is_a_table():
    text = str(calibrate(*gaussians(np.random.default_rng(7), width=2, right=WRONG["narrow"])))
    lines = text.splitlines()
    assert lines[0].startswith("300 simulations, 99 draws; all tests together p 0.0")
    assert [line.split()[0] for line in lines[1:]] == ["component", "z[0]", "z[1]", "distance"]


# programs


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide_of(width=1.0, shift=0.0):
    def guide(x, z=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, width * 0.5**0.5).to_event(1))

    return guide


def one(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


PAIRS = {"rows": (model, (torch.zeros(70, 2),)), "a simulator": (ppgen.Simulator(one), ())}


@pytest.mark.parametrize("name", PAIRS)
def test_sbc_of_an_amortized_guide(name):
    program, data = PAIRS[name]
    before = torch.get_rng_state()
    right = sbc(program, guide_of(), *data, simulations=300)
    assert torch.equal(torch.get_rng_state(), before)
    assert right.ranks.ranks.shape == (300, 2)
    assert right.ranks.names == ("z[0]", "z[1]")
    assert right.p_value > 0.01
    for wrong in (guide_of(width=0.7), guide_of(shift=0.35)):
        assert sbc(program, wrong, *data, simulations=300).p_value < 0.01


def test_each_data_set_is_a_simulation_if_latents_are_global():
    def program(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 2.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.sum() / (4 + len(x)), (4 / (4 + len(x))) ** 0.5))

    of = sbc(program, guide, torch.zeros(4), simulations=60, draws=19)
    assert of.ranks.ranks.shape == (60, 1)
    assert of.p_value > 0.01


def test_sbc_of_a_function_that_may_be_a_fit():
    """The posterior of a function of the data; then a fit whose width is wrong and whose center is right."""

    def posterior(width):
        def draws(x):
            assert x.shape == (2,)
            return {"z": x / 2 + width * 0.5**0.5 * torch.randn(99, 2)}

        return draws

    simulator = ppgen.Simulator(one)
    assert sbc_of(simulator, posterior(1.0), simulations=200).p_value > 0.01
    narrow = sbc_of(simulator, posterior(0.5), simulations=200)
    assert narrow.p_value < 0.01
    assert (narrow.ranks.symmetry > 0.01).all()
    rows = sbc_of(model, lambda x: {"z": (x / 2) + 0.5**0.5 * torch.randn(19, 3, 2)}, torch.zeros(3, 2))
    assert rows.ranks.ranks.shape == (100, 6)
    assert rows.p_value > 0.01


def test_latents_may_be_chosen():
    def program(x):
        with pyro.plate("data", len(x)):
            a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    guide = poutine.uncondition(lambda x: program(x))
    guide = poutine.block(guide, hide=["x"])
    assert sbc(program, guide, torch.zeros(50), simulations=50, draws=9, sites=["b"]).ranks.names == ("b",)
    with pytest.raises(LookupError, match=r"no latent 'c'; .*'a', 'b'"):
        sbc(program, guide, torch.zeros(50), simulations=50, draws=9, sites=["c"])


# bad input

Z, DRAWS = np.zeros((5, 2)), np.zeros((5, 9, 2))
BAD = {
    "another number of simulations": (lambda: calibrate(Z[:4], DRAWS), r"truths of 4 simulations.*draws of 5"),
    "other names": (lambda: calibrate({"a": Z}, {"b": DRAWS}), r"a\[0\].*b\[0\]"),
    "NaN": (lambda: calibrate(Z * np.nan, DRAWS), r"truths of 'z'.*with 10 that are not finite"),
    "no axis of draws": (lambda: calibrate(Z[:, 0], DRAWS[:, 0, 0]), r"draws of 'z'.*at least 2 axes"),
    "references of another shape": (lambda: tarp(Z, DRAWS, references=Z[:, :1]), r"references of one shape.*\(5, 1\)"),
    "a level": (lambda: calibrate(Z, DRAWS).ranks.path(1.0), r"a probability between 0 and 1, got 1\.0"),
    "an even number": (lambda: calibrate(Z, DRAWS[:, :8]).ranks.coverage, r"an odd number of draws, got 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_function_that_lacks_a_latent_is_named():
    with pytest.raises(LookupError, match=r"draws lack 'z'; .*there are 'y'"):
        sbc_of(ppgen.Simulator(one), lambda x: {"y": torch.zeros(9, 2)})


def test_simulated_data_lack_what_the_data_lack():
    """The exact posterior of a mean, given the rows that are not missing: its ranks are uniform."""

    def missing(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.NanMaskedNormal(mean, 1.0), obs=y)

    def exact(y):
        assert y.isnan().tolist() == [False, True, False, True]
        variance = 1 / (1 + (~y.isnan()).sum())
        pyro.sample("mean", dist.Normal(variance * y.nan_to_num().sum(), variance**0.5))

    data = torch.tensor([0.3, torch.nan, 0.1, torch.nan])
    assert sbc(missing, exact, data, simulations=200, draws=19).p_value > 0.01
