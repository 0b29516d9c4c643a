"""The report of a flow against an energy: how near it came, both densities, draws, training, configuration."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppgen.models import UnnormalizedDensity
from ppgen.report import figures
from ppgen.report.page import Figure, Report, Section
from ppgen.report.sections import configuration, summary, training
from ppgen.training.result import Fitted

__all__ = ["report_of_energy"]

DENSITY = (
    "The reverse KL is large where the flow has mass and the energy has none, and takes no notice of mass that the "
    "flow does not reach. A mode that was dropped is bright on the left and dark on the right, and log Z by importance "
    "samples is then below log Z by quadrature."
)


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
    """Says how near a flow came to an energy.

    Args:
        fit: the run.
        side: the coordinates (m,) of a grid along either axis.
        densities: of "energy" and "flow" on it, (m, m), the first index along x[0].
        draws: of the flow, (n, 2).
        numbers, config: as `ppgen.report.report_of_run` takes them.
    """
    question = (
        f"How near is the flow to exp(-U) / Z of the energy {energy.name}, which it learned without a draw of it?"
    )
    caption = "The density of the energy, and of the flow, on one scale."
    scattered = f"{len(draws)} draws of the flow."
    sections = [
        summary(fit, question, numbers, "nats"),
        Section(
            "Density",
            DENSITY,
            [
                Figure(figures.densities(side, densities, columns=energy.columns), caption, f"Heat maps. {caption}"),
                Figure(figures.samples(draws, columns=energy.columns), scattered, f"Scatter plot. {scattered}"),
            ],
        ),
        training(fit, "nats"),
        configuration(config),
    ]
    return Report(f"flow against {energy.name}", "reverse KL, no data", [s for s in sections if s])
