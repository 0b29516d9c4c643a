"""Normalizing flows as Pyro distributions, scored and drawn in both directions."""

from ppgen.flows.bounded import bounded
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
from ppgen.flows.image import IMAGE_FLOWS, glow

__all__ = [
    "FLOWS",
    "IMAGE_FLOWS",
    "Flow",
    "FlowDistribution",
    "bernstein",
    "bounded",
    "circular",
    "continuous",
    "glow",
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
