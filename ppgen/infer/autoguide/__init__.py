"""Guides built from the model alone, beside those of Pyro."""

from ppgen.infer.autoguide.flow import AutoFlow
from ppgen.infer.autoguide.mixture import AutoMixture

__all__ = ["AutoFlow", "AutoMixture"]
