"""Networks: plain ones, conditioned ones for denoisers, critics, and networks that grow."""

from ppgen.nets.conditioned import ResidualDense, UNet
from ppgen.nets.critics import Critic, GrowingCritic
from ppgen.nets.growing import Growing, GrowingDecoder, GrowingEncoder, growing_parts
from ppgen.nets.networks import (
    ACTIVATIONS,
    NORMS,
    ConvDecoder,
    ConvEncoder,
    ConvMap,
    Dense,
    Network,
    lookup,
    evaluation,
)

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "ConvDecoder",
    "ConvEncoder",
    "ConvMap",
    "Critic",
    "Dense",
    "Growing",
    "GrowingCritic",
    "GrowingDecoder",
    "GrowingEncoder",
    "Network",
    "ResidualDense",
    "UNet",
    "choose",
    "evaluation",
    "growing_parts",
]
