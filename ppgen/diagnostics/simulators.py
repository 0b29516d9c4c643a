"""The verdict about a posterior of a simulator, which has no density to judge by: calibration on new simulations.

Draws of the prior, whatever the data, are calibrated too. TARP finds them if its reference points depend on the data:
here they are the latents of the simulation whose data are nearest, among others.
"""

import math

import torch
from torch import Tensor

from ppgen.diagnostics.calibration import Calibration, calibrate
from ppgen.models.simulator import Simulator
from ppgen.training.result import Fitted

__all__ = ["calibrate_ensemble"]

SIMULATIONS, DRAWS, REFERENCES = 500, 99, 2000
NEW = 2**40  # added to seeds, so that simulations are not those of the training


def calibrate_ensemble(simulator: Simulator, fit: Fitted, *, seed: int = 0) -> Calibration:
    """Ranks latents of new simulations among draws of all chains together.

    Args:
        simulator: the simulator.
        fit: a fit of it with ``guide="auto"``.
        seed: the seed of simulations and draws; the caller's random state does not change.
    """
    each = math.ceil(DRAWS / len(fit.chains))
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed + NEW)
        rows = simulator.draw(SIMULATIONS + REFERENCES)
        finite = torch.stack([part.reshape(len(part), -1).isfinite().all(-1) for part in rows]).all(0)
        names = [name for name in simulator.__signature__.parameters if name in (*simulator.data, *simulator.latents)]
        found = {name: part[finite] for name, part in zip(names, rows, strict=True)}
        count = int(finite[:SIMULATIONS].sum())
        data = [found[name][:count] for name in simulator.data]
        for chain in range(len(fit.chains)):
            with fit.eval_mode(chain):
                parts += [fit.guide(*data) for _ in range(each)]
    drawn = {name: torch.stack([part[name] for part in parts], 1)[:, :DRAWS] for name in simulator.latents}
    x, z = (
        torch.cat([found[k].reshape(len(found[k]), -1) for k in of], -1) for of in (simulator.data, simulator.latents)
    )
    x = x / x.std(0).clamp(min=torch.finfo(x.dtype).tiny)
    nearest = torch.cdist(x[:count].double(), x[count:].double()).argmin(-1)
    truths = {name: found[name][:count] for name in simulator.latents}
    return calibrate(truths, drawn, references=z[count:][nearest], seed=seed)
