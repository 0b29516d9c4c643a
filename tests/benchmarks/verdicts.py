"""Verdicts beside the truth, by integration on a grid, for programs of one to three latents.

A verdict names draws to use: those of the guide if it is "good", else those resampled by their weights. They are

    wrong      if the distribution function of a latent is off by more than .1, or the log evidence by more than .1
    right      if both are within .05; otherwise they are in between

beyond Monte Carlo error, 1 / sqrt(effective sample size), and two standard errors of the log evidence. A fit that is
"not to be trusted" is counted by the draws that would have been used. `CHOSEN` programs were in view when the checks of
the verdict were made, `REPORTED` programs were not. Pyro's guides are trained by Adam at .05, 400 steps.

    python tests/benchmarks/verdicts.py [--programs chosen reported] [--guides auto AutoNormal AutoMultivariateNormal]
        [--seeds 1] [--first 0] [--jobs 1] [--out FILE]

Each run is a line of FILE. Runs that are in the file are not repeated.
"""

import argparse
import math
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from jobs import gather
from pyro.infer import autoguide
from verdict_programs import CHOSEN, REPORTED

import ppgen
from ppgen.diagnostics.verdict import BAD, GOOD, WEIGHTED
from ppgen.fitting import Fit
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.utils.arviz_versions import group

PROGRAMS = {"chosen": CHOSEN, "reported": REPORTED}
GUIDES = ("auto", "AutoNormal", "AutoMultivariateNormal")
FUNCTIONS = {function.__name__: function for function in [*CHOSEN, *REPORTED]}
DRAWS = 4000
POINTS, LARGEST = {1: 40001, 2: 900, 3: 110}, {1: 1e5, 2: 3e3, 3: 3e2}  # of the grid, by the number of latents
SPACING = 0.05  # of the grid at 0: points are SPACING sinh(t) with t evenly spaced
NEGLIGIBLE = 1e-9  # mass beyond which the grid does not reach
ROUNDS = 6  # of fitting the grid to the posterior


def integrate(target: UnconstrainedLogDensity) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """The log evidence, and points of a grid: their masses, and the latents there."""
    n, limit = POINTS[target.dim], math.asinh(LARGEST[target.dim] / SPACING)
    box = [(-limit, limit)] * target.dim
    for _ in range(ROUNDS):
        axes = [np.linspace(low, high, n) for low, high in box]
        u = np.stack(np.meshgrid(*(SPACING * np.sinh(t) for t in axes), indexing="ij"), -1).reshape(-1, target.dim)
        cells = sum(np.meshgrid(*(np.log(SPACING * np.cosh(t) * (t[1] - t[0])) for t in axes), indexing="ij")).ravel()
        log_mass = target.log_prob(torch.as_tensor(u)).numpy()
        log_mass = np.where(np.isfinite(log_mass), log_mass, -np.inf) + cells
        total = np.logaddexp.reduce(log_mass)
        mass = np.exp(log_mass - total)
        box = []
        for i, t in enumerate(axes):
            along = np.moveaxis(mass.reshape((n,) * target.dim), i, 0).reshape(n, -1).sum(1)
            kept = np.flatnonzero(along > NEGLIGIBLE)
            box.append((t[max(kept[0] - 2, 0)], t[min(kept[-1] + 2, n - 1)]))
    kept = mass > NEGLIGIBLE / 10
    latents = target.constrain(torch.as_tensor(u[kept]))
    return float(total), mass[kept], {name: value.numpy().reshape(kept.sum(), -1) for name, value in latents.items()}


def largest_gap(points: np.ndarray, mass: np.ndarray, draws: np.ndarray) -> float:
    """The largest difference of the distribution functions of points with masses and of draws."""
    order, draws = np.argsort(points), np.sort(draws)
    expected = np.interp(draws, points[order], np.cumsum(mass[order]), left=0.0, right=1.0)
    steps = np.arange(len(draws) + 1) / len(draws)
    return float(max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max()))


