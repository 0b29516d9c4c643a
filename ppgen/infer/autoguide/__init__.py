"""Guides that are built from the model alone, in addition to Pyro's. A new one is a file here and an import below."""

from ppgen.infer.autoguide.flow import AutoFlow as AutoFlow
from ppgen.infer.autoguide.mixture import AutoMixture as AutoMixture
