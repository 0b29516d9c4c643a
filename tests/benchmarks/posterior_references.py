"""Reference moments of posteriors: formulas, Gibbs sampling, or long runs of NumPyro's NUTS that are kept in a folder.

Four chains of 4000 draws after 2000 steps of adaptation, a dense mass matrix, a target acceptance of .95, double
precision. A kept run has some of its draws with NumPyro's log joint density there. Pyro's program has to have the same
at each of them, so that a reference of another program, or of one that differs between the libraries, is never used.
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
RADII = (2.0, 1e-3)  # of the starts, uniform on the real line; the second where chains do not meet from the first

Moments = dict[str, list[float]]


@dataclass(frozen=True)
class Reference:
    """A run of NUTS.

    Attributes:
        mean, sd: of the entries of each site that is judged.
        seconds: of compiling, adapting and drawing, in the run that is kept.
        rhat, effective, divergent: the largest R-hat and the least effective sample size over all entries, and how many
            transitions diverged.
        points: some draws, each the latents' values by name, with NumPyro's `log_joint` there.
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
    """A program's reference, drawn unless the folder has it.

    Raises:
        ValueError: if the two libraries have different densities of it.
    """
    path = folder / f"{program.name}.json"
    if path.exists():
        kept = Reference(**json.loads(path.read_text()))
        if set(kept.mean) == set(program.sites) and difference(program, kept) < TOLERANCE:
            return kept
    drawn = draw(program)
    if not (gap := difference(program, drawn)) < TOLERANCE:
        raise ValueError(f"{program.name}: Pyro's log joint density differs from NumPyro's by a share of {gap:.1e}")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(drawn)))
    return drawn


def moments(program: Program, kept: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all entries of the sites that are judged, NUTS's if there are no better ones."""
    if program.exact is None:
        return flattened(program, kept)
    exact = program.exact(*program.data)
    mean, sd = zip(*(exact[name] for name in program.sites), strict=True)
    return np.hstack(mean), np.hstack(sd)


def flattened(program: Program, kept: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Those of the run itself."""
    mean, sd = (np.concatenate([part[name] for name in program.sites]) for part in (kept.mean, kept.sd))
    return mean, sd


def difference(program: Program, kept: Reference) -> float:
    """The largest difference of Pyro's log joint density from NumPyro's at the points, relative to its size."""
    found = []
    for point in kept.points:
        if set(point) != set(program.latents):
            return np.inf
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in point.items()}
        with default_type(torch.float64):
            trace = poutine.trace(poutine.condition(program.model, data=values)).get_trace(*program.data)
            found.append(float(trace.log_prob_sum()))
    return float(np.max(np.abs(np.subtract(found, kept.log_joint)) / np.maximum(1, np.abs(kept.log_joint))))


def draw(program: Program) -> Reference:
    """Runs NUTS on a program, or on its twin."""
    import jax  # late: with references at hand, nobody needs it

    jax.config.update("jax_enable_x64", True)
    import numpyro
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS, init_to_uniform
    from numpyro.infer.util import log_density as log_joint

    theirs = programs(numpyro, numpyro.distributions, jax.numpy)
    data = tuple(jax.numpy.asarray(part.numpy()) for part in program.data)
    for radius in RADII:
        start = time.perf_counter()
        kernel = NUTS(
            theirs[program.twin or program.name],
            target_accept_prob=ACCEPTANCE,
            dense_mass=True,
            init_strategy=init_to_uniform(radius=radius),
        )
        run = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )
        run.run(jax.random.PRNGKey(0), *data)
        samples = {name: np.asarray(part) for name, part in run.get_samples(group_by_chain=True).items()}
        seconds = time.perf_counter() - start
        about = summary({name: samples[name] for name in {*program.latents, *program.sites}}).values()
        rhat = float(max(np.max(part["r_hat"]) for part in about))
        if rhat < RHAT or program.exact is not None:
            break
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
        effective=float(min(np.min(part["n_eff"]) for part in about)),
        divergent=int(np.sum(run.get_extra_fields()["diverging"])),
        points=points,
        log_joint=[
            float(log_joint(theirs[program.name], data, {}, {k: jax.numpy.asarray(v) for k, v in point.items()})[0])
            for point in points
        ],
    )
