"""A run of a flow against an energy: no data, and a divergence that is absolute."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from ppgen.posterior.importance import importance_summary
from ppgen.infer import AutoFlow
from ppgen.models import ENERGIES, UnnormalizedDensity
from ppgen.tracing.particles import log_weights
from ppgen.report import write_report
from ppgen.report.energy import report_of_energy
from ppgen.runs.run import Run
from ppgen.tracing.sites import nearest

__all__ = ["EnergyRun"]

CHUNK = 10_000  # draws at a time
GRID, SHOWN = 200, 2000  # points of a side, and draws, in the report


@dataclass
class Programs:
    """An energy and its guide."""

    model: Any
    guide: AutoFlow

    def check(self) -> None:
        """There are no data to be checked."""


@dataclass
class EnergyRun(Run):
    """As `ppgen.runs.run.Run`; its data are an `UnnormalizedDensity`, its model the energy with the guide that was fitted to it."""

    data: UnnormalizedDensity
    model: Programs
    of_energy: ClassVar[bool] = True

    @classmethod
    def load_data(cls, config: dict[str, Any]) -> UnnormalizedDensity:
        if config["energy"] not in ENERGIES:
            raise ValueError(f"no energy {config['energy']!r}; {nearest(config['energy'], ENERGIES)}")
        return ENERGIES[config["energy"]]

    @classmethod
    def make_model(cls, config: dict[str, Any], data: UnnormalizedDensity) -> Programs:
        return Programs(data.model, AutoFlow(data.model, **config["model"]))

    @classmethod
    def rows(cls, config: dict[str, Any], data: UnnormalizedDensity, split: str) -> tuple[Tensor, ...]:
        return ()

    def evaluate(self) -> None:
        count = self.config["particles"]
        with self.fit.eval_mode(), torch.random.fork_rng():
            torch.manual_seed(self.config["fit"]["seed"])
            sizes = [min(CHUNK, count - done) for done in range(0, count, CHUNK)]
            parts = [log_weights(self.model.model, self.model.guide, (), particles=size) for size in sizes]
        weights = torch.cat(parts).double().numpy(force=True)
        found, error = importance_summary(weights), float(weights.std() / count**0.5)
        log_z, bound = self.data.log_z, float(found.elbo[0])
        self.keep(
            {
                "KL from the flow to the energy: log Z - evidence bound (nats)": (log_z - bound, error),
                "evidence bound (nats)": (bound, error),
                "log Z, by quadrature": log_z,
                f"log Z, by {count} importance samples": float(found.log_marginal[0]),
                "effective share of importance samples": float(found.effective[0]) / count,
                "Pareto k-hat": float(found.pareto_k[0]),
            }
        )

    def log_density(self, x: Tensor) -> Tensor:
        """log q(x) of points (..., 2)."""
        with self.fit.eval_mode(), torch.no_grad():
            transform = biject_to(self.data.support)
            u = transform.inv(x)
            return self.model.guide.get_posterior().log_prob(u) - transform.log_abs_det_jacobian(u, x)

    def draws(self, n: int, *, seed: int = 0) -> np.ndarray:
        """n draws (n, 2) of the flow."""
        with self.fit.eval_mode(), torch.random.fork_rng(), torch.no_grad(), pyro.plate("draws", n):
            torch.manual_seed(seed)
            return self.model.guide()["x"].numpy(force=True)

    def sample(self, n: int, *, label: int | None = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """As `draws`.

        Raises:
            ValueError: for a label, means or a sampler, which a flow against an energy has not.
        """
        if label is not None or mean or how:
            raise ValueError(f"{self.folder}: a flow against an energy has no labels, means of draws or samplers")
        return self.draws(n, seed=seed)

    def report(self) -> Path:
        side, x = self.data.grid(GRID)
        page = report_of_energy(
            self.fit,
            self.data,
            side,
            {
                "energy": (-self.data.potential(x) - self.data.log_z).exp().numpy(),
                "flow": self.log_density(x.to(torch.get_default_dtype())).exp().numpy(force=True),
            },
            self.draws(SHOWN),
            numbers=self.numbers,
            config=self.config,
        )
        return write_report(self.folder / "report.html", page)
