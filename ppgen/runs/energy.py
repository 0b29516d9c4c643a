"""A run of a flow that is fitted to an unnormalized density, without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.distributions import biject_to

from ppgen.data import Data, Scaler
from ppgen.infer import AutoFlow
from ppgen.models import ENERGIES, UnnormalizedDensity
from ppgen.runs.folder import REPORT
from ppgen.runs.methods import Method
from ppgen.runs.record import Record
from ppgen.runs.run import Run, method_of
from ppgen.tracing.particles import log_weights
from ppgen.tracing.sites import did_you_mean
from ppgen.utils.budget import Budget

__all__ = ["EnergyRun"]

PARTICLES, LEAST = 50_000, 1000  # importance samples if there is time, and in any case
CHUNK = 10_000  # that are computed at a time
GRID, SAMPLES = 200, 2000  # grid points of each axis, and samples of the flow, in the report


@dataclass
class DensityAndFlow:
    """The program of an unnormalized density, and the flow that is fitted to it as its guide."""

    model: Any
    guide: AutoFlow
    support: Any

    def check(self, *data: Any) -> None:
        """Checks nothing, since there are no data."""

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """Draws n points (n, 2) of the flow."""
        with pyro.plate("draws", n):
            return self.guide()["x"]

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The log-density of the flow at points (..., 2), in nats."""
        transform = biject_to(self.support)
        u = transform.inv(x)
        return self.guide.get_posterior().log_prob(u) - transform.log_abs_det_jacobian(u, x)


@dataclass
class EnergyRun(Run):
    """A run without data: `data` is an `UnnormalizedDensity`, the guide of `model` a flow that is fitted to it."""

    model: DensityAndFlow

    @classmethod
    def add_arguments(cls, parser: ArgumentParser, method: Method) -> None:
        """Adds the unnormalized density."""
        explanation = f"the unnormalized density: {', '.join(ENERGIES)}"
        parser.add_argument("--energy", type=str, required=True, help=explanation)
        super().add_arguments(parser, method)

    @classmethod
    def sources(cls, config: Mapping[str, Any]) -> list[str]:
        """The unnormalized density."""
        return [config["energy"]]

    @classmethod
    def load_data(cls, config: dict[str, Any], record: Record | None = None) -> UnnormalizedDensity:
        """Looks the unnormalized density up.

        Raises:
            ValueError: If there is none of this name.
        """
        if config["energy"] not in ENERGIES:
            raise ValueError(f"no energy {config['energy']!r}; {did_you_mean(config['energy'], ENERGIES)}")
        return ENERGIES[config["energy"]]

    @classmethod
    def parts(cls, data: UnnormalizedDensity) -> dict[str, Data]:
        """None, since there are no data."""
        return {}

    @classmethod
    def join(cls, config: dict[str, Any], parts: Mapping[str, Data]) -> UnnormalizedDensity:
        """The unnormalized density."""
        return cls.load_data(config)

    @classmethod
    def make_model(cls, config: dict[str, Any], data: UnnormalizedDensity) -> DensityAndFlow:
        """Makes the flow."""
        flow = method_of(config).model_class()(data.model, **config["model"])
        return DensityAndFlow(data.model, flow, data.support)

    @classmethod
    def loss_arguments(cls, config: dict[str, Any]) -> Mapping[str, Any]:
        """The base distribution of an annealed objective; the program has no plates."""
        return {"base": cls.load_data(config).base, "max_plate_nesting": 0}

    @classmethod
    def rows(cls, config: dict[str, Any], data: UnnormalizedDensity, split: str) -> tuple[Tensor, ...]:
        """Nothing: the programs have no arguments."""
        return ()

    def measure(self, budget: Budget) -> dict[str, Any]:
        """Estimates KL(flow, target) and log Z by importance sampling from the flow."""
        from ppgen.posterior.importance import importance_summary  # late: SciPy is slow to import

        parts = []
        with self.fit.eval_mode(), torch.random.fork_rng():
            torch.manual_seed(self.config["fit"]["seed"])
            given = self.config["particles"]
            for batch in budget.batches(given or PARTICLES, largest=CHUNK, smallest=LEAST, least=given or LEAST):
                size = batch.stop - batch.start
                parts.append(log_weights(self.model.model, self.model.guide, (), particles=size).cpu())
        weights = torch.cat(parts).double().numpy()
        count = len(weights)
        summary, error = importance_summary(weights), float(weights.std() / count**0.5)
        log_z, elbo = self.data.log_z, float(summary.elbo[0])
        return {
            "KL(flow, target) = log Z - ELBO (nats)": (log_z - elbo, error),
            "ELBO (nats)": (elbo, error),
            "log Z by quadrature (nats)": log_z,
            f"log Z by {count} importance samples (nats)": float(summary.log_marginal[0]),
            "effective sample size / importance samples": float(summary.ess[0]) / count,
            "Pareto k-hat": float(summary.pareto_k[0]),
        }

    def store_posterior(self, budget: Budget) -> None:
        """Stores nothing: the flow itself is the result."""

    def log_density(self, x: Tensor) -> Tensor:
        """The log-density of the flow.

        Args:
            x: Points (..., 2).

        Returns:
            log q(x) in nats, (...).
        """
        with self.fit.eval_mode(), torch.no_grad():
            return self.model.log_prob(x)

    def sample(self, n: int, *, label: Any = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """Draws n samples (n, 2) of the flow; see `Run.sample`."""
        if label is not None or mean or how:
            raise ValueError(f"{self.folder}: a flow of an unnormalized density has no labels, means or samplers")
        with self.drawing(seed):
            return self.model.sample(n).numpy(force=True)

    @property
    def described(self) -> Data:
        """Points of the plane, of which there are none."""
        return Data(self.config["energy"], np.zeros((0, 2)), None, {}, "continuous", Scaler.identity((2,)))

    def report(self, budget: Budget | None = None) -> Path:
        """Writes the report, whose cost is fixed; see `Run.report`."""
        from ppgen.report import write_report  # late: ArviZ and Matplotlib are slow to import
        from ppgen.report.energy import report_of_energy

        side, x = self.data.grid(GRID)
        page = report_of_energy(
            self.fit,
            self.data,
            side,
            {
                "energy": (-self.data.potential(x) - self.data.log_z).exp().numpy(),
                "flow": self.log_density(x.to(torch.get_default_dtype())).exp().numpy(force=True),
            },
            self.sample(SAMPLES),
            numbers=self.numbers,
            config=self.config,
        )
        return write_report(self.folder / REPORT, page)
