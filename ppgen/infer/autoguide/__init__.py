"""Guides that are built from the model alone, in addition to Pyro's."""

from ppgen.infer.autoguide.flow import AutoFlow
from ppgen.infer.autoguide.mixture import AutoMixture

__all__ = ["AutoFlow", "AutoMixture"]
