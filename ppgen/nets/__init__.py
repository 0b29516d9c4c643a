"""Networks: plain ones, critics, and networks that grow."""

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
    choose,
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
    "choose",
    "evaluation",
    "growing_parts",
]
