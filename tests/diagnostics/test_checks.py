"""The table of checks: every check passes good draws and finds the fault that it is for; the verdict joins them."""

import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ppgen.diagnostics import CHECKS, describe_checks
from ppgen.diagnostics.checks.check import BAD, GOOD, WEIGHTED, Finding, worst_level
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.diagnostics.mode_search import ModeSearch
from ppgen.diagnostics.tails import TailCheck
from ppgen.diagnostics.verdict import _verdict
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.training.result import Chain, Fitted

S = 1000


def program(size=None):
    """A global latent, and rows in a plate of their own number, or of `size`."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x) if size is None else size, subsample=None if size is None else x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0))


def draws(
    *,
    khat=0.1,
    ess=0.9 * S,
    chains: int = 2,
    move: float = 0.0,
    apart: float = 0.0,
    losses: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    tails: TailCheck | None = None,
    missed_modes: float | None = 0.0,
    size: int | None = None,
    batch: int = 0,
    rows: int = 0,
    row_error: float | None = None,
    skew: float | None = None,
    beta: float | None = None,
    memory: float = 0.1,
    repeated: int = 1,
) -> PosteriorDraws:
    """Draws of one standard normal latent with these statistics; those with a k-hat for each datum have 10 data.

    With a beta they are those of a sampler, each of which comes so many times in a row.
    """
    local = np.ndim(khat) > 0
    rng = np.random.default_rng(0)
    shape = (chains, S, 10) if local else (chains, S)
    dims = ("chain", "draw", "data") if local else ("chain", "draw")
    z = rng.normal(size=shape) + apart * np.arange(chains).reshape(-1, *[1] * (len(shape) - 1))
    z = z[:, : S // repeated].repeat(repeated, axis=1)
    log_weights = move * z
    log_weights -= np.logaddexp.reduce(log_weights, axis=1, keepdims=True)
    statistics = {
        "pareto_k": np.broadcast_to(khat, shape[:1] + shape[2:]),
        "log_marginal": np.zeros(shape[:1] + shape[2:]),
    }
    statistics["ess"] = np.broadcast_to(ess, statistics["pareto_k"].shape)
    vi_dims = ("chain", "data") if local else ("chain",)
    trace = np.zeros(50) if losses is None else losses
    checks = np.zeros(0) if held_out is None else held_out
    chain = Chain({}, {"loss": trace}, {"step": np.arange(len(checks)), "loss": checks}, "as given", len(trace), 0.0)
    fit = Fitted(*program(size), None, [chain] * chains, (torch.zeros(batch),) if batch else ())
    if row_error is not None:
        fit.metadata["rows"] = {"subset": 10, "all": 100, "error": row_error}
    if skew is not None:
        fit.metadata["rows"] = {"unit": "latents", "subset": 10, "all": 100, "error": 0.0, "skew": skew}
    if beta is not None:
        fit.metadata |= {"refined": {"beta": beta, "memory": memory}, "guide": {"options": {"count": S}}}
    found = PosteriorDraws(
        fit,
        (torch.zeros(rows),) if rows else (),
        xr.Dataset({"z": (dims, z)}),
        xr.Dataset({"log_weight_smoothed": (dims, log_weights)}),
        xr.Dataset({name: (vi_dims, value) for name, value in statistics.items()}),
    )
    search = (
        None
        if missed_modes is None
        else ModeSearch(
            missed_modes, {"z": torch.tensor(4.0)}, GaussianBatch(torch.zeros(0, 1), torch.zeros(0, 1, 1)), np.zeros(0)
        )
    )
    vars(found).update(tails=tails, mode_search=None if local else search)  # what the cached properties would compute
    return found


FALLING = np.linspace(100.0, 0.0, 50)


def wider(*, khat: float = 0.1, missed: float = 0.0, log_ratio: float = 0.0) -> TailCheck:
    """What draws from wider distributions find."""
    shifts = {"shift": 0.0, "log_ratio": log_ratio}
    location = {"z": torch.tensor(4.0)}
    return TailCheck(1500.0, khat, missed, error=0.001, moment_shifts=shifts, certain_shifts=shifts, location=location)


SAMPLED = draws(beta=1.0)
WIDE_TAIL, MOVED_TAIL = wider(missed=0.02), wider(log_ratio=0.3)

# by check: draws for which it is computed, its value, and the level that it allows
CASES = {
    "likelihood_share": [
        (draws(batch=4, rows=10), 0.4, GOOD),  # it explains what other checks find
        (draws(batch=4, rows=10, size=10), 1.0, GOOD),
    ],
    "field_skew": [(draws(skew=0.1), 0.1, GOOD), (draws(skew=0.5), 0.5, BAD)],
    "row_error": [(draws(row_error=0.01), 0.01, GOOD), (draws(row_error=0.5), 0.5, BAD)],
    "pareto_k": [
        (draws(), 0.1, GOOD),
        (draws(khat=0.6), 0.6, WEIGHTED),
        (draws(khat=0.7), 0.7, BAD),  # above 1 - 1 / log10 1000
        (draws(khat=0.6, ess=0.995 * S), 0.6, GOOD),  # equal weights have no tail
        (draws(khat=0.6, ess=0.995 * S, tails=WIDE_TAIL), 0.6, BAD),
        (draws(khat=0.6, ess=0.995 * S, tails=MOVED_TAIL), 0.6, BAD),
        (draws(khat=1.3, ess=0.95 * S, tails=wider()), 1.3, GOOD),  # wider distributions find nothing more
        (draws(khat=1.3, ess=0.95 * S, tails=wider(khat=0.8)), 1.3, BAD),  # and here they cannot tell
        (draws(khat=1.3, ess=0.95 * S, tails=MOVED_TAIL), 1.3, BAD),
        (draws(khat=1.3, ess=0.5 * S, tails=wider()), 1.3, BAD),
        (draws(khat=np.array([0.1] * 9 + [0.6])), 0.1, WEIGHTED),
        (draws(khat=np.array([0.1] * 9 + [0.9])), 0.1, GOOD),  # the check of the rows judges these
    ],
    "missed_tail_mass": [
        (draws(khat=0.6, ess=0.995 * S, tails=WIDE_TAIL), 0.02, GOOD),
        (draws(tails=wider(missed=0.15)), 0.15, BAD),
    ],
    "bad_rows": [
        (draws(khat=np.full(10, 0.1)), 0.0, GOOD),
        (draws(khat=np.array([0.1] * 9 + [0.9])), 0.1, BAD),
    ],
    "ess_ratio": [(draws(ess=500.0), 0.5, GOOD), (draws(khat=np.full(10, 0.1), ess=500.0), 0.5, GOOD)],
    "restarts": [
        (draws(chains=2), 2, GOOD),
        (draws(chains=1), 1, GOOD),
        (draws(chains=1, missed_modes=None), 1, WEIGHTED),
        (draws(chains=1, missed_modes=None, khat=np.full(10, 0.1)), 1, GOOD),
    ],
    "r_hat": [
        (draws(), 1.0, GOOD),
        (draws(apart=4.0), 1.82, BAD),
        (SAMPLED, 1.0, GOOD),
        (draws(beta=1.0, apart=0.3), 1.02, BAD),  # as close as restarts may be
    ],
    "shift": [(draws(), 0.0, GOOD), (draws(move=0.3), 0.3, WEIGHTED), (draws(move=0.8), 0.8, BAD)],
    "log_ratio": [(draws(), 0.0, GOOD), (draws(tails=wider(log_ratio=0.6)), 0.0, BAD)],
    "missed_mode_mass": [(draws(), 0.0, GOOD), (draws(missed_modes=0.5), 0.5, BAD)],
    "unconverged_nats": [
        (draws(), 0.0, GOOD),
        (draws(losses=FALLING), 15.2, GOOD),
        (draws(losses=FALLING, held_out=np.ones(50)), 0.0, GOOD),  # it overfits
    ],
    "ess_bulk": [(SAMPLED, 2 * S, GOOD), (draws(beta=1.0, repeated=10), 0.15 * S, BAD)],
    "ess_tail": [(SAMPLED, 2 * S, GOOD), (draws(beta=1.0, repeated=10), 0.15 * S, BAD)],
    "memory": [(SAMPLED, 0.1, GOOD), (draws(beta=1.0, memory=0.5), 0.5, BAD)],
    "beta": [(SAMPLED, 1.0, GOOD), (draws(beta=0.9), 0.9, BAD)],
}


@pytest.fixture(autouse=True)
def _one_datum(monkeypatch):
    monkeypatch.setattr(Fitted, "num_data", 1)


def test_every_check_has_cases():
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{i}") for name in CASES for i, case in enumerate(CASES[name])],
)
def test_a_check_computes_its_statistic_and_judges_it(name, case):
    given, value, level = case
    finding = CHECKS[name].compute(given)
    assert finding is not None
    assert finding.value == pytest.approx(value, rel=0.15, abs=0.01)
    assert finding.level == level
    if level != GOOD:
        assert finding.reason
        assert CHECKS[name].judged


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_a_check_explains_itself(check):
    assert check.meaning.endswith(".")
    assert check.bound.endswith(".") or not check.bound
    assert f"{check.name} " in describe_checks()
    if not check.bound:
        assert "not judged" in check.description


def test_draws_of_a_sampler_are_judged_without_weights():
    assert {name for name, check in CHECKS.items() if check.of_weights} == {
        *("pareto_k", "bad_rows", "ess_ratio", "shift", "log_ratio")
    }
    for name in ("ess_bulk", "ess_tail", "beta", "memory"):
        assert CHECKS[name].compute(draws()) is None


@pytest.mark.parametrize(
    "name",
    [
        "likelihood_share",
        "row_error",
        "field_skew",
        "missed_tail_mass",
        "bad_rows",
        "r_hat",
        "shift",
        "log_ratio",
        "missed_mode_mass",
    ],
)
def test_a_check_that_does_not_apply_has_no_finding(name):
    local = draws(khat=np.full(10, 0.1), chains=1)
    glob = draws(chains=1, missed_modes=None)
    assert CHECKS[name].compute(glob if name in ("missed_tail_mass", "bad_rows", "r_hat") else local) is None


def test_a_plate_of_the_length_of_a_batch_is_named_with_the_remedy():
    check = CHECKS["likelihood_share"]
    finding = check.compute(draws(batch=4, rows=10))
    assert "the plate 'data' has the length of a batch, 4 of 10 rows" in finding.reason
    verdict = _verdict({check: finding, CHECKS["pareto_k"]: Finding(0.9, "above", BAD, advise=True)}, automatic=False)
    assert 'pyro.plate("data", N, subsample=x)' in verdict.advice[0]


@pytest.mark.parametrize("other", [GOOD, BAD])
def test_a_large_khat_that_is_good_is_explained_on_its_line(other):
    """Of equal weights, whatever the verdict; one that is small, or bad, has no such note."""
    tails = wider(missed=0.001)
    check, others = CHECKS["pareto_k"], {CHECKS["shift"]: Finding(0.0, "moved" if other == BAD else "", other)}
    verdict = _verdict({check: check.compute(draws(khat=0.93, ess=0.995 * S, tails=tails)), **others}, automatic=False)
    assert verdict.level == other
    (line,) = (line for line in str(verdict).splitlines() if "pareto_k" in line)
    for part in ("0.93", "above 0.5, and good all the same", "99.5% of the draws", "find 0.1% beyond"):
        assert part in line
    for given in (draws(), draws(khat=0.93), draws(khat=0.6)):
        assert check.compute(given).note == ""


def test_the_verdict_is_the_worst_level_and_good_ones_give_no_reasons():
    late, weights, tail = CHECKS["unconverged_nats"], CHECKS["shift"], CHECKS["pareto_k"]
    explained = {late: Finding(9.0, "it still fell", GOOD, advise=True)}
    assert _verdict(explained, automatic=False).reasons == {}
    assert _verdict(explained, automatic=False).advice == ()
    both = {tail: Finding(0.9, "above", BAD, advise=True), weights: Finding(0.2, "above", WEIGHTED), **explained}
    verdict = _verdict(both, automatic=False)
    assert verdict.level == BAD
    assert list(verdict.reasons) == ["pareto_k", "shift", "unconverged_nats"]
    assert verdict.advice == (*tail.guide_advice, *tail.advice, *late.guide_advice)
    assert _verdict(both, automatic=True).advice == tail.advice
    assert worst_level([]) == GOOD


def test_a_guide_with_wrong_shares_of_a_discrete_latent_is_found():
    """The weights move the share of c = 1 from a half to E[w c], in standard deviations of c."""
    given = draws(move=0.5)
    z = given.posterior.z.values[0]
    found = dataclasses.replace(given, posterior=(given.posterior > 0).astype(int))
    vars(found).update(tails=None)
    share = np.exp(found.log_weights) @ (z > 0)
    assert share > 0.65
    expected = (share - (z > 0).mean()) / np.sqrt(share * (1 - share))
    finding = CHECKS["shift"].compute(found)
    assert finding.value == pytest.approx(expected)
    assert finding.level == WEIGHTED
    assert CHECKS["log_ratio"].compute(found).value == 0.0
