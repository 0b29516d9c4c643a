"""Normalizing flows as Pyro distributions, scored and drawn in both directions."""

from ppgen.flows.build import (
    FLOWS,
    bernstein,
    continuous,
    iaf,
    lu_linear,
    maf,
    naf,
    nice,
    nsf,
    nsf_autoregressive,
    realnvp,
    sum_of_squares,
)
from ppgen.flows.flow import Flow, FlowDistribution

__all__ = [
    "FLOWS",
    "Flow",
    "FlowDistribution",
    "bernstein",
    "continuous",
    "iaf",
    "lu_linear",
    "maf",
    "naf",
    "nice",
    "nsf",
    "nsf_autoregressive",
    "realnvp",
    "sum_of_squares",
]
