"""Networks: dense and convolutional networks, networks for denoisers, critics, and growing networks."""

from ppgen.nets.conditioned import ResidualDense, UNet
from ppgen.nets.contrast import ContrastInvariant
from ppgen.nets.critics import Critic, GrowingCritic
from ppgen.nets.defaults import KINDS, Defaults, defaults_for
from ppgen.nets.domain_norm import DomainNorm, rows_of
from ppgen.nets.growing import Growing, GrowingDecoder, GrowingEncoder, growing_parts
from ppgen.nets.networks import (
    ACTIVATIONS,
    NORMS,
    ConvDecoder,
    ConvEncoder,
    ConvMap,
    Dense,
    Network,
    eval_mode,
    lookup,
)

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "NORMS",
    "ContrastInvariant",
    "ConvDecoder",
    "ConvEncoder",
    "ConvMap",
    "Critic",
    "Defaults",
    "Dense",
    "DomainNorm",
    "Growing",
    "GrowingCritic",
    "GrowingDecoder",
    "GrowingEncoder",
    "Network",
    "ResidualDense",
    "UNet",
    "defaults_for",
    "eval_mode",
    "growing_parts",
    "lookup",
    "rows_of",
]
