"""Reference moments of posteriors: formulas, Gibbs sampling, or long runs of NumPyro's NUTS, stored in a folder.

NUTS runs four chains of 4000 draws after 2000 warm-up steps, in double precision, with a dense mass matrix and a target
acceptance of .95. A stored run has some of its draws with NumPyro's log joint density at each of them. Pyro's program
must have the same density there, so a reference of another program, or of one that differs between the libraries, is
never used.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posterior_programs import Program, default_type, programs
from pyro import poutine

CHAINS, DRAWS, WARMUP, ACCEPTANCE = 4, 4000, 2000, 0.95
RHAT = 1.01
POINTS, TOLERANCE = 5, 1e-8
RADII = (2.0, 1e-3)  # of uniform initial values on the real line; the second if chains disagree with the first

Moments = dict[str, list[float]]


@dataclass(frozen=True)
class Reference:
    """A run of NUTS.

    Attributes:
        mean: The means of the entries of each evaluated site.
        sd: Their standard deviations.
        seconds: The time of compiling, warm-up and sampling, in the run that is stored.
        rhat: The largest R-hat over all entries.
        effective: The smallest effective sample size over all entries.
        divergent: The number of divergent transitions.
        points: Some draws, each with the latents' values by name.
        log_joint: NumPyro's log joint density at each of the points.
    """

    mean: Moments
    sd: Moments
    seconds: float
    rhat: float
    effective: float
    divergent: int
    points: list[dict[str, Any]]
    log_joint: list[float]

    @property
    def converged(self) -> bool:
        return self.rhat < RHAT


def reference(program: Program, folder: Path) -> Reference:
    """The reference of a program, from the folder or else from a new run of NUTS.

    Args:
        program: The program.
        folder: The folder of stored runs.

    Raises:
        ImportError: If a run is needed and NumPyro is not installed.
        ValueError: If the densities of the two libraries differ.
    """
    path = folder / f"{program.name}.json"
    if path.exists():
        stored = Reference(**json.loads(path.read_text()))
        if set(stored.mean) == set(program.sites) and difference(program, stored) < TOLERANCE:
            return stored
    run = run_nuts(program)
    if not (error := difference(program, run)) < TOLERANCE:
        raise ValueError(f"{program.name}: Pyro's log joint density differs from NumPyro's by {error:.1e}, relatively")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run)))
    return run


def moments(program: Program, run: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all entries of the evaluated sites: exact if known, else those of NUTS."""
    if program.exact is None:
        return nuts_moments(program, run)
    exact = program.exact(*program.data)
    mean, sd = zip(*(exact[name] for name in program.sites), strict=True)
    return np.hstack(mean), np.hstack(sd)


def nuts_moments(program: Program, run: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all entries of the evaluated sites, by NUTS."""
    mean, sd = (np.concatenate([part[name] for name in program.sites]) for part in (run.mean, run.sd))
    return mean, sd


def difference(program: Program, run: Reference) -> float:
    """The largest difference of Pyro's log joint density from NumPyro's at the points, relative to its size."""
    log_joint = []
    for point in run.points:
        if set(point) != set(program.latents):
            return np.inf
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in point.items()}
        with default_type(torch.float64):
            trace = poutine.trace(poutine.condition(program.model, data=values)).get_trace(*program.data)
            log_joint.append(float(trace.log_prob_sum()))
    return float(np.max(np.abs(np.subtract(log_joint, run.log_joint)) / np.maximum(1, np.abs(run.log_joint))))


def run_nuts(program: Program) -> Reference:
    """Runs NUTS on a program, or on its `nuts_program`."""
    import jax  # not needed for stored references

    jax.config.update("jax_enable_x64", True)
    import numpyro
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS, init_to_uniform
    from numpyro.infer.util import log_density

    numpyro_programs = programs(numpyro, numpyro.distributions, jax.numpy)
    data = tuple(jax.numpy.asarray(part.numpy()) for part in program.data)
    for radius in RADII:
        start = time.perf_counter()
        kernel = NUTS(
            numpyro_programs[program.nuts_program or program.name],
            target_accept_prob=ACCEPTANCE,
            dense_mass=True,
            init_strategy=init_to_uniform(radius=radius),
        )
        mcmc = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.PRNGKey(0), *data)
        samples = {name: np.asarray(part) for name, part in mcmc.get_samples(group_by_chain=True).items()}
        seconds = time.perf_counter() - start
        statistics = summary({name: samples[name] for name in {*program.latents, *program.sites}}).values()
        rhat = float(max(np.max(part["r_hat"]) for part in statistics))
        if rhat < RHAT or program.exact is not None:
            break

    def as_arrays(point: dict[str, Any]) -> dict[str, Any]:
        return {name: jax.numpy.asarray(value) for name, value in point.items()}

    flat = {name: samples[name].reshape(CHAINS * DRAWS, -1) for name in program.sites}
    points = [
        {name: samples[name][i % CHAINS, (i + 1) * DRAWS // POINTS - 1].tolist() for name in program.latents}
        for i in range(POINTS)
    ]
    return Reference(
        mean={name: part.mean(0).tolist() for name, part in flat.items()},
        sd={name: part.std(0).tolist() for name, part in flat.items()},
        seconds=seconds,
        rhat=rhat,
        effective=float(min(np.min(part["n_eff"]) for part in statistics)),
        divergent=int(np.sum(mcmc.get_extra_fields()["diverging"])),
        points=points,
        log_joint=[
            float(log_density(numpyro_programs[program.name], data, {}, as_arrays(point))[0]) for point in points
        ],
    )
