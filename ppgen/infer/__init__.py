"""Inference: the optimisation step, parameters, stored state. Knows losses by their protocol, not their terms."""

from ppgen.infer.guides import AutoFlow
from ppgen.infer.mixture import AutoMixture
from ppgen.infer.svi import SVI

__all__ = ["SVI", "AutoFlow", "AutoMixture"]
