"""The report of a flow that was fitted to an unnormalized density."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppgen.models import UnnormalizedDensity
from ppgen.report.context import DensityContext
from ppgen.report.page import Report
from ppgen.report.registry import Row, build_sections
from ppgen.report.sections.configuration import configuration
from ppgen.report.sections.density import density
from ppgen.report.sections.summary import summary
from ppgen.report.sections.training import training
from ppgen.training.result import Fitted

__all__ = ["SECTIONS", "report_of_energy"]

SECTIONS: tuple[Row[DensityContext], ...] = (Row(summary), Row(density), Row(training), Row(configuration))


def report_of_energy(
    fit: Fitted,
    energy: UnnormalizedDensity,
    side: np.ndarray,
    densities: Mapping[str, np.ndarray],
    draws: np.ndarray,
    *,
    numbers: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Report:
    """Reports on how close a flow is to an unnormalized density exp(-U).

    Args:
        fit: the run.
        energy: the unnormalized density.
        side: the coordinates (m,) of a grid along either axis.
        densities: the densities (m, m) of "energy" and "flow" on the grid, the first index along x[0].
        draws: draws (n, 2) of the flow.
        numbers: further results by name, as for `ppgen.report.report_of_run`.
        config: the configuration.
    """
    context = DensityContext(
        fit=fit,
        target=energy,
        side=side,
        densities=densities,
        draws=draws,
        question=f"How close is the flow to exp(-U) / Z for the energy {energy.name}, of which it has seen no draws?",
        unit="nats",
        numbers=numbers,
        config=config,
    )
    subtitle = "reverse KL divergence, without data"
    return Report(f"Flow fitted to {energy.name}", subtitle, build_sections(SECTIONS, context))
