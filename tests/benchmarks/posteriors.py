"""Posteriors with default settings: the guides of ppgen and of stock Pyro beside exact answers or long runs of NUTS.

The errors are the largest over all entries of the latents (or of the sites that posterior_programs.py names), on their
constrained scale, of 4000 draws:

    mean      the largest |mean - reference| / reference's standard deviation
    log sd    the largest |log(standard deviation / reference's)|

k-hat and verdict are those of `Fit.diagnose`. Seconds are those of the fit and its diagnosis on the processor, or of
all of NUTS by the clock; gradients are those of log p that the fit took. Pyro's guides are trained as in its tutorials:
Pyro's own SVI, Adam at .01, 2000 steps of one draw, single precision. The row "resampled" has the draws of the row
above, resampled by their importance weights. With several seeds, a row has the worst of each column. Where a formula is
known, the row of NUTS has errors too; elsewhere NUTS is the reference.

    pip install numpyro          for references that are not in the folder yet; half a minute or more for each program
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
from posterior_references import moments, nuts_moments, reference
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormal

import ppgen
from ppgen.fitting import Fit
from ppgen.infer.parameters import ProgramState, snapshot
from ppgen.training.result import Chain

DRAWS, STEPS, RATE = 4000, 2000, 0.01
AIM, SECONDS = 0.1, 10.0
LEVELS = ("good", "usable with weights", "not to be trusted", "failed")  # from best to worst
PPGEN, NUTS = "ppgen auto", "NUTS"
RESAMPLED = f"{PPGEN}, resampled"


@dataclass(frozen=True)
class Line:
    """A row of the table; NaN if there is no value."""

    mean: float = math.nan
    log_sd: float = math.nan
    khat: float = math.nan
    verdict: str = ""
    seconds: float = math.nan
    gradients: float = math.nan

    @property
    def level(self) -> str:
        return self.verdict.split(":")[0]

    @property
    def close(self) -> bool:
        return self.mean <= AIM and self.log_sd <= AIM

    def __str__(self) -> str:
        numbers = [(self.mean, ".3g"), (self.log_sd, ".3g"), (self.khat, ".2f")]
        numbers += [(self.seconds, ".1f"), (self.gradients, ".0f")]
        *errors, seconds, gradients = ("" if math.isnan(number) else format(number, form) for number, form in numbers)
        return " | ".join((*errors, self.verdict, seconds, gradients))


def auto(program: Program, seed: int) -> Fit:
    return ppgen.fit(program.model, "auto", program.data or None, seed=seed, progress=False)


def stock(guide: type[AutoGuide]) -> Callable[[Program, int], Fit]:
    """Fits one of Pyro's guides with Pyro's SVI."""

    def train(program: Program, seed: int) -> Fit:
        data = tuple(part.float() if part.is_floating_point() else part for part in program.data)
        pyro.set_rng_seed(seed)
        autoguide = guide(program.model)
        svi = SVI(program.model, autoguide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
        start = time.perf_counter()
        losses = np.array([svi.step(*data) for _ in range(STEPS)])
        seconds = time.perf_counter() - start
        weights = snapshot(ProgramState.from_programs(program.model, autoguide, data).tensors)
        chain = Chain(weights, {"loss": losses}, {"step": np.zeros(0), "loss": np.zeros(0)}, "", STEPS, seconds)
        return Fit(program.model, autoguide, Trace_ELBO(), [chain], data)

    return train


FITS: dict[str, Callable[[Program, int], Fit]] = {
    "AutoNormal": stock(AutoNormal),
    "AutoMultivariateNormal": stock(AutoMultivariateNormal),
    PPGEN: auto,
}


def errors(mean: np.ndarray, sd: np.ndarray, truth: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """The largest errors of means and of log standard deviations."""
    return float(np.max(np.abs(mean - truth[0]) / truth[1])), float(np.max(np.abs(np.log(sd / truth[1]))))


def evaluate(program: Program, name: str, seed: int, truth: tuple[np.ndarray, np.ndarray]) -> dict[str, Line]:
    """The row of a fit, and for ppgen that of the resampled draws."""
    pyro.clear_param_store()
    start = time.process_time()
    try:
        fit = FITS[name](program, seed)
        verdict = fit.diagnose(*fit.example)
        seconds = time.process_time() - start
        gradients = fit.metadata.get("evaluations", {}).get("gradients", math.nan)
        groups = fit.to_arviz(*fit.example, draws=DRAWS, predictive=False, chunk=DRAWS)
    except Exception as error:  # a failure is a result, which the table reports
        message = f"failed: {type(error).__name__}, {(str(error).splitlines() or [''])[0]:.60}"
        return {name: Line(verdict=message, seconds=time.process_time() - start)}
    kinds = {name: "posterior"} | ({RESAMPLED: "posterior_resampled"} if name == PPGEN else {})
    lines = {}
    for label, group in kinds.items():
        if group in groups:
            parts = (groups[group][site].values.astype(np.float64) for site in program.sites)  # chain, draw, ...
            draws = np.concatenate([part.reshape(part.shape[0] * part.shape[1], -1) for part in parts], 1)
            found = errors(draws.mean(0), draws.std(0), truth)
            lines[label] = Line(*found, verdict.statistics["pareto_k"], verdict.level, seconds, gradients)
    return lines


def worst(lines: list[Line]) -> Line:
    """One row for several seeds: the worst of each column, without missing values."""
    verdict = max((line.verdict for line in lines), key=lambda verdict: LEVELS.index(verdict.split(":")[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # if all values are NaN
        mean, log_sd, khat, seconds, gradients = (
            float(np.nanmax([getattr(line, part) for line in lines]))
            for part in ("mean", "log_sd", "khat", "seconds", "gradients")
        )
    return Line(mean, log_sd, khat, verdict, seconds, gradients)


def summary(found: dict[str, dict[str, Line]]) -> None:
    """Compares rows with the aims; `found` has them by program and by name of the row."""
    for name in dict.fromkeys(row for lines in found.values() for row in lines if row != NUTS):
        lines = {program: rows[name] for program, rows in found.items() if name in rows}
        levels = {level: [program for program, line in lines.items() if line.level == level] for level in LEVELS}
        seconds = [line.seconds for line in lines.values()]
        trusted = levels["good"] + levels["usable with weights"]
        print(f"\n{name}, {len(lines)} programs:")
        print(f"- every mean within {AIM}: {sum(line.mean <= AIM for line in lines.values())}")
        print(f"- every mean and log sd within {AIM}: {sum(line.close for line in lines.values())}")
        print(f"- {'; '.join(f'{level}: {len(programs)}' for level, programs in levels.items())}")
        print(f"- good, but not within {AIM}: {listed(p for p in levels['good'] if not lines[p].close)}")
        print(f"- within {AIM}, but not trusted: {listed(p for p in lines if lines[p].close and p not in trusted)}")
        print(f"- at most {SECONDS:.0f} s: {sum(s <= SECONDS for s in seconds)}; the slowest took {max(seconds):.1f} s")


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
    print("| program | entries | row | mean | log sd | k-hat | verdict | seconds | gradients |")
    print("|---|---|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, Line]] = {}
    for key in options.only:
        program, lines = PROGRAMS[key], {}
        try:
            nuts = reference(program, options.references)
        except (ImportError, RuntimeError, ValueError) as error:
            print(f"| {key} | | failed: {error} | | | | | | |", flush=True)
            continue
        truth = moments(program, nuts)
        for name in options.rows:
            if name == NUTS:
                found_errors = errors(*nuts_moments(program, nuts), truth)
                prefix = "" if nuts.converged else "not converged: "
                lines[NUTS] = Line(*found_errors, verdict=f"{prefix}R-hat {nuts.rhat:.3f}", seconds=nuts.seconds)
                labels = [NUTS]
            else:
                by_seed = [evaluate(program, name, seed, truth) for seed in seeds]
                labels = [label for label in (name, RESAMPLED) if any(label in rows for rows in by_seed)]
                lines |= {label: worst([rows[label] for rows in by_seed if label in rows]) for label in labels}
            for label in labels:
                print(f"| {key} | {len(truth[0])} | {label} | {lines[label]} |", flush=True)
        found[key] = lines
    summary(found)


if __name__ == "__main__":
    main()