def fitted(name: str, guide: str, seed: int) -> Fit:
    model = FUNCTIONS[name](np.random.default_rng(seed))
    if guide == "auto":
        return ppgen.fit(model, "auto", None, seed=seed, progress=False)
    adam = partial(torch.optim.Adam, lr=0.05)
    options: dict[str, Any] = {"optim": adam, "lr_scheduler": "linear", "steps": 400, "seed": seed}
    return ppgen.fit(model, getattr(autoguide, guide)(model), None, compile=False, progress=False, **options)


def one(name: str, guide: str, seed: int) -> dict[str, Any]:
    """One run, as a record."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pyro.clear_param_store()
    record: dict[str, Any] = {"name": name, "guide": guide, "seed": seed}
    try:
        fit = fitted(name, guide, seed)
        verdict = fit.diagnose(seed=seed)
        idata = fit.to_arviz(draws=DRAWS, predictive=False, chunk=DRAWS, seed=1000 + seed)
    except (ValueError, RuntimeError, FloatingPointError, NotImplementedError) as error:  # a row of the table
        return record | {"level": "failed", "truth": "", "text": f"{error!r:.100}"}
    log_evidence, mass, latents = integrate(UnconstrainedLogDensity(fit.model, ()))
    chain, stats = fit.best, group(idata, "vi_stats")
    resampled = group(idata, "posterior_resampled")
    weighted = verdict.level != GOOD and resampled is not None and chain in resampled["chain"].values
    draws = (resampled if weighted else group(idata, "posterior")).sel(chain=chain)
    gap = 0.0
    for key, points in latents.items():
        values = draws[key].values.reshape(DRAWS, -1).astype(float)
        gap = max(gap, *(largest_gap(points[:, i], mass, values[:, i]) for i in range(points.shape[1])))
    shortfall = log_evidence - float(stats["log_marginal"].values[chain])
    noise = 1 / math.sqrt(max(float(stats["ess"].values[chain]) if weighted else DRAWS, 1.0))
    error = 2 * float(stats["log_marginal_error"].values[chain])
    wrong = gap > 0.1 + noise or abs(shortfall) > 0.1 + error
    right = gap < 0.05 + noise and abs(shortfall) < 0.05 + error
    truth = "wrong" if wrong else "right" if right else "between"
    return record | {"level": verdict.level, "truth": truth, "gap": gap, "shortfall": shortfall, "text": str(verdict)}


def describe(record: dict[str, Any]) -> str:
    numbers = f"gap {record['gap']:.2f}, shortfall {record['shortfall']:+.3f}" if "gap" in record else record["text"]
    run = f"{record['name']:20} {record['guide']:22} {record['seed']:3}"
    return f"{run}  {record['level']:20} {record['truth']:8} {numbers}"


def table(records: list[dict[str, Any]]) -> None:
    counts = Counter((record["level"], record["truth"]) for record in records)
    print(f"\n{'':22}{'right':>8}{'between':>8}{'wrong':>8}")
    for level in (GOOD, WEIGHTED, BAD):
        print(f"{level:22}" + "".join(f"{counts[level, truth]:8}" for truth in ("right", "between", "wrong")))
    if failed := [f"{record['name']} ({record['guide']})" for record in records if record["level"] == "failed"]:
        print(f"failed: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--only", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS), metavar="NAME")
    parser.add_argument("--guides", nargs="+", choices=GUIDES, default=list(GUIDES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first seed, of data and fits")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [f.__name__ for part in options.programs for f in PROGRAMS[part] if f.__name__ in options.only]
    seeds = range(options.first, options.first + options.seeds)
    runs = [(name, guide, seed) for name in names for guide in options.guides for seed in seeds]
    key = ("name", "guide", "seed")
    table(gather(one, runs, key, jobs=options.jobs, out=options.out, describe=describe))


if __name__ == "__main__":
    main()
