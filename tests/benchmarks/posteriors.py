"""Posteriors found with default settings: ppgen's and stock Pyro's guides beside exact answers or long runs of NUTS.

Over all entries of the latents (or of the sites that posterior_programs.py names), on their constrained scale, of 4000
draws:

    mean      the largest |mean - reference| / reference's standard deviation
    log sd    the largest |log(standard deviation / reference's)|

k-hat and verdict are those of `Fit.diagnose`; seconds are of the fit and its diagnosis, or of all of NUTS. Pyro's
guides are trained as its tutorials do: its own SVI, Adam at .01, 2000 steps of one draw, single precision. "resampled"
are the draws of the row above, drawn again by importance. Over several seeds, a row has the worst of each column. NUTS
has errors of its own where there is a formula, and is the reference elsewhere.

    pip install numpyro          for references that are not in the folder yet; half a minute and more a program
    python tests/benchmarks/posteriors.py [--only diabetes gp ...] [--rows NUTS AutoNormal "ppgen auto" ...]
        [--seeds 1] [--first 0] [--references ~/.cache/ppgen/posteriors]
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import torch
from posterior_programs import PROGRAMS, Program
from posterior_references import flattened, moments, reference
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormal

import ppgen
from ppgen.fitting import Fit
from ppgen.infer.parameters import ProgramState, snapshot
from ppgen.training.result import Chain

DRAWS, STEPS, RATE = 4000, 2000, 0.01
AIM, SECONDS = 0.1, 10.0
LEVELS = ("good", "usable with weights", "not to be trusted", "failed")  # from best to worst
OURS, NUTS = "ppgen auto", "NUTS"
RESAMPLED = f"{OURS}, resampled"


@dataclass(frozen=True)
class Line:
    """A row of the table; NaN for what it has not got."""

    mean: float = math.nan
    log_sd: float = math.nan
    khat: float = math.nan
    verdict: str = ""
    seconds: float = math.nan

    @property
    def level(self) -> str:
        return self.verdict.split(":")[0]

    @property
    def close(self) -> bool:
        return self.mean <= AIM and self.log_sd <= AIM

    def __str__(self) -> str:
        numbers = [(self.mean, ".3g"), (self.log_sd, ".3g"), (self.khat, ".2f"), (self.seconds, ".1f")]
        *left, seconds = ("" if math.isnan(number) else format(number, form) for number, form in numbers)
        return " | ".join((*left, self.verdict, seconds))


def auto(program: Program, seed: int) -> Fit:
    return ppgen.fit(program.model, "auto", program.data or None, seed=seed, progress=False)


def stock(guide: type[AutoGuide]) -> Callable[[Program, int], Fit]:
    """A fit of one of Pyro's guides by Pyro itself."""

    def train(program: Program, seed: int) -> Fit:
        data = tuple(part.float() if part.is_floating_point() else part for part in program.data)
        pyro.set_rng_seed(seed)
        distribution = guide(program.model)
        svi = SVI(program.model, distribution, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
        start = time.perf_counter()
        losses = np.array([svi.step(*data) for _ in range(STEPS)])
        seconds = time.perf_counter() - start
        weights = snapshot(ProgramState.from_programs(program.model, distribution, data).tensors)
        chain = Chain(weights, {"loss": losses}, {"step": np.zeros(0), "loss": np.zeros(0)}, "", STEPS, seconds)
        return Fit(program.model, distribution, Trace_ELBO(), [chain], data)

    return train


FITS: dict[str, Callable[[Program, int], Fit]] = {
    "AutoNormal": stock(AutoNormal),
    "AutoMultivariateNormal": stock(AutoMultivariateNormal),
    OURS: auto,
}


def gaps(mean: np.ndarray, sd: np.ndarray, truth: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """The errors of means and of standard deviations."""
    return float(np.max(np.abs(mean - truth[0]) / truth[1])), float(np.max(np.abs(np.log(sd / truth[1]))))


def lines_of(program: Program, name: str, seed: int, truth: tuple[np.ndarray, np.ndarray]) -> dict[str, Line]:
    """The row of a fit, and for ours that of the resampled draws."""
    pyro.clear_param_store()
    start = time.perf_counter()
    try:
        fit = FITS[name](program, seed)
        verdict = fit.diagnose(*fit.example)
        seconds = time.perf_counter() - start
        groups = fit.to_arviz(*fit.example, draws=DRAWS, predictive=False, chunk=DRAWS)
    except Exception as error:  # no answer is an answer: the table says so
        told = f"failed: {type(error).__name__}, {str(error).splitlines()[0]:.60}"
        return {name: Line(verdict=told, seconds=time.perf_counter() - start)}
    kinds = {name: "posterior"} | ({RESAMPLED: "posterior_resampled"} if name == OURS else {})
    lines = {}
    for label, group in kinds.items():
        if group in groups:
            parts = (groups[group][site].values.astype(np.float64) for site in program.sites)  # chain, draw, ...
            draws = np.concatenate([part.reshape(part.shape[0] * part.shape[1], -1) for part in parts], 1)
            apart = gaps(draws.mean(0), draws.std(0), truth)
            lines[label] = Line(*apart, verdict.statistics["pareto_k"], verdict.level, seconds)
    return lines


def worst(lines: list[Line]) -> Line:
    """One row for those of several seeds, where it got an answer at all."""
    verdict = max((line.verdict for line in lines), key=lambda told: LEVELS.index(told.split(":")[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN
        mean, log_sd, khat, seconds = (
            float(np.nanmax([getattr(line, part) for line in lines])) for part in ("mean", "log_sd", "khat", "seconds")
        )
    return Line(mean, log_sd, khat, verdict, seconds)


def summary(found: dict[str, dict[str, Line]]) -> None:
    """The lines against the aims: `found` has them by program and by row."""
    for name in dict.fromkeys(row for lines in found.values() for row in lines if row != NUTS):
        lines = {program: rows[name] for program, rows in found.items() if name in rows}
        levels = {level: [program for program, line in lines.items() if line.level == level] for level in LEVELS}
        seconds = [line.seconds for line in lines.values()]
        psis_reliable = levels["good"] + levels["usable with weights"]
        print(f"\n{name}, {len(lines)} programs:")
        print(f"- every mean within {AIM}: {sum(line.mean <= AIM for line in lines.values())}")
        print(f"- every mean and log sd within {AIM}: {sum(line.close for line in lines.values())}")
        print(f"- {'; '.join(f'{level}: {len(programs)}' for level, programs in levels.items())}")
        print(f"- good, but not within {AIM}: {listed(p for p in levels['good'] if not lines[p].close)}")
        print(
            f"- within {AIM}, but not trusted: {listed(p for p in lines if lines[p].close and p not in psis_reliable)}"
        )
        print(f"- at most {SECONDS:.0f} s: {sum(s <= SECONDS for s in seconds)}; the longest {max(seconds):.1f} s")


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS), metavar="NAME")
    parser.add_argument("--rows", nargs="+", choices=[NUTS, *FITS], default=[NUTS, *FITS], metavar="ROW")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--references", type=Path, default=Path.home() / ".cache" / "ppgen" / "posteriors")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    print(f"{DRAWS} draws, seeds {list(seeds)}, {torch.get_num_threads()} threads\n")
    print("| program | entries | row | mean | log sd | k-hat | verdict | seconds |\n|---|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, Line]] = {}
    for key in options.only:
        program, lines = PROGRAMS[key], {}
        try:
            kept = reference(program, options.references)
        except (ImportError, RuntimeError, ValueError) as error:
            print(f"| {key} | | failed: {error} | | | | | |", flush=True)
            continue
        truth = moments(program, kept)
        for name in options.rows:
            if name == NUTS:
                own = gaps(*flattened(program, kept), truth)
                told = "" if kept.converged else "not converged: "
                lines[NUTS] = Line(*own, verdict=f"{told}R-hat {kept.rhat:.3f}", seconds=kept.seconds)
                new = [NUTS]
            else:
                tried = [lines_of(program, name, seed, truth) for seed in seeds]
                new = [label for label in (name, RESAMPLED) if any(label in rows for rows in tried)]
                lines |= {label: worst([rows[label] for rows in tried if label in rows]) for label in new}
            for label in new:
                print(f"| {key} | {len(truth[0])} | {label} | {lines[label]} |", flush=True)
        found[key] = lines
    summary(found)


if __name__ == "__main__":
    main()
