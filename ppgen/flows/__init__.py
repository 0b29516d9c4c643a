"""Normalizing flows as Pyro distributions, scored and drawn in both directions."""

from ppgen.flows.build import (
    FLOWS,
    bernstein,
    circular,
    continuous,
    iaf,
    lu_linear,
    maf,
    naf,
    nice,
    nsf,
    nsf_autoregressive,
    planar,
    radial,
    realnvp,
    residual,
    sum_of_squares,
    sylvester,
)
from ppgen.flows.flow import Flow, FlowDistribution

__all__ = [
    "FLOWS",
    "Flow",
    "FlowDistribution",
    "bernstein",
    "circular",
    "continuous",
    "iaf",
    "lu_linear",
    "maf",
    "naf",
    "nice",
    "nsf",
    "nsf_autoregressive",
    "planar",
    "radial",
    "realnvp",
    "residual",
    "sum_of_squares",
    "sylvester",
]
