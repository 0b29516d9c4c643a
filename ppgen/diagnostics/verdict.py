"""Can a fit's posterior be trusted? A verdict, the statistics behind it, and what to try next.

    good                 the draws of the guide, or of a sampler, can be used as they are
    usable with weights  the draws can be used once they are resampled by their importance weights
    not to be trusted    neither

The verdict is the worst level of the checks in `ppgen.diagnostics.CHECKS`; ``print(describe_checks())`` lists the
statistics with their meanings and bounds. A verdict covers only what was checked: a single restart of a program that
has too many latents for a search of other modes cannot be called good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.calibration import SMALLEST_P
from ppgen.diagnostics.chain_groups import draws_at_a_time
from ppgen.diagnostics.checks import CHECKS
from ppgen.diagnostics.checks.check import BAD, GOOD, RICHER, UNKNOWN, WEIGHTED, Check, Finding, worst_level
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.diagnostics.checks.moments import monte_carlo_error
from ppgen.diagnostics.reading import read_attribute
from ppgen.diagnostics.simulators import calibrate_ensemble
from ppgen.models.simulator import Simulator
from ppgen.posterior.importance import EQUAL_WEIGHTS_ESS_RATIO, MAX_SHIFT, MIN_DRAWS
from ppgen.training.result import Fitted
from ppgen.training.simulations import SIMULATOR
from ppgen.utils.budget import Budget

__all__ = ["BAD", "GOOD", "MANY_DRAWS", "RICHER", "UNKNOWN", "WEIGHTED", "Verdict", "diagnose", "draw_enough"]

FEW_DRAWS, MANY_DRAWS = 1000, 4000
CALIBRATION_LEVEL = 0.01  # of the test of calibration, whose p-value is exact
CHUNK = 250  # draws that are made at a time, where data are few
SAMPLE = "fit.refine(*data), a sampler that starts from the guide"
UNCERTAIN_KHAT = (0.3, 1.0)  # k-hat of few draws that could be on either side of a bound: its error is about 0.16


@dataclass(frozen=True)
class Verdict:
    """The result of `diagnose`; its text is a small table.

    Attributes:
        level: "good", "usable with weights", "not to be trusted", or "without a density to judge by".
        statistics: the statistics by name; those that could not be computed are left out.
        reasons: what is wrong with the fit, in words, by the name of the statistic; empty for a good fit.
        advice: what to try next.
        notes: why a statistic beyond its usual bound is good all the same, by its name.
    """

    level: str
    statistics: Mapping[str, float]
    reasons: Mapping[str, str] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def remark(self, name: str) -> str:
        """What is wrong with a statistic, or why it is good all the same; empty if there is nothing to say."""
        return self.reasons.get(name) or self.notes.get(name, "")

    def __str__(self) -> str:
        lines = [f"posterior: {self.level}"]
        width = max(map(len, self.statistics), default=0)
        for name, value in self.statistics.items():
            lines.append(f"  {name:<{width}}  {value:>9.3g}  {self.remark(name)}".rstrip())
        lines += [f"  {text}" for name, text in self.reasons.items() if name not in self.statistics]
        return "\n".join(lines + [f"  try: {text}" for text in self.advice])


def diagnose(
    fit: Fitted,
    *data: Tensor,
    draws: int | None = None,
    starts: int = 4,
    idata: Any = None,
    seed: int = 0,
    budget: Budget | None = None,
) -> Verdict:
    """Judges a fit's posterior on data by the checks in `ppgen.diagnostics.CHECKS`.

    Args:
        fit: the fit.
        *data: the arguments of the programs, as for `to_arviz`.
        draws: the number of draws in each chain. By default all of a sampler, and 1000 of a guide, or 4000 new ones
            where latents are global, and k-hat or a moment is too close to its bound to decide.
        starts: the number of points from which other modes are searched for; 0 for no search.
        idata: the result of `to_arviz` on these data, to be judged instead of new draws.
        seed: the seed of draws and starts; the caller's random state does not change.
        budget: the time, which may allow fewer draws and a shorter search; no limit if left out.

    A fit of a `Simulator` with ``guide="auto"`` has no density. It is judged by calibration on new simulations, over
    the whole prior, whatever the data.

    Returns:
        The verdict.

    Raises:
        ValueError: if `idata` comes without the data that a search for other modes needs; if the response is absent; as
            `to_arviz`.
        LookupError: as `to_arviz`.
    """
    known: tuple[Tensor, ...] | None = data
    if SIMULATOR in fit.metadata and isinstance(fit.model, Simulator):
        return _calibration_verdict(fit.model, fit, seed)
    if idata is None:
        options: dict[str, Any] = {"predictive": False, "likelihood": False, "seed": seed}
        idata = draw_enough(fit, *data, draws=draws, budget=budget, **options)
    elif fit.example and not data:
        if starts:
            raise ValueError("diagnose: the search for other modes needs the data of the draws: give them, or starts=0")
        known = None
    posterior = PosteriorDraws.read(fit, known, idata, starts=starts, seed=seed, budget=budget)
    if posterior is None:
        why = read_attribute(idata, "density") or "the programs have no latents"
        text = (
            f"there is no posterior to judge ({why}); compare draws with data by a two-sample test, or test an "
            "amortized guide by simulation-based calibration (ppgen.diagnostics.sbc)"
        )
        return Verdict(UNKNOWN, {}, {"density": text})
    checks = [check for check in CHECKS.values() if not (check.of_weights and posterior.sampled)]
    findings = {check: finding for check in checks if (finding := check.compute(posterior)) is not None}
    more = () if posterior.sampled or posterior.per_datum else (SAMPLE,)
    return _verdict(findings, automatic="auto" in fit.metadata, more=more)


def _calibration_verdict(simulator: Simulator, fit: Fitted, seed: int) -> Verdict:
    """The verdict about a posterior of a simulator: whether its draws are calibrated on new simulations."""
    calibration = calibrate_ensemble(simulator, fit, seed=seed)
    statistics = {"calibration_p": calibration.p_value}
    tests = len(calibration.ranks.names) + len(calibration.distances.names)
    level = max(CALIBRATION_LEVEL, tests * SMALLEST_P)  # below the latter no p-value of so many tests can fall
    if calibration.p_value > level * (1 + 1e-9):
        return Verdict(GOOD, statistics)
    reason = f"at most {level:.2g}: ranks of true latents among draws are not uniform over the prior"
    return Verdict(BAD, statistics, {"calibration_p": reason}, ("more simulations",))


def _verdict(findings: Mapping[Check, Finding], *, automatic: bool, more: tuple[str, ...] = ()) -> Verdict:
    """Joins the findings of all checks.

    Args:
        findings: the findings by check.
        automatic: whether the guide was chosen by ``guide="auto"``.
        more: advice for any fit that is not to be trusted.
    """
    level = worst_level([finding.level for finding in findings.values()])
    statistics = {check.name: f.value for check, f in findings.items() if f.value is not None}
    notes = {check.name: finding.note for check, finding in findings.items() if finding.note}
    if level == GOOD:
        return Verdict(level, statistics, notes=notes)
    advice: dict[str, None] = {}  # a set that keeps the order
    for check, finding in findings.items():
        if finding.advise:
            advice |= dict.fromkeys((() if automatic else check.guide_advice) + check.advice)
    if level == BAD:
        advice |= dict.fromkeys(more)
    reasons = {check.name: finding.reason for check, finding in findings.items() if finding.reason}
    return Verdict(level, statistics, reasons, tuple(advice), notes)


def draw_enough(
    fit: Fitted, *data: Tensor, draws: int | None = None, budget: Budget | None = None, **options: Any
) -> Any:
    """The result of `to_arviz` with as many draws as `diagnose` needs.

    Args:
        fit: the fit.
        *data: the arguments of the programs.
        draws: the number of draws in each chain; chosen as in `diagnose` if left out.
        budget: the time, which may allow fewer than are chosen; no limit if left out.
        **options: further options of `to_arviz`.

    Raises:
        ValueError: if the response is absent; as `to_arviz`.
    """
    budget = Budget() if budget is None else budget
    options |= {"resampled": None, "chunk": draws_at_a_time(data, CHUNK)}
    seconds = 0.0  # of the last draws

    def draw(count: int) -> Any:
        nonlocal seconds
        start = budget.clock()
        found = to_arviz(fit, *data, draws=count, **options)
        seconds = budget.clock() - start
        return found

    draws = draws or fit.stored_draws or None
    idata = budget.at_size(draw, FEW_DRAWS, least=MIN_DRAWS) if draws is None else draw(draws)
    if absent := read_attribute(idata, "absent"):
        raise ValueError(
            f"a posterior is judged on the data of the fit, and {absent} is not given: give all of them, as to fit, or "
            "use predict for predictions"
        )
    undecided = draws is None and not budget.cut and _is_undecided(PosteriorDraws.read(fit, None, idata))
    return draw(MANY_DRAWS) if undecided and budget.allows(seconds * MANY_DRAWS / FEW_DRAWS) else idata


def _is_undecided(draws: PosteriorDraws | None) -> bool:
    """Whether few draws leave open on which side of its bound k-hat or a moment is."""
    if draws is None or draws.per_datum:
        return False
    if UNCERTAIN_KHAT[0] < draws.pareto_k < UNCERTAIN_KHAT[1] and draws.ess < EQUAL_WEIGHTS_ESS_RATIO * FEW_DRAWS:
        return True
    shifts = draws.moment_shifts.items()
    return any(abs(value - MAX_SHIFT) < monte_carlo_error(name, float(draws.ess)) for name, value in shifts)
