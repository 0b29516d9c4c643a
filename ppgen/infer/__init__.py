"""Stochastic variational inference: the optimization step, parameters, optimizers, automatic guides."""

from ppgen.infer.autoguide import AutoFlow, AutoMixture
from ppgen.infer.svi import SVI

__all__ = ["SVI", "AutoFlow", "AutoMixture"]
